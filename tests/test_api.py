"""The library: folders and models in memory are pruned alike; what comes back, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import secateur
from secateur import methods
from secateur.checkpoint import find_blocks
from secateur.errors import (
    DataError,
    NumericalError,
    OutputError,
    PatternError,
    RecipeError,
    SecateurError,
)
from secateur.progress import Quiet
from secateur.record import RunRecord
from tiny import BLOCKS, FAMILIES, fingerprint, make_model, make_tokenizer

Save = Callable[..., Path]
SHORT: dict[str, Any] = {"sequence_length": 32, "samples": 8}


def brief(method: str) -> dict[str, Any]:
    """Options that keep a method's run short."""
    regional = methods.get(method).refine is methods.Refine.REGIONAL
    return {**SHORT, "regional": {"rounds": 1, "samples": 4}} if regional else SHORT


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names of the weights that are not the same bit for bit."""
    assert a.keys() == b.keys()
    same = {n: a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a}
    return [name for name in a if not same[name]]


# --- a folder and a model in memory ---


@pytest.mark.parametrize("method", ["magnitude", "wanda", "wanda++"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folder_and_memory_give_the_same_weights(
    save: Save,
    tokens: Tensor,
    tokens_file: Path,
    tmp_path: Path,
    method: str,
    dtype: torch.dtype,
) -> None:
    model = make_model("llama", dtype=dtype)
    folder, options = save(model), brief(method)
    out = tmp_path / "out"
    on_disk = secateur.prune(folder, method=method, calibration=tokens_file, out=out, **options)
    in_memory = secateur.prune(model, method=method, calibration=tokens, **options)
    written = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert differing(weights(written), weights(model)) == []
    assert on_disk.blocks[-1].output_error == in_memory.blocks[-1].output_error
    assert on_disk.sparsity == in_memory.sparsity == 0.5
    assert (on_disk.streamed, in_memory.streamed) == (True, False)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_in_memory_keeps_all_but_its_zeros(family: str, tokens: Tensor) -> None:
    model = make_model(family, dtype=torch.bfloat16)
    model.train()
    frozen = next(iter(model.parameters())).requires_grad_(False)
    before, dense = {n: (p.dtype, p.requires_grad) for n, p in model.named_parameters()}, None
    objects, dense = [id(p) for p in model.parameters()], weights(model)
    secateur.prune(model, method="wanda", calibration=tokens, **SHORT)
    assert {n: (p.dtype, p.requires_grad) for n, p in model.named_parameters()} == before
    assert [id(p) for p in model.parameters()] == objects
    assert not frozen.requires_grad
    assert model.training
    assert all(module.training for module in model.modules())
    for name, after in weights(model).items():
        assert torch.equal(after, torch.where(after == 0, after, dense[name])), name
    for module in model.modules():
        assert "forward" not in module.__dict__
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
    model(tokens).logits.sum().backward()


@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
@pytest.mark.parametrize("where", ["folder", "memory"])
def test_computing_in_less_precision_does_not_round_what_is_kept(
    save: Save, tokens: Tensor, tokens_file: Path, tmp_path: Path, where: str, compute: str
) -> None:
    model = make_model("llama", dtype=torch.float32)
    dense = weights(model)
    options = {**SHORT, "method": "wanda", "dtype": compute}
    if where == "folder":
        secateur.prune(save(model), calibration=tokens_file, out=tmp_path / "out", **options)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    else:
        secateur.prune(model, calibration=tokens, **options)
    for name, after in weights(model).items():
        assert after.dtype == torch.float32
        assert torch.equal(after, torch.where(after == 0, after, dense[name])), name


@pytest.mark.parametrize("method", ["wanda", "wanda++"])
def test_gradients_may_be_off_around_it(tokens: Tensor, method: str) -> None:
    models = [make_model("llama") for _ in range(2)]
    for model, on in zip(models, (True, False), strict=True):
        with torch.set_grad_enabled(on):
            secateur.prune(model, method=method, calibration=tokens, **brief(method))
    assert differing(*map(weights, models)) == []


def test_a_hook_of_the_users_own_stays_and_is_called(tokens: Tensor) -> None:
    model, calls = make_model("llama"), []
    block = find_blocks(model).modules[1]
    handle = block.mlp.register_forward_hook(lambda *_: calls.append(1))
    secateur.prune(model, method="wanda", calibration=tokens, **SHORT)
    assert calls
    assert len(block.mlp._forward_hooks) == 1
    handle.remove()


# --- calibration ---


def test_calibration_by_tensor_is_recorded(tokens: Tensor) -> None:
    run = secateur.prune(make_model("llama"), method="wanda", calibration=tokens, **SHORT)
    assert run.calibration is not None
    assert (run.calibration.sequences, run.calibration.sequence_length) == tuple(tokens.shape)
    assert run.calibration.sampling == "given"
    assert run.notices == ()
    assert run.recipe["calibration"] == "tokens in memory"


def test_texts_with_a_model_in_memory(text_folder: Path) -> None:
    options = {**SHORT, "method": "wanda", "calibration": text_folder}
    run = secateur.prune(make_model("llama"), tokenizer=make_tokenizer(), **options)
    assert run.calibration is not None
    assert run.calibration.source == str(text_folder)
    with pytest.raises(DataError, match="tokenizer"):
        secateur.prune(make_model("llama"), **options)


def test_the_seed_is_all_that_is_random(text_folder: Path) -> None:
    def pruned(seed: int) -> dict[str, Tensor]:
        model = make_model("llama")
        options = {**brief("wanda++"), "calibration": text_folder, "seed": seed}
        torch.manual_seed(torch.seed())
        secateur.prune(model, tokenizer=make_tokenizer(), **options)
        return weights(model)

    assert differing(pruned(0), pruned(0)) == []
    assert differing(pruned(0), pruned(1)) != []


def test_batches_do_not_matter_to_a_mask(tokens: Tensor) -> None:
    models = [make_model("llama") for _ in range(2)]
    for model, size in zip(models, (1, 8), strict=True):
        secateur.prune(model, method="wanda", calibration=tokens, batch_size=size, **SHORT)
    zeros = [{n: w == 0 for n, w in weights(model).items()} for model in models]
    assert differing(*zeros) == []


# --- what comes back ---


def test_the_record_is_what_run_json_holds(
    llama_folder: Path, tokens_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = secateur.prune(llama_folder, method="wanda", calibration=tokens_file, out=out, **SHORT)
    assert isinstance(run, secateur.RunRecord)
    assert RunRecord.model_validate_json((out / "run.json").read_bytes()) == run
    assert json.loads((out / "run.json").read_text())["format"] == "secateur/run/2"
    assert run.mean_output_error == pytest.approx(
        sum(block.output_error or 0 for block in run.blocks) / BLOCKS
    )
    assert run.zeros * 2 == run.weights


def test_a_ratio_may_be_a_number(tokens: Tensor) -> None:
    run = secateur.prune(make_model("llama"), method="magnitude", pattern=0.25)
    assert run.sparsity == pytest.approx(0.25, abs=0.01)
    assert run.calibration is None
    assert run.mean_output_error is None


class Listener(Quiet):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __enter__(self) -> Listener:
        self.told.append("enter")
        return self

    def __exit__(self, *_: object) -> None:
        self.told.append("exit")

    def begin(self, what: str, total: int) -> None:
        self.told.append(f"begin {what} {total}")

    def tick(self, phase: str, done: int, total: int) -> None:
        assert 0 <= done < total
        self.told.append(phase)

    def block(self, **facts: Any) -> None:
        self.told.append(f"block {facts['block']}")

    def notice(self, text: str) -> None:
        self.told.append(f"notice {text}")


@pytest.mark.parametrize("where", ["folder", "memory"])
def test_progress_is_told_in_order(
    llama_folder: Path, tokens: Tensor, tokens_file: Path, tmp_path: Path, where: str
) -> None:
    listener = Listener()
    options = {**brief("wanda++"), "samples": 9, "progress": listener}
    if where == "folder":
        secateur.prune(llama_folder, calibration=tokens_file, out=tmp_path / "out", **options)
    else:
        secateur.prune(make_model("llama"), calibration=tokens, **options)
    told = listener.told
    assert (told[0], told[-1]) == ("enter", "exit")
    assert f"begin wanda++ 2:4 {BLOCKS}" in told
    assert [line for line in told if line.startswith("block")] == ["block 0", "block 1", "block 2"]
    assert sum(line.startswith("notice") for line in told) == 1  # 8 sequences, not 9
    for phase in ("observe", "optimise", "propagate"):
        assert told.count(phase) == BLOCKS


# --- what is refused ---


def test_refusals_of_a_model_in_memory_change_nothing(tokens: Tensor, tmp_path: Path) -> None:
    model = make_model("llama")
    dense = weights(model)
    for error, said, options in [
        (RecipeError, "pruned in place", {"out": tmp_path / "out", "calibration": tokens}),
        (RecipeError, "needs calibration", {}),
        (RecipeError, "unknown key 'sampels'", {"sampels": 3, "calibration": tokens}),
        (RecipeError, "did you mean 'wanda'", {"method": "wnada", "calibration": tokens}),
        (PatternError, "do not divide the 32", {"pattern": "3:7", "calibration": tokens}),
        (RecipeError, "keeps 4 of 2", {"pattern": "4:2", "calibration": tokens}),
        (RecipeError, "is not there", {"device": "cuda:77", "calibration": tokens}),
        (DataError, "0 to 127", {"calibration": tokens + 100}),
        (DataError, "integer", {"calibration": tokens.float()}),
        (DataError, "shape", {"calibration": tokens[0]}),
        (DataError, "shape", {"calibration": tokens[:0]}),
        (DataError, "none.txt", {"calibration": "none.txt", "tokenizer": make_tokenizer()}),
    ]:
        given: dict[str, Any] = {"method": "wanda", **SHORT, **cast("dict[str, Any]", options)}
        with pytest.raises(error, match=said) as caught:
            secateur.prune(model, **given)
        assert isinstance(caught.value, SecateurError)
        assert "\n" not in str(caught.value)
    assert differing(weights(model), dense) == []
    assert list(tmp_path.iterdir()) == []


def test_refusals_of_a_folder(
    llama_folder: Path, tokens: Tensor, tokens_file: Path, tmp_path: Path
) -> None:
    def refused(error: type[SecateurError], said: str, **options: Any) -> None:
        given = {"method": "wanda", "calibration": tokens_file, "out": tmp_path / "out", **SHORT}
        with pytest.raises(error, match=said):
            secateur.prune(llama_folder, **{**given, **options})

    before = fingerprint(llama_folder)
    refused(RecipeError, "token ids in memory go with a model in memory", calibration=tokens)
    refused(RecipeError, "no folder for the result", out=None)
    refused(OutputError, "is the model itself", out=llama_folder, overwrite=True)
    refused(RecipeError, "needs calibration", calibration=None)
    assert list(tmp_path.iterdir()) == []
    assert fingerprint(llama_folder) == before


def test_a_failure_in_the_middle_gives_the_model_back_in_order(tokens: Tensor) -> None:
    model = make_model("llama", dtype=torch.bfloat16).train()
    find_blocks(model).modules[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(NumericalError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        secateur.prune(model, method="wanda", calibration=tokens, **SHORT)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())
    assert all("forward" not in module.__dict__ for module in model.modules())
