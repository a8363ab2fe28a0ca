"""What comes after a model has lost structures: a second prune, packing, training, a kill."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import secateur
from families import EXPERT_FAMILIES
from secateur.blocks.narrowed import Narrowed
from secateur.checkpoint.narrower import EXPERTS
from secateur.errors import RecipeError
from secateur.evaluation import Evaluation
from secateur.record import RecoveryRecord
from tiny import Command

SHORT: dict[str, Any] = {"samples": 4, "sequence_length": 32}
HEADS = {"hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
"""Of which one may go, and then another: the width is a multiple of four, three and two."""


def changes_of(family: str) -> dict[str, Any]:
    """Settings for four blocks, of six experts where a family has some."""
    keys = [key for key in EXPERTS if key in EXPERT_FAMILIES.get(family, {})]
    return {"num_hidden_layers": 4, **HEADS, **dict.fromkeys(keys, 6)}


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
    family: str, method: str, folder_of: Callable[[str], Path], in_two_goes: Callable[..., Any],
    calibration: str, tmp_path: Path,
) -> None:  # fmt: skip
    options: dict[str, Any] = {
        "text": calibration, "calibration": calibration, "mend": True, "regional": {"rounds": 1},
        "method": method, "pattern": "experts-2", "out": tmp_path / "out", **SHORT,
    }  # fmt: skip
    dense = folder_of(family)
    whole, run = in_two_goes(
        lambda: secateur.prune(dense, **options), Narrowed, "secateur.pruning.widths.ExpertChoice"
    )
    assert run.lost == whole.lost
    assert run.evaluations[0].perplexity == whole.evaluations[0].perplexity


def stopped_once_chosen(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> None:
    """A run that is killed when it has chosen what goes, and has finished no block."""
    with monkeypatch.context() as patch:
        patch.setattr(Narrowed, "prove", _stop)
        with pytest.raises(KeyboardInterrupt):
            run()


def _stop(*args: Any) -> None:
    raise KeyboardInterrupt


def test_a_choice_outlasts_a_kill_and_is_not_given_up_for_another(
    folder_of: Callable[[str], Path], calibration: str, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    values: dict[str, Any] = {"method": "wanda", "calibration": calibration, **SHORT}

    def prune(pattern: str, **more: Any) -> Any:
        given = {"pattern": pattern, "out": tmp_path / "out", **values, **more}
        return secateur.prune(folder_of("llama"), **given)

    stopped_once_chosen(monkeypatch, lambda: prune("ffn-16"))
    with pytest.raises(RecipeError, match="that were chosen had pattern ffn-16, not ffn-24"):
        prune("ffn-24")
    with monkeypatch.context() as patch:
        patch.setattr(
            "secateur.pruning.widths._importance", lambda *args: pytest.fail("scored again")
        )
        assert prune("ffn-16").lost[0].left == 48
    stopped_once_chosen(monkeypatch, lambda: prune("ffn-16", overwrite=True))
    assert prune("ffn-24", overwrite=True, restart=True).lost[0].left == 40
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# --- stages, and zeros that are there ---


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        (["blocks-2", "blocks-2"], "stage 2: blocks-2 removes 2 of 2 blocks"),
        (["ffn-50%", "ffn-40"], "stage 2: ffn-40 removes 40 of 32 feed-forward channels"),
        (["heads-2", "heads-1", "heads-1"], "stage 3: heads-1 removes 1 of 1 groups of attention"),
        (["ffn-2", "2:4"], "stage 2: groups of 4 do not divide the 62 inputs"),
    ],
)
def test_a_later_stage_is_refused_at_once_by_what_those_before_leave(
    stages: list[str], told: str, folder_of: Callable[[str], Path], calibration: str,
    command: Command, tmp_path: Path,
) -> None:  # fmt: skip
    asked = [{"method": "magnitude", "pattern": pattern} for pattern in stages]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"model": str(folder_of("llama")), "stages": asked}))
    for more in ([], ["--dry-run"]):
        refused = command("prune", "--recipe", recipe, "--out", tmp_path / "out", *more)
        assert refused.status == 2
        assert told in refused.err
        assert ".out" not in refused.err
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_dry_run_plans_a_stage_on_what_those_before_leave(
    folder_of: Callable[[str], Path], command: Command, tmp_path: Path
) -> None:
    stages = [{"method": "magnitude", "pattern": one} for one in ("blocks-1", "ffn-16", "ffn-25%")]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"model": str(folder_of("llama")), "stages": stages}))
    done = command("prune", "--recipe", recipe, "--out", tmp_path / "out", "--dry-run")
    assert done.status == 0, done.err
    assert "blocks-1 (1 of 4 blocks go)" in done.out
    assert "ffn-16 (16 of 64 feed-forward channels of every block go)" in done.out
    assert "ffn-25% (12 of 48 feed-forward channels of every block go)" in done.out


def test_a_run_tells_how_many_a_share_is(
    folder_of: Callable[[str], Path], calibration: str, command: Command, tmp_path: Path
) -> None:
    words = ["prune", folder_of("llama"), "--method", "magnitude", "--out", tmp_path / "out"]
    done = command(*words, "--pattern", "ffn-20%", "--width-multiple", 16)
    told = "ffn-20%: 16 of 64 feed-forward channels are removed in every block: 48 are left"
    assert told in done.err
    assert "removed 16 of 64 feed-forward channels" in done.out
    done = command(*words, "--pattern", "blocks-30%", "--overwrite")
    assert "blocks-30%: blocks " in done.err
    assert "of 4 are removed, counted from 0" in done.err


@pytest.mark.parametrize(
    ("pattern", "method", "lost"),
    [
        ("ffn-16", "magnitude", "mlp.down_proj is 2:4, and will not be any more: columns go"),
        ("ffn-16", "ziplm", "mlp.down_proj is 2:4, and will not be any more: zeros are filled"),
        ("heads-1", "ziplm", "self_attn.o_proj is 2:4, and will not be any more: zeros are"),
        ("heads-1", "magnitude", None),  # of eight places each
        ("blocks-1", "magnitude", None),
    ],
)
def test_groups_of_zeros_that_go_with_structures_are_told_of(
    pattern: str, method: str, lost: str | None, folder_of: Callable[[str], Path],
    calibration: str, tmp_path: Path,
) -> None:  # fmt: skip
    zeros, out = tmp_path / "zeros", tmp_path / "out"
    secateur.prune(folder_of("llama"), method="magnitude", pattern="2:4", out=zeros)
    run = secateur.prune(
        zeros, method=method, pattern=pattern, calibration=calibration, out=out, **SHORT
    )
    told = [line for line in run.stages[0].notices if "will not be any more" in line]
    assert secateur.check(out, pattern="2:4").holds is (lost is None)
    assert len(told) == (lost is not None)
    assert lost is None or lost in told[0]


# --- what is told afterwards ---


def changed_by_one(folder: Path, name: str) -> None:
    """A tensor of a folder, its first number one more."""
    shard = next(path for path in folder.glob("*.safetensors") if name in load_file(path))
    tensors = load_file(shard)
    tensors[name].view(-1)[0] += 1
    save_file(tensors, shard, {"format": "pt"})


def test_a_check_against_the_source_says_what_it_compared(
    folder_of: Callable[[str], Path], calibration: str, command: Command, tmp_path: Path
) -> None:
    dense, out = folder_of("llama"), tmp_path / "out"
    options: dict[str, Any] = {"calibration": calibration, "method": "wanda", **SHORT}
    secateur.prune(dense, pattern="ffn-16", mend=True, regional={"rounds": 1}, out=out, **options)
    done = command("check", out, "--source", dense)
    assert done.status == 0
    told = "compared with the source, bit for bit, but for the matrices, which mending changed: all"
    assert told in done.out
    for name in ("model.layers.1.input_layernorm.weight", "model.embed_tokens.weight"):
        changed_by_one(out, name)
    found = secateur.check(out, source=dense)
    assert set(found.unlike or ()) == {
        "model.layers.1.input_layernorm.weight", "model.embed_tokens.weight"
    }  # fmt: skip
    assert "tensors that are not the source's" in str(found.complaint)
    trained = tmp_path / "trained"
    small = tmp_path / "small"
    secateur.prune(dense, pattern="ffn-16", out=small, **options)
    secateur.recover(
        small, out=trained, train="weights", text=calibration, steps=1, validation=2,
        batch_size=1, **SHORT,
    )  # fmt: skip
    proof = secateur.check(trained, source=dense)
    assert proof.unlike is None
    assert "not compared with the source: it was trained" in str(proof.kept)


def test_mending_that_changes_nothing_says_so(
    folder_of: Callable[[str], Path], calibration: str, tmp_path: Path
) -> None:
    run = secateur.prune(
        folder_of("llama"), method="magnitude", pattern="blocks-1", mend=True, out=tmp_path / "out",
        calibration=calibration, regional={"rounds": 1, "learning_rate": 1e-30}, **SHORT,
    )  # fmt: skip
    assert run.stages[0].notices[-1].startswith("mending changed nothing")


def test_a_comparison_names_the_pairs_that_it_leaves_out(
    folder_of: Callable[[str], Path], calibration: str, command: Command, tmp_path: Path
) -> None:
    done = command(
        "compare", folder_of("llama"), "--methods", "magnitude,shortgpt", "--patterns",
        "blocks-1,heads-1", "--text", calibration, "--calibration", calibration, "--samples", 4,
        "--sequence-length", 32, "--windows", 2, "--out", tmp_path / "table",
    )  # fmt: skip
    assert done.status == 0, done.err
    assert "left out, as they do not go together: shortgpt with heads-1" in done.err


def test_nothing_is_taken_back_where_pruning_cost_nothing() -> None:
    evaluation: Any = Evaluation.model_construct
    record: Any = RecoveryRecord.model_construct
    recovery = record(
        dense=evaluation(perplexity=10.0),
        pruned=evaluation(perplexity=9.0),
        recovered=evaluation(perplexity=9.3),
    )
    assert recovery.damage_removed is None
