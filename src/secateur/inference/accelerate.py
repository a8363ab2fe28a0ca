"""`accelerate_inference`: 2:4 matrices take the form that is measured to be fastest, or stay dense.

On CUDA every linear layer whose matrix is exactly 2:4 (counted, not believed) is probed by shape,
and replaced where a sparse form wins. On a CPU nothing gains from 2:4 today: nothing is changed,
and the report says so. Modules are replaced in the model in memory alone; no file is touched.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from secateur.errors import RecipeError
from secateur.inference.layers import matrix_bytes, replace, two_of_four
from secateur.inference.probe import probe
from secateur.inference.timings import InferenceReport, ShapeReport, choose

VECTORS = (1, 4, 16)
"""Numbers of vectors that are probed by default: decoding of 1, 4 and 16 sequences at once."""
NO_GAIN = "a CPU gains nothing from 2:4 today"
_REMEMBERED = "_secateur_inference"
"""Attribute of a model that keeps the report of what was done to it."""


def accelerate_inference(
    model: nn.Module, *, vectors: Sequence[int] = VECTORS, cuda_graphs: bool = False
) -> InferenceReport:
    """Let the 2:4 matrices of a model in memory run in the form that a probe finds fastest.

    A second call changes nothing and returns the first one's report. What was replaced takes no
    gradient, and is not to be saved: the model's folder stays as it was.

    Args:
        model: on the device that it is to run on; changed in place.
        vectors: how many vectors its matrices will be multiplied by: sequences in decoding, tokens
            in all for prompts. A form that is slower at one of them is not taken.
        cuda_graphs: probe without what launches cost, for models run by CUDA graphs.

    Returns:
        times and choice by shape.

    Raises:
        ModelError: no linear layer has a 2:4 matrix.
        RecipeError: `vectors` is empty or has a number below 1.

    >>> model = secateur.load("pruned")
    >>> secateur.accelerate_inference(model).changed  # layers; on CUDA those that gain by it
    0
    """
    if not vectors or min(vectors) < 1:
        raise RecipeError(f"vectors={tuple(vectors)}", wanted="numbers of at least 1")
    earlier = getattr(model, _REMEMBERED, None)
    if isinstance(earlier, InferenceReport):
        return earlier
    by_shape = two_of_four(model)
    why_not = unable([device for _, _, _, device in by_shape])
    shapes, after = [], 0
    for (rows, columns, dtype, _), layers in by_shape.items():
        timings, tiles, notes = (
            ((), {}, ())
            if why_not
            else probe(next(iter(layers.values())), vectors, graphs=cuda_graphs)
        )
        chosen = choose(timings)
        after += replace(model, layers, chosen, tiles)
        shapes.append(
            ShapeReport(
                rows=rows, columns=columns, dtype=str(dtype).removeprefix("torch."),
                matrices=len(layers), timings=timings, chosen=chosen, notes=notes,
            )
        )  # fmt: skip
    every = [layer for layers in by_shape.values() for layer in layers.values()]
    changed = sum(shape.matrices for shape in shapes if shape.chosen != "dense")
    no_win = f"nothing was changed: {why_not or 'no sparse form wins over dense here'}"
    report = InferenceReport(
        device=", ".join(sorted({str(layer.weight.device) for layer in every})),
        reason=f"{changed} of {len(every)} 2:4 matrices run sparse" if changed else no_win,
        matrices=len(every),
        changed=changed,
        bytes_before=sum(map(matrix_bytes, every)),
        bytes_after=after,
        shapes=tuple(shapes),
    )
    if not why_not:
        setattr(model, _REMEMBERED, report)
    return report


def unable(devices: Sequence[torch.device]) -> str | None:
    """Why matrices on these devices cannot run sparse; None if they can."""
    if all(device.type == "cuda" for device in devices):
        return None
    if torch.cuda.is_available():
        return "the model is not on CUDA"
    return NO_GAIN
