"""Experts removed, from disk to disk: the choice, and the result against the dense model's code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import secateur
import tiny
from families import EXPERT_FAMILIES
from secateur.blocks.absence import Absences
from secateur.blocks.fewer_experts import find_experts
from secateur.blocks.stream import Stream
from secateur.checkpoint import find_blocks, narrower, open_model, streamed
from secateur.checkpoint.narrower import EXPERTS
from secateur.errors import ModelError, PatternError, RecipeError
from secateur.pruning.device_memory import Sizes, device_bytes
from secateur.pruning.estimate import estimate
from secateur.recipe import Recipe, plan_of
from secateur.record import RunRecord
from secateur.record.narrowed import LostWidth

METHODS = ("frequency", "man", "reap", "replacement")
GROUPED = ("deepseek_v3", "deepseek_v32")
"""Families whose experts lie in two groups here."""


def changes_of(family: str) -> dict[str, Any]:
    """Settings for six experts, or eight in two groups of which a token gets one."""
    number = 8 if family in GROUPED else 6
    keys = [key for key in EXPERTS if key in EXPERT_FAMILIES[family]]
    return {**dict.fromkeys(keys, number), **({"topk_group": 1} if family in GROUPED else {})}


@pytest.fixture
def remove(
    folder_of: Callable[[str], Path], calibration: str, tmp_path: Path
) -> Callable[..., tuple[Path, RunRecord]]:
    """`remove(family, pattern, method, **options)` -> the folder of the result, and its record."""

    def prune(family: str, pattern: str, method: str, **options: Any) -> tuple[Path, RunRecord]:
        out = tmp_path / f"{family}-{method}-{pattern}"
        values = {"calibration": calibration, "samples": 8, "sequence_length": 32, **options}
        run = secateur.prune(folder_of(family), method=method, pattern=pattern, out=out, **values)
        return out, run

    return prune


def lost_by(run: RunRecord) -> LostWidth:
    """What a run of one stage removed of every block."""
    (lost,) = run.lost
    assert isinstance(lost, LostWidth)
    return lost


def gone(lost: LostWidth, block: int) -> list[int]:
    """The numbers of what a block lost; none where it had none."""
    return sorted({*range(lost.of)} - {*lost.kept[block]}) if lost.kept[block] else []


def load(folder: Path) -> PreTrainedModel:
    """What transformers makes of a folder, with no weight missing or left over."""
    model, told = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


class Never(torch.overrides.TorchFunctionMode):
    """The logits of some experts are -inf wherever a router multiplies by its rows."""

    def __init__(self, missing: dict[int, Sequence[int]]) -> None:
        super().__init__()
        self._missing = missing  # address of the rows -> experts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.linear and args[1].data_ptr() in self._missing:
            output[..., list(self._missing[args[1].data_ptr()])] = -torch.inf
        return output


@contextmanager
def silenced(model: PreTrainedModel, lost: LostWidth) -> Iterator[None]:
    """Inside, no router of a dense model picks what its block has lost."""
    missing: dict[int, Sequence[int]] = {}
    for index, block in enumerate(find_blocks(model).modules):
        if (name := find_experts(block)) is None:
            assert not lost.kept[index]
            continue
        places = gone(lost, index)
        outside = [(key, one) for key, one in block.named_parameters() if not key.startswith(name)]
        (rows,) = [one for _, one in outside if one.shape == (lost.of, tiny.WIDTH)]
        missing[rows.data_ptr()] = places
        for key, buffer in block.named_buffers():
            if key.endswith("correction_bias"):
                buffer[..., places] = -torch.inf
        for key, bias in outside:
            if key.endswith("expert_bias"):
                bias[..., places] = -torch.inf
    with ExitStack() as stack:
        stack.enter_context(Never(missing))
        yield


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
@torch.no_grad()
def test_the_result_predicts_what_the_dense_model_does_without_the_experts(
    family: str, remove: Callable[..., Any], folder_of: Callable[[str], Path], tokens: Tensor
) -> None:
    method = METHODS[[*EXPERT_FAMILIES].index(family) % len(METHODS)]
    out, run = remove(family, "experts-2", method)
    lost = lost_by(run)
    assert (lost.unit, lost.lost) == ("experts", 2)
    small = load(out)
    (counts,) = {
        block.get_submodule(name).num_experts
        for block in find_blocks(small).modules
        if (name := find_experts(block)) is not None
    }  # fmt: skip
    assert counts == lost.of - 2
    dense = load(folder_of(family))
    whole = dense(tokens[:4], use_cache=False).logits
    with silenced(dense, lost):
        expected = dense(tokens[:4], use_cache=False).logits
    found = small(tokens[:4], use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    idle = family == "afmoe"  # whose correction sends every token to the same two experts here
    assert idle or (whole - expected).abs().max() > 1e-3
    proof = secateur.check(out, pattern="experts-2", source=folder_of(family))
    assert (proof.complaint, proof.unlike) == (None, ())
    assert small.generate(tokens[:1, :4], max_new_tokens=3, do_sample=False).shape == (1, 7)


@pytest.mark.parametrize("method", METHODS)
def test_every_group_loses_as_many(remove: Callable[..., Any], method: str) -> None:
    _, run = remove("deepseek_v3", "experts-25%", method)
    lost = lost_by(run)
    assert lost.multiple == 2
    assert gone(lost, 0) == []  # a block without experts
    assert [number // 4 for number in gone(lost, 1)] == [0, 1]


@torch.no_grad()
def test_the_least_frequent_go(
    remove: Callable[..., Any], folder_of: Callable[[str], Path], tokens: Tensor
) -> None:
    _, run = remove("mixtral", "experts-3", "frequency")
    model = load(folder_of("mixtral"))
    for index, block in enumerate(find_blocks(model).modules):
        chosen: list[Tensor] = []
        block.mlp.experts.register_forward_pre_hook(lambda _, args, to=chosen: to.append(args[1]))
        model(tokens[:8], use_cache=False)
        counts = torch.bincount(torch.cat(chosen).flatten(), minlength=6)
        assert gone(lost_by(run), index) == sorted(counts.argsort(stable=True)[:3].tolist())


@torch.no_grad()
def test_replacement_takes_the_expert_whose_absence_changes_its_block_least(
    remove: Callable[..., Any], folder_of: Callable[[str], Path], tokens: Tensor
) -> None:
    _, run = remove("gpt_oss", "experts-1", "replacement")
    model = load(folder_of("gpt_oss"))
    for index, block in enumerate(find_blocks(model).modules):
        seen: list[Tensor] = []
        block.mlp.register_forward_hook(lambda _, args, out, to=seen: to.extend([args[0], out[0]]))
        model(tokens[:8], use_cache=False)
        read, dense = seen
        errors = []
        for one in range(6):
            with Never({block.mlp.router.weight.data_ptr(): [one]}):
                errors.append(float((block.mlp(read)[0] - dense).square().sum()))
        assert gone(lost_by(run), index) == [errors.index(min(errors))]


def test_what_cannot_go_is_one_line(remove: Callable[..., Any]) -> None:
    with pytest.raises(PatternError, match="leaves 1 of 6 experts, and 2 see each token; wanted 2"):
        remove("mixtral", "experts-5", "reap")
    with pytest.raises(PatternError, match="removes 1 of 8 experts, which lie in 2 groups"):
        remove("deepseek_v3", "experts-1", "reap")
    with pytest.raises(RecipeError, match="reap does not score blocks"):
        remove("mixtral", "blocks-1", "reap")
    with pytest.raises(RecipeError, match=r"wanda does not score experts.* reap"):
        remove("mixtral", "experts-1", "wanda")


def test_replacement_is_asked_with_so_many_tokens(
    remove: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    begin = Absences.__init__

    def see(absences: Absences, block: Any, index: int, stream: Stream, fewer: Any) -> None:
        asked.append(sum(batch.inputs.numel() for batch in stream.batches))
        begin(absences, block, index, stream, fewer)

    monkeypatch.setattr(Absences, "__init__", see)
    remove("mixtral", "experts-2", "replacement", parameters={"tokens": 100})
    assert asked == [96, 96]  # whole sequences of 32, in each of two blocks


@pytest.mark.parametrize(("tokens", "sequences"), [(100, 3), (10, 1), (4096, 8)])
def test_the_outputs_that_are_looked_up_are_counted(
    tokens: int, sequences: int, folder_of: Callable[[str], Path]
) -> None:
    source = open_model(folder_of("mixtral"), torch.device("cpu"), torch.float32)
    recipe = {"model": "m", "pattern": "experts-1", "calibration": "c", "out": "o"}
    asking = plan_of(
        Recipe.build({**recipe, "method": "replacement", "parameters": {"tokens": tokens}})
    )
    routing = plan_of(Recipe.build({**recipe, "method": "reap"}))
    held = 6 * sequences * 32 * tiny.WIDTH * 4
    with_them, without = (estimate(source, plan, 8, 32) for plan in (asking, routing))
    assert with_them.activation_bytes - without.activation_bytes == held
    sizes = Sizes(8, 32, 4, 0, 2**30, "auto")
    for host in (False, True):
        there, other = (device_bytes(source, one, sizes, host=host) for one in (asking, routing))
        assert there - other == held


def test_a_block_whose_experts_were_mistaken_is_found(
    folder_of: Callable[[str], Path],
    calibration: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The gates of one expert above the up-projection of another."""
    cut = narrower.smaller_tensors

    def mistaken(*args: Any) -> Any:
        places, slices = cut(*args)
        swapped = [name for name in places if "block_sparse_moe.experts.0.w1" in name]
        assert swapped
        for name in swapped:
            other = name.replace("experts.0.", "experts.1.")
            places[name], places[other] = places[other], places[name]
        return places, slices

    monkeypatch.setattr(streamed, "smaller_tensors", mistaken)
    with pytest.raises(ModelError, match="a block without some of its experts is not what it was"):
        secateur.prune(
            folder_of("mixtral"), method="reap", pattern="experts-2", out=tmp_path / "out",
            calibration=calibration, samples=8, sequence_length=32,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()
