"""Full-model gradients block by block, and what GBLM makes of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import secateur
from secateur.blocks.full_gradients import UpAndDown, full_gradients
from secateur.blocks.stream import Stream
from secateur.checkpoint import ResidentModel, find_matrices
from secateur.checkpoint.gradient_store import GradientFile
from secateur.errors import CheckpointError, NumericalError, RecipeError
from tiny import EVERY_FAMILY, FAMILIES, make_model, make_tokens, save

FACTS = {"aggregate": "l2"}


def block_by_block(
    model: Any,
    input_ids: Tensor,
    path: Any,
    order: Literal["l1", "l2"] = "l2",
    keep: Literal["auto", "memory", "disk"] = "memory",
    batch_size: int = 2,
) -> Any:
    source = ResidentModel(model, torch.device("cpu"), torch.float32)
    stream = Stream(source, input_ids, batch_size)
    first = [batch.hidden.clone() for batch in stream.batches]
    with GradientFile.create(path, FACTS, one_file=True) as file:
        full_gradients(source, stream, file, order, UpAndDown(path.parent, keep))
    for before, batch in zip(first, stream.batches, strict=True):
        assert torch.equal(before, batch.hidden)  # ready for the sweep
    return GradientFile(path)


def by_whole_model(model: Any, input_ids: Tensor, order: str) -> Any:
    """One loss.backward() per sequence on the whole model."""
    model.requires_grad_(True)
    sums = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for row in input_ids:
        model.zero_grad()
        model(input_ids=row[None], labels=row[None]).loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:  # an encoder of images has none
                sums[name] += parameter.grad.abs() if order == "l1" else parameter.grad.square()
    model.requires_grad_(False)
    return sums if order == "l1" else {name: value.sqrt() for name, value in sums.items()}


def assert_same_gradients(model: Any, file: Any, expected: Any) -> None:
    source = ResidentModel(model, torch.device("cpu"), torch.float32)
    for index, block in enumerate(source.blocks.modules):
        for matrix in find_matrices(block):
            name = source.blocks.prefix(index) + matrix.name
            whole = expected[source.blocks.prefix(index) + matrix.parameter]
            wanted = matrix.as_stored(whole if matrix.expert is None else whole[matrix.expert])
            torch.testing.assert_close(file.read(name), wanted, rtol=2e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize(
    ("family", "tied"), [*((f, False) for f in EVERY_FAMILY), *((f, True) for f in FAMILIES)]
)
def test_equal_to_backward_through_the_whole_model(family: str, tied: bool, tmp_path: Path) -> None:
    model, input_ids = make_model(family, tie_word_embeddings=tied), make_tokens(5, 16)
    file = block_by_block(model, input_ids, tmp_path / "g.safetensors")
    assert_same_gradients(model, file, by_whole_model(model, input_ids, "l2"))


@pytest.mark.parametrize("keep", ["memory", "disk", "auto"])
@pytest.mark.parametrize("order", ["l1", "l2"])
def test_aggregates_and_places_to_keep_block_inputs(
    order: Literal["l1", "l2"], keep: Literal["auto", "memory", "disk"], tmp_path: Path
) -> None:
    model, input_ids = make_model("llama"), make_tokens(5, 16)
    file = block_by_block(model, input_ids, tmp_path / "g.safetensors", order, keep)
    assert_same_gradients(model, file, by_whole_model(model, input_ids, order))
    assert [path.name for path in tmp_path.iterdir()] == ["g.safetensors"]  # scratch is gone


def test_only_one_block_is_real_at_a_time(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streamed from disk, every block is opened once per direction and let go before the next."""
    from secateur.checkpoint import open_model

    source = open_model(llama_folder, torch.device("cpu"), torch.float32)
    opened, most = [], []
    original = type(source).open_block

    def counting(self: Any, index: int) -> Any:
        real = [
            i for i, block in enumerate(self.blocks.modules)
            if any(p.device.type != "meta" for p in block.parameters())
        ]  # fmt: skip
        most.append(len(real))
        opened.append(index)
        return original(self, index)

    monkeypatch.setattr(type(source), "open_block", counting)
    stream = Stream(source, make_tokens(4, 16), 2)
    with GradientFile.create(tmp_path / "g", FACTS) as file:
        full_gradients(source, stream, file, "l2", UpAndDown(tmp_path, "disk"))
    assert opened == [0, 1, 2, 2, 1, 0]
    assert max(most) == 0


def test_a_loss_that_is_not_finite_is_named_and_leaves_no_file(tmp_path: Path) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    with pytest.raises(NumericalError, match="loss is not finite in calibration sequence 0"):
        block_by_block(model, make_tokens(2, 16), tmp_path / "g.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pattern", ["2:4", "50%"])
