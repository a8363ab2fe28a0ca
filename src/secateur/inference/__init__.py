"""2:4 at work: the form each matrix runs fastest in, the packed kernel, and `secateur bench`."""

from secateur.inference.accelerate import accelerate_inference
from secateur.inference.benchmark import BenchReport, bench
from secateur.inference.packed_linear import PackedLinear
from secateur.inference.settings import BenchSettings
from secateur.inference.table import summarise, tabulate
from secateur.inference.timings import InferenceReport, ShapeReport, Timing

__all__ = [
    "BenchReport",
    "BenchSettings",
    "InferenceReport",
    "PackedLinear",
    "ShapeReport",
    "Timing",
    "accelerate_inference",
    "bench",
    "summarise",
    "tabulate",
]
