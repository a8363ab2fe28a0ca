"""What comes after a model has lost structures: a second prune, packing, training, a kill."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import secateur
import tiny
from families import EXPERT_FAMILIES
from secateur.blocks.narrowed import Narrowed
from secateur.checkpoint.narrower import EXPERTS
from tiny import fingerprint, make_model

SHORT: dict[str, Any] = {"samples": 4, "sequence_length": 32}
HEADS = {"hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
"""Of which one may go, and then another: the width is a multiple of four, three and two."""


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`folder_of(family)` -> a tiny model of four blocks, of six experts where it has some."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            keys = [key for key in EXPERTS if key in EXPERT_FAMILIES.get(family, {})]
            changes = {**HEADS, **dict.fromkeys(keys, 6)}
            model = make_model(family, num_hidden_layers=4, **changes)
            made[family] = tiny.save(model, tmp_path_factory.mktemp("dense") / family)
        return made[family]

    return folder


@torch.no_grad()
def predictions(folder: Path, tokens: Tensor) -> Tensor:
    return secateur.load(folder)(tokens, use_cache=False).logits


@pytest.mark.parametrize(
    ("family", "pattern", "method"),
    [
        ("llama", "heads-1", "activation"),
        ("qwen3", "blocks-1", "shortgpt"),
        ("qwen3", "ffn-16", "wanda"),
        ("qwen3", "heads-1", "activation"),
        ("mixtral", "blocks-1", "shortgpt"),
        ("mixtral", "heads-1", "activation"),
        ("mixtral", "experts-1", "reap"),
        ("qwen3_moe", "blocks-1", "shortgpt"),
        ("qwen3_moe", "heads-1", "activation"),
        ("qwen3_moe", "experts-1", "replacement"),
    ],
)
def test_a_smaller_model_is_pruned_again_packed_and_trained(
    family: str, pattern: str, method: str, folder_of: Callable[[str], Path], calibration: str,
    tokens: Tensor, tmp_path: Path,
) -> None:  # fmt: skip
    """Twice the same structures, then 2:4; that is packed, and trained back."""
    options = {"calibration": calibration, **SHORT}
    dense, once, twice = folder_of(family), tmp_path / "once", tmp_path / "twice"
    first = secateur.prune(dense, method=method, pattern=pattern, out=once, **options)
    again = secateur.prune(once, method=method, pattern=pattern, out=twice, **options)
    assert [one.left for one in again.lost] == [2 * first.lost[0].left - first.lost[0].of]
    assert secateur.check(twice, pattern=pattern, source=once).unlike == ()
    zeros = tmp_path / "zeros"
    secateur.prune(twice, method="wanda", pattern="2:4", out=zeros, **options)
    proof = secateur.check(zeros)
    assert (proof.holds, proof.complaint) == (True, None)
    packed = tmp_path / "packed"
    secateur.pack(zeros, packed)
    assert torch.equal(predictions(packed, tokens[:2]), predictions(zeros, tokens[:2]))
    trained = secateur.recover(
        zeros, out=tmp_path / "trained", train="weights", text=calibration, steps=2,
        validation=2, batch_size=1, **SHORT,
    )  # fmt: skip
    assert trained.recovery is not None
    assert trained.recovery.zeros_after >= trained.recovery.zeros_before
    proof = secateur.check(tmp_path / "trained")
    assert (proof.holds, proof.complaint) == (True, None)
    assert predictions(tmp_path / "trained", tokens[:2]).isfinite().all()


@pytest.mark.parametrize("method", ["reap", "replacement"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_a_run_without_some_experts_that_was_stopped_ends_in_the_same_bits(
    family: str, method: str, folder_of: Callable[[str], Path], calibration: str,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    out, dense = tmp_path / "out", folder_of(family)
    options: dict[str, Any] = {
        "text": calibration, "calibration": calibration, "mend": True, "regional": {"rounds": 1},
        "method": method, "pattern": "experts-2", "out": out, **SHORT,
    }  # fmt: skip
    whole = secateur.prune(dense, **options)
    reference = {name: bits for name, bits in fingerprint(out).items() if name != "run.json"}
    shutil.rmtree(out)
    prove = Narrowed.prove

    def stop(self: Narrowed, module: torch.nn.Module, index: int) -> None:
        if index == 2:
            raise KeyboardInterrupt
        prove(self, module, index)

    monkeypatch.setattr(Narrowed, "prove", stop)
    with pytest.raises(KeyboardInterrupt):
        secateur.prune(dense, **options)
    assert not out.exists()
    monkeypatch.setattr(Narrowed, "prove", prove)
    monkeypatch.setattr(  # the choice is not made again
        "secateur.pruning.widths.ExpertChoice", lambda *args: pytest.fail("scored again")
    )
    run = secateur.prune(dense, **options)
    assert {name: b for name, b in fingerprint(out).items() if name != "run.json"} == reference
    assert run.lost == whole.lost
    assert run.evaluations[0].perplexity == whole.evaluations[0].perplexity
