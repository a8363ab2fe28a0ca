"""2:4 at work: which layers take which form, and that the product is theirs in every form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import secateur
from secateur.errors import ModelError, PatternError, RecipeError
from secateur.inference import PackedLinear, Timing, accelerate, forms, probe
from secateur.inference.forms import UnfitError, convert
from secateur.inference.layers import matrix_bytes, two_of_four
from secateur.inference.tile import Tile, candidates
from secateur.inference.timings import choose
from secateur.sparsity import NofM, keep_mask
from tiny import BLOCKS, make_model, make_tokens

PATTERN = NofM(2, 4)


def sparse_linear(
    rows: int, columns: int, bias: bool = True, dtype: torch.dtype = torch.float32
) -> nn.Linear:
    """A random linear layer whose matrix is 2:4."""
    torch.manual_seed(rows * columns)
    linear = nn.Linear(columns, rows, bias=bias, dtype=dtype)
    with torch.no_grad():
        linear.weight.mul_(keep_mask(linear.weight.abs(), PATTERN))
    return linear


@pytest.fixture
def pruned() -> PreTrainedModel:
    """The tiny Llama, 2:4."""
    model = make_model("llama")
    secateur.prune(model, method="magnitude", pattern="2:4", out=None)
    return model


# --- the packed layer ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(8, 16), (5, 12), (1, 4), (7, 36)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_is_the_dense_one(
    dtype: torch.dtype, shape: tuple[int, int], bias: bool
) -> None:
    linear = sparse_linear(*shape, bias, dtype)
    packed = PackedLinear.from_linear(linear)
    assert torch.equal(packed.weight, linear.weight + 0.0)
    for leading in ((), (3,), (2, 3)):
        x = torch.randn(*leading, shape[1], dtype=dtype)
        assert torch.equal(packed(x), linear(x))


def test_a_packed_layer_takes_56_percent_in_16_bits() -> None:
    linear = sparse_linear(64, 128, dtype=torch.bfloat16)
    assert matrix_bytes(PackedLinear.from_linear(linear)) == 0.5625 * matrix_bytes(linear)


def test_a_zero_with_a_sign_needs_no_place() -> None:
    linear = sparse_linear(4, 8)
    with torch.no_grad():
        linear.weight[linear.weight == 0] = -0.0
    assert torch.equal(PackedLinear.from_linear(linear).weight, linear.weight + 0.0)


def test_a_packed_layer_refuses_what_is_not_2_of_4() -> None:
    with pytest.raises(PatternError, match="more than 2"):
        PackedLinear.from_linear(nn.Linear(8, 4))
    packed = PackedLinear.from_linear(sparse_linear(4, 8))
    with pytest.raises(PatternError, match="do not keep 2"):
        PackedLinear(packed.values, packed.mask | 15)


def test_a_packed_layer_is_saved_and_loaded() -> None:
    one = PackedLinear.from_linear(sparse_linear(4, 8))
    other = PackedLinear.from_linear(sparse_linear(4, 8, dtype=torch.float32))
    with torch.no_grad():
        other.values.zero_()
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.weight, one.weight)


def test_the_tile_of_the_next_larger_measured_number() -> None:
    small, large = Tile(4, 8), Tile(16, 8, dot=True)
    packed = PackedLinear.from_linear(sparse_linear(4, 8))
    assert packed.tile_for(3) == candidates(3)[0]
    packed.tiles = {4: small, 16: large}
    assert [packed.tile_for(number) for number in (1, 4, 5, 16)] == [small, small, large, large]
    assert packed.tile_for(17) == candidates(17)[0]


# --- forms that cannot be taken ---


def test_semi_structured_says_why_it_cannot() -> None:
    with pytest.raises(UnfitError, match="no sparse tensor core for float32"):
        convert(sparse_linear(32, 64), "semi-structured")
    with pytest.raises(UnfitError, match=r"(?i)cuda"):
        convert(sparse_linear(32, 64, dtype=torch.bfloat16), "semi-structured")


def test_packed_says_why_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnfitError, match="needs CUDA"):
        convert(sparse_linear(4, 8), "packed")
    monkeypatch.setattr(forms, "kernel_runs", lambda *_: True)
    assert isinstance(convert(sparse_linear(4, 8), "packed"), PackedLinear)


# --- the choice ---

WIN = 1 / 1.5


@pytest.mark.parametrize(
    ("timings", "chosen"),
    [
        ([(1, 1.0, None, None)], "dense"),
        ([(1, 1.0, 1.0, 1.0)], "dense"),  # a tie
        ([(1, 1.0, 0.98, 0.99)], "dense"),  # noise
        ([(1, 1.0, 2.0, 1.5)], "dense"),
        ([(1, 1.0, WIN, None)], "semi-structured"),
        ([(1, 1.0, None, WIN)], "packed"),
        ([(1, 1.0, WIN, WIN / 2)], "packed"),
        ([(1, 1.0, WIN / 2, WIN)], "semi-structured"),
        ([(1, 1.0, 1.2, 0.5), (16, 1.0, 0.9, 1.1)], "dense"),  # each loses once
        ([(1, 1.0, 1.02, 0.5), (16, 1.0, 0.5, 1.1)], "semi-structured"),
        ([(1, 1.0, None, 0.5), (16, 1.0, None, None)], "dense"),  # not measured everywhere
        ([(1, 1.0, None, 0.5), (16, 1.0, None, 1.0)], "packed"),
        ([], "dense"),
    ],
)
def test_the_choice(timings: list[tuple[Any, ...]], chosen: str) -> None:
    names = ("vectors", "dense_ms", "semi_structured_ms", "packed_ms")
    given = [Timing(**dict(zip(names, timing, strict=True))) for timing in timings]
    assert choose(given) == chosen


def taking(milliseconds: dict[str, float]) -> Callable[..., float]:
    """A clock that knows how long each kind of layer takes, and slows down with rows of a tile."""

    def clock(layers: Sequence[nn.Module], x: Tensor, *, graphs: bool = False) -> float:
        assert all(layer(x).shape == (len(x), layers[0].out_features) for layer in layers)
        (layer, *_) = layers
        if isinstance(layer, PackedLinear):
            tile = layer.tile_for(len(x))
            if tile.rows == 4:
                raise MemoryError("this tile is too large")
            return milliseconds["packed"] + tile.rows + tile.splits
        return milliseconds["dense"]

    return clock


def test_the_probe_measures_every_form_and_finds_the_best_tile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forms, "kernel_runs", lambda *_: True)
    monkeypatch.setattr(probe, "milliseconds", taking({"dense": 20.0, "packed": 1.0}))
    timings, tiles, notes = probe.probe(sparse_linear(8, 16), (1, 16, 100))
    assert [timing.vectors for timing in timings] == [1, 16, 100]
    assert {timing.dense_ms for timing in timings} == {20.0}
    assert {timing.semi_structured_ms for timing in timings} == {None}
    assert [note.partition(":")[0] for note in notes] == ["semi-structured"]
    running = {n: [tile for tile in candidates(n) if tile.rows != 4] for n in (1, 16)}
    best = {n: min(t, key=lambda tile: tile.rows + tile.splits) for n, t in running.items()}
    assert tiles == best  # 100 vectors are unpacked, and have no tile
    assert timings[0].packed_ms == 1.0 + best[1].rows + best[1].splits


def test_a_kernel_that_never_runs_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def clock(layers: Sequence[nn.Module], x: Tensor, *, graphs: bool = False) -> float:
        if isinstance(layers[0], PackedLinear):
            raise ValueError("shared memory")
        return 1.0

    monkeypatch.setattr(forms, "kernel_runs", lambda *_: True)
    monkeypatch.setattr(probe, "milliseconds", clock)
    timings, tiles, notes = probe.probe(sparse_linear(8, 16), (1,))
    assert timings == (Timing(vectors=1, dense_ms=1.0),)
    assert tiles == {}
    assert notes[1] == "packed: no tile of the kernel runs on this GPU"


# --- the model ---


def test_two_of_four_finds_what_can_run_sparse(pruned: PreTrainedModel) -> None:
    found = {name for layers in two_of_four(pruned).values() for name in layers}
    every = {name for name, module in pruned.named_modules() if type(module) is nn.Linear}
    assert found == every - {"lm_head"}
    first = pruned.model.layers[0]
    first.mlp.up_proj.weight.data.fill_(1.0)  # dense
    first.self_attn.q_proj.register_forward_hook(lambda *_: None)
    first.self_attn.v_proj.weight = first.self_attn.k_proj.weight  # shared
    left = {name for layers in two_of_four(pruned).values() for name in layers}
    inner = {"mlp.up_proj", "self_attn.q_proj", "self_attn.v_proj", "self_attn.k_proj"}
    assert found - left == {f"model.layers.0.{name}" for name in inner}


def test_a_model_without_2_of_4_is_refused() -> None:
    with pytest.raises(ModelError, match="no linear layer has a 2:4 matrix") as refused:
        secateur.accelerate_inference(make_model("llama"))
    assert "try secateur prune --pattern 2:4" in str(refused.value)


@pytest.mark.parametrize("vectors", [(), (0,), (1, -1)])
def test_numbers_of_vectors_are_checked(vectors: tuple[int, ...], pruned: PreTrainedModel) -> None:
    with pytest.raises(RecipeError, match="vectors="):
        secateur.accelerate_inference(pruned, vectors=vectors)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_cuda_nothing_is_changed_and_it_says_why(pruned: PreTrainedModel) -> None:
    before = dict(pruned.named_modules())
    report = secateur.accelerate_inference(pruned)
    assert dict(pruned.named_modules()) == before
    assert report.reason == "nothing was changed: a CPU gains nothing from 2:4 today"
    assert (report.device, report.changed, report.matrices) == ("cpu", 0, 7 * BLOCKS)
    assert report.bytes_before == report.bytes_after > 0
    assert sum(shape.matrices for shape in report.shapes) == 7 * BLOCKS
    assert {shape.chosen for shape in report.shapes} == {"dense"}
    assert {shape.timings for shape in report.shapes} == {()}
    with pytest.raises(ValueError, match="frozen"):
        report.changed = 3  # type: ignore[misc]


def test_where_the_probe_says_so_layers_are_replaced(
    pruned: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def wide_ones_win(linear: nn.Linear, vectors: Sequence[int], *, graphs: bool) -> Any:
        asked.append((linear.out_features, linear.in_features))
        took = 0.5 if linear.out_features == 64 else 2.0
        timing = Timing(vectors=1, dense_ms=1.0, packed_ms=took)
        return (timing,), {1: Tile(4, 8)}, ("semi-structured: not here",)

    tokens = make_tokens(2, 8)
    wanted = pruned(tokens).logits
    monkeypatch.setattr(forms, "kernel_runs", lambda *_: True)
    monkeypatch.setattr(accelerate, "unable", lambda devices: None)
    monkeypatch.setattr(accelerate, "probe", wide_ones_win)
    report = secateur.accelerate_inference(pruned)
    assert len(asked) == len(set(asked)) == len(report.shapes)  # once for each shape
    packed = {name for name, layer in pruned.named_modules() if isinstance(layer, PackedLinear)}
    assert packed == {
        f"model.layers.{block}.mlp.{name}" for block in range(BLOCKS)
        for name in ("gate_proj", "up_proj")
    }  # fmt: skip
    assert pruned.model.layers[0].mlp.up_proj.tiles == {1: Tile(4, 8)}
    assert torch.equal(pruned(tokens).logits, wanted)
    assert report.changed == 2 * BLOCKS
    assert report.reason == f"{2 * BLOCKS} of {7 * BLOCKS} 2:4 matrices run sparse"
    assert report.bytes_after < report.bytes_before
    assert {shape.notes for shape in report.shapes} == {("semi-structured: not here",)}

    modules = dict(pruned.named_modules())
    assert secateur.accelerate_inference(pruned, vectors=(64,)) == report
    assert dict(pruned.named_modules()) == modules
    assert len(asked) == len(report.shapes)
