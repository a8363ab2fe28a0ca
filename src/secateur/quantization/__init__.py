"""Weights rounded to few bits: the schemes, the grid of a group, and how the error is fed back."""

from secateur.quantization.gptq import gptq
from secateur.quantization.grid import (
    LevelGrid,
    RoundedMatrix,
    round_to_nearest,
    scale_dtype,
    stacked,
    stored_bytes,
)
from secateur.quantization.scheme import Rounding, Scheme, fitted, parse_scheme
from secateur.quantization.trained import TrainedGrid

__all__ = [
    "LevelGrid",
    "RoundedMatrix",
    "Rounding",
    "Scheme",
    "TrainedGrid",
    "fitted",
    "gptq",
    "parse_scheme",
    "round_to_nearest",
    "scale_dtype",
    "stacked",
    "stored_bytes",
]