def test_without_its_gradient_gblm_is_wanda_bit_for_bit(pattern: Any, tokens: Tensor) -> None:
    pruned = []
    for method, parameters in (("wanda", {}), ("gblm", {"alpha": 0})):
        model = make_model("llama")
        secateur.prune(model, method=method, pattern=pattern, calibration=tokens,
                       parameters=parameters)  # fmt: skip
        pruned.append(model.state_dict())
    assert all(torch.equal(pruned[0][name], pruned[1][name]) for name in pruned[0])


def test_the_score_is_scaled_as_in_the_papers_script(tokens: Tensor, tmp_path: Path) -> None:
    """abs(W) * (100 * sqrt(sum g**2) + sqrt(mean over sequences of norm2(X)**2)), block 0.

    That is so at the paper's size; `alpha` of as many tokens as there are here says the same.
    """
    dense = make_model("llama")
    gradients = by_whole_model(dense, tokens, "l2")
    block = dense.model.layers[0]
    with torch.no_grad():
        inputs = block.input_layernorm(dense.model.embed_tokens(tokens))  # [sequences, T, in]
    norm = inputs.square().sum(1).mean(0).sqrt()  # [in]
    name = "model.layers.0.self_attn.q_proj.weight"
    weight = dense.get_parameter(name).detach()
    score = weight.abs() * (100 * gradients[name] + norm)
    least = score.view(-1, 4).argsort(1)[:, :2]
    expected = torch.ones_like(score.view(-1, 4)).scatter_(1, least, 0).view_as(weight).bool()
    model = make_model("llama")
    sequences, length = tokens.shape
    alpha = 100 * math.sqrt(sequences / 128) * 2048 / length
    secateur.prune(model, method="gblm", calibration=tokens, parameters={"alpha": alpha})
    assert torch.equal(model.get_parameter(name) != 0, expected)


@pytest.fixture
def saved(
    llama_folder: Path, tokens_file: Path, tmp_path: Path
) -> tuple[dict[str, Any], Path, Path]:
    """(options, gradients file, folder pruned while it was made)."""
    options: dict[str, Any] = {
        "method": "gblm",
        "calibration": str(tokens_file),
        "samples": 8,
        "sequence_length": 32,
    }
    path = tmp_path / "gradients.safetensors"
    secateur.prune(llama_folder, out=tmp_path / "first", save_gradients=str(path), **options)
    return options, path, tmp_path / "first"


def test_kept_gradients_serve_again(
    saved: tuple[dict[str, Any], Path, Path], llama_folder: Path, tmp_path: Path
) -> None:
    options, path, first = saved
    secateur.prune(llama_folder, out=tmp_path / "again", gradients=str(path), **options)
    one, two = (AutoModelForCausalLM.from_pretrained(f) for f in (first, tmp_path / "again"))
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    run = secateur.prune(
        llama_folder, out=tmp_path / "other", gradients=str(path), pattern="30%", **options
    )
    assert run.sparsity == pytest.approx(0.3, abs=0.02)  # rows of 32 and 64: rounded down


def test_gradients_of_something_else_are_refused(
    saved: tuple[dict[str, Any], Path, Path], llama_folder: Path, tmp_path: Path
) -> None:
    options, path, _ = saved
    other = save(make_model("llama", seed=9, dtype=torch.bfloat16), tmp_path / "other-model")
    longer = save(make_model("llama", num_hidden_layers=4), tmp_path / "longer")
    cases = [
        (llama_folder, {"samples": 4}, RecipeError, "the gradients have tokens"),
        (llama_folder, {"parameters": {"aggregate": "l1"}}, RecipeError, "have aggregate 'l2'"),
        (other, {}, RecipeError, "the gradients have weights"),
        (longer, {}, CheckpointError, "not the gradients of this model"),
        (llama_folder, {"gradients": "nowhere"}, CheckpointError, "no such file of gradients"),
        (llama_folder, {"method": "wanda"}, RecipeError, "wanda uses no full-model gradients"),
        (llama_folder, {"save_gradients": "x"}, RecipeError, "leave save_gradients out"),
    ]
    changes: Any
    for model, changes, kind, message in cases:
        with pytest.raises(kind, match=message):
            secateur.prune(
                model, out=tmp_path / "no", **{"gradients": str(path), **options, **changes}
            )
        assert not (tmp_path / "no").exists()


def test_sparsegpt_factorises_once_for_q_k_and_v(
    tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four distinct inputs in a Llama block: four Hessians and four solves, not seven."""
    from secateur.methods import sparsegpt
    from secateur.statistics import Hessian

    made, factorised = [], []
    start, factor = Hessian.__init__, sparsegpt.upper_factor
    monkeypatch.setattr(Hessian, "__init__", lambda self, *a: (made.append(a), start(self, *a))[1])
    monkeypatch.setattr(sparsegpt, "upper_factor", lambda *a: (factorised.append(1), factor(*a))[1])
    secateur.prune(make_model("llama"), method="sparsegpt", calibration=tokens)
    assert len(made) == len(factorised) == 3 * 4
