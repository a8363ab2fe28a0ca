"""Schemes of quantised weights and how people write them.

    w4a16        integers of 4 bits, a scale for every 128 inputs of a row; activations stay 16 bits
    w8a16        integers of 8 bits, a scale for every row
    fp8          float8_e4m3fn, a scale for every row; engines round activations to fp8 too, with a
                 scale of each token that they find as they run

    w4a16:g64    a scale for every 64 inputs; 32, 64 and 128 are what the engines' kernels have
    w4a16:row    a scale for every row
    w4a16:asym   a zero point beside every scale, so that the grid need not reach as far below zero
                 as above; also after the group, as w4a16:g64:asym

These are the presets of llm-compressor (W4A16, W8A16, FP8_DYNAMIC) and what may be changed in them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

import torch

from secateur.errors import RecipeError

GROUP_SIZES = (128, 64, 32)
"""Sizes of a group that the engines' kernels have, the largest first."""
FP8 = torch.float8_e4m3fn
"""The dtype of the levels of fp8."""
_WANTED = "w4a16, w8a16 or fp8; the first two also with :g32, :g64, :g128 or :row, and :asym"

By = Literal["gptq", "rtn"]


@dataclass(frozen=True)
class Scheme:
    """How the weights of a matrix are stored.

    Attributes:
        name: w4a16, w8a16 or fp8.
        group: inputs that share a scale within a row; None: all of them.
        symmetric: whether the grid has as much below zero as above, and so no zero point.
    """

    name: Literal["w4a16", "w8a16", "fp8"]
    group: int | None = None
    symmetric: bool = True

    @property
    def bits(self) -> int:
        """Bits of a level."""
        return 4 if self.name == "w4a16" else 8

    @property
    def floating(self) -> bool:
        """Whether levels are floating-point numbers; else they are whole."""
        return self.name == "fp8"

    @property
    def range(self) -> tuple[float, float]:
        """The lowest level and the highest."""
        if self.floating:
            return torch.finfo(FP8).min, torch.finfo(FP8).max
        return -(2.0 ** (self.bits - 1)), 2.0 ** (self.bits - 1) - 1

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the levels."""
        return FP8 if self.floating else torch.int8

    def __str__(self) -> str:
        parts = [str(self.name)]
        if self.group != _DEFAULTS[self.name].group:
            parts.append("row" if self.group is None else f"g{self.group}")
        return ":".join(parts if self.symmetric else [*parts, "asym"])


_DEFAULTS: dict[str, Scheme] = {
    "w4a16": Scheme("w4a16", GROUP_SIZES[0]),
    "w8a16": Scheme("w8a16"),
    "fp8": Scheme("fp8"),
}


@dataclass(frozen=True)
class Rounding:
    """What is done with the weights of every matrix once they are pruned.

    Attributes:
        scheme: what they are rounded to.
        by: gptq feeds the error back, rtn rounds to the nearest.
    """

    scheme: Scheme
    by: By


def parse_scheme(text: str) -> Scheme:
    """Read a scheme as a person writes it: "w4a16", "w4a16:g64:asym", "w8a16:g128", "fp8".

    Raises:
        RecipeError: it is none.
    """
    name, *changes = text.strip().lower().split(":")
    scheme = _DEFAULTS.get(name)
    sizes = {"row": None, **{f"g{group}": group for group in GROUP_SIZES}}
    for change in changes:
        if scheme is None or scheme.floating:
            scheme = None
        elif change in sizes:
            scheme = replace(scheme, group=sizes.pop(change))
            sizes = {}  # said once
        elif change == "asym" and scheme.symmetric:
            scheme = replace(scheme, symmetric=False)
        else:
            scheme = None
    if scheme is None:
        raise RecipeError(f"no scheme {text[:40]!r} of quantised weights", wanted=_WANTED)
    return scheme


def fitted(scheme: Scheme, widths: Collection[int]) -> Scheme:
    """The scheme whose groups fill the rows of every matrix: one for the whole model.

    It is the largest of the usual groups that does, no larger than was asked for; or a scale for
    every row. transformers dequantises a whole folder by one scheme, so that matrices of other
    widths do not get groups of their own.

    Args:
        scheme: what was asked for.
        widths: inputs of the matrices.
    """
    if scheme.group is None:
        return scheme
    fitting = (
        group for group in GROUP_SIZES
        if group <= scheme.group and all(width % group == 0 for width in widths)
    )  # fmt: skip
    return replace(scheme, group=next(fitting, None))
