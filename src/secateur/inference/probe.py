"""How long a product of one very shape takes on this very GPU, in each form.

    milliseconds = median over rounds of (time of a round / calls in it)

A round calls several copies of the layer in turn, together larger than any cache, because that is
how a model reads its weights: each matrix once per token. It is timed by the GPU's own events. By
default calls are launched one by one, as a model in eager mode launches them, so that what a launch
costs counts; with `graphs` a round is captured once and replayed, which leaves the GPU's own time.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from secateur.inference.forms import FORMS, UnfitError, convert
from secateur.inference.packed_linear import PackedLinear
from secateur.inference.tile import MOST_VECTORS, Tile, candidates
from secateur.inference.timings import Timing

COLD_BYTES = 256_000_000
"""Weights that a round reads at least, several times the caches of today's GPUs."""
MOST_COPIES = 64
ROUNDS = 11


def probe(
    linear: nn.Linear, vectors: Sequence[int], *, graphs: bool = False
) -> tuple[tuple[Timing, ...], dict[int, Tile], tuple[str, ...]]:
    """Times of a layer in all forms, the packed kernel's best tiles, and why a form is missing.

    Args:
        linear: on CUDA, its matrix 2:4.
        vectors: how many vectors to multiply by.
        graphs: leave out what launches cost.
    """
    copies = max(2, min(MOST_COPIES, COLD_BYTES // linear.weight.nbytes + 1))
    measured: dict[str, dict[int, float]] = {}
    tiles: dict[int, Tile] = {}
    notes = []
    for form in FORMS:
        try:
            layers = [convert(copy(linear), form) for _ in range(copies)]
            found = measured.setdefault(form, {})
            for number in vectors:
                x = torch.randn(
                    number, linear.in_features, dtype=linear.weight.dtype,
                    device=linear.weight.device,
                )  # fmt: skip
                if form == "packed" and number <= MOST_VECTORS:
                    tiles[number], found[number] = tune(layers, x, graphs=graphs)
                else:
                    found[number] = milliseconds(layers, x, graphs=graphs)
        except (UnfitError, RuntimeError) as fault:  # a product that the library refuses
            measured.pop(form, None)
            if form == "dense":
                raise
            notes.append(f"{form}: {str(fault).partition(chr(10))[0]}")
    timings = tuple(
        Timing(
            vectors=number,
            dense_ms=measured["dense"][number],
            semi_structured_ms=measured.get("semi-structured", {}).get(number),
            packed_ms=measured.get("packed", {}).get(number),
        )
        for number in vectors
    )
    return timings, tiles, tuple(notes)


def tune(layers: Sequence[nn.Module], x: Tensor, *, graphs: bool = False) -> tuple[Tile, float]:
    """The fastest tile of the packed kernel for this many vectors, and its milliseconds.

    The layers keep it.

    Raises:
        UnfitError: no tile runs.
    """
    found: dict[Tile, float] = {}
    for tile in candidates(len(x)):
        for layer in layers:
            assert isinstance(layer, PackedLinear)
            layer.tiles = {len(x): tile}
        try:
            found[tile] = milliseconds(layers, x, graphs=graphs)
        except Exception:  # a tile too large for this GPU; Triton has many names for that
            continue
    if not found:
        raise UnfitError("no tile of the kernel runs on this GPU")
    best = min(found, key=lambda tile: found[tile])
    for layer in layers:
        layer.tiles = {len(x): best}  # type: ignore[assignment]
    return best, found[best]


@torch.no_grad()
def milliseconds(layers: Sequence[nn.Module], x: Tensor, *, graphs: bool = False) -> float:
    """Median milliseconds of one call, the layers called in turn."""

    def once() -> None:
        for layer in layers:
            layer(x)

    once()  # compiles, chooses algorithms
    torch.cuda.synchronize(x.device)
    run: Callable[[], object] = once
    if graphs:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            once()
        run = graph.replay
    run()
    taken: list[float] = []
    for _ in range(ROUNDS):
        begin, end = _event(), _event()
        begin.record()
        run()
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end) / len(layers))
    return statistics.median(taken)


def copy(linear: nn.Linear) -> nn.Linear:
    """The same layer in memory of its own."""
    made = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
    made.weight = nn.Parameter(linear.weight.detach().clone(), requires_grad=False)
    made.bias = linear.bias
    return made


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
