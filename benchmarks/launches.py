"""What one block of a Llama 7B asks of an accelerator beside its products: counted on none.

    python benchmarks/launches.py                              every method, 128 x 2048, 2:4
    python benchmarks/launches.py --methods wanda,sparsegpt --samples 16

The device is the stand-in of tests/standin, hollow: it has shapes and computes nothing. Of three
blocks the middle one is told, phase by phase, since the last is propagated for its first batch
alone; "before" is what is done before the first block, for all three of them, full-model gradients
among it.

    launches    operators that are no views; a GPU's library may make more than one kernel of one
    waits       how often the host waits for a value
    moved       bytes that operators read and write which are no products: each input and output
                once. What is bound by memory takes that over the memory's rate

A method is METHOD, METHOD:SCHEDULE or METHOD:EFFORT. ALPS stops at its first look here, where no
mask changes: its iterations and penalties are counted by `flops.py`. SparseGPT's columns are one
launch for each stretch, as with the kernel that they have on a GPU; --plain counts them without it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from floor import recipe_options
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from standin.building import why_not
from standin.device import Standin
from standin.hollow import hollow, llama

METHODS = (
    "magnitude,wanda,wanda:matrix,sparsegpt,gblm,wanda++-rgs,wanda++:fast,wanda++:balanced,alps,"
    "alps-ro:fast"
)
BLOCKS = 3
PHASES = ("load", "observe", "prune", "propagate")
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "attention", "cholesky", "solve_triangular")
"""Words in the names of operators whose work `flops.py` counts."""
EMPTY = ("empty", "new_empty", "empty_like", "empty_strided")


@dataclass
class Told:
    """What was asked for in a phase."""

    launches: int = 0
    waits: int = 0
    moved: int = 0


class Moved(TorchDispatchMode):
    """Counts the bytes that operators on the device read and write, but for products."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the operator, and count what it took and gave."""
        given = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name not in EMPTY and not any(word in name for word in PRODUCTS):
            for value in tree_leaves((args, kwargs, given)):
                if isinstance(value, torch.Tensor) and value.device.type == "cuda":
                    self.bytes += _held(value)
        return given


def _held(tensor: torch.Tensor) -> int:
    """Bytes of the numbers of a tensor, those that it repeats counted once."""
    own = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        own *= size if stride else 1
    return own * tensor.itemsize


@contextmanager
def laps(gpu: Standin, moved: Moved, told: list[dict[str, Told]]) -> Iterator[None]:
    """While it lasts, what is asked for between two laps of a block's clock is kept by phase."""
    from secateur.machine.clock import Clock

    def look() -> Told:
        waits = sum(event.times for event in gpu.table("wait", "d2h"))
        return Told(gpu.launches.total(), waits, moved.bytes)

    def lap(clock: Clock, phase: str) -> None:
        if phase == PHASES[0]:
            told.append({})
        after, before = look(), last[0]
        here = told[-1].setdefault(phase, Told())
        here.launches += after.launches - before.launches
        here.waits += after.waits - before.waits
        here.moved += after.moved - before.moved
        last[0] = after

    last = [look()]
    with mock.patch.object(Clock, "lap", lap):
        yield


def one_launch(columns: Any) -> None:
    """In place of `methods/columns_kernel.py`: a launch that reads and writes weights."""
    torch.mul(columns.current, columns.pruned, out=columns.lost)


def measure(gpu: Standin, method: str, asked: argparse.Namespace) -> dict[str, Told]:
    """What is asked for before the first block, and by the middle one of three."""
    from secateur import prune

    samples, length = asked.samples, asked.sequence_length
    tokens = torch.randint(0, 32000, (samples, length))
    model, moved, told = llama("7b", BLOCKS).to("cuda"), Moved(), list[dict[str, Told]]()
    gpu.reset()
    kernel = mock.patch("secateur.methods.sparsegpt.solve_columns", one_launch)
    with nullcontext() if asked.plain else kernel, laps(gpu, moved, told), moved:
        prune(
            model, **recipe_options(method), pattern="2:4", calibration=tokens, samples=samples,
            sequence_length=length, device="cuda", dtype="bfloat16", block_inputs="memory",
        )  # fmt: skip
    first, middle = told[0][PHASES[0]], told[BLOCKS // 2]
    loading = middle[PHASES[0]]
    before = Told(
        first.launches - loading.launches, first.waits - loading.waits, first.moved - loading.moved
    )
    return {"before": before, **middle}


def main() -> None:
    """Print a line for every method and phase."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--sequence-length", type=int, default=2048)
    parser.add_argument("--plain", action="store_true", help="SparseGPT without its kernel")
    asked = parser.parse_args()
    if (reason := why_not()) is not None:
        sys.exit(reason)
    gpu = hollow("cuda", 80 * 2**30)
    print("| method | phase | launches | waits | moved (GB) |\n|---|---|---:|---:|---:|")
    for method in asked.methods.split(","):
        with gpu:
            told = measure(gpu, method, asked)
        for phase, found in told.items():
            counts = f"{found.launches} | {found.waits} | {found.moved / 1e9:.1f}"
            print(f"| {method} | {phase} | {counts} |", flush=True)


if __name__ == "__main__":
    main()
