"""Every method on shapes of a Llama 7B and 70B under a memory ceiling, on an accelerator of none.

    python benchmarks/ceilings.py                         # 7B under 8 GiB, 70B under 24 GiB
    python benchmarks/ceilings.py --size 7b --ceiling 80 --activations device
    python benchmarks/ceilings.py --methods wanda,alps    # some of the rows; --samples 16 is faster

The device is the stand-in of tests/standin, hollow: it has shapes and counts bytes, and computes
nothing. So a row says what a run takes, never how long it would take. 128 sequences of 2048 tokens
in bfloat16, 2:4, the model in main memory, one block of it (memory is that of one block whatever
the depth). The estimate is what the run itself makes before it begins (pruning/device_memory.py);
a run that it refuses is done without the ceiling, to see whether it was right.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from standin.building import why_not
from standin.device import Standin
from standin.hollow import hollow, llama

CEILINGS = {"7b": 8.0, "70b": 24.0}
METHODS = (
    "magnitude", "wanda", "sparsegpt", "gblm", "wanda++-rgs", "wanda++-ro", "wanda++", "alps",
    "alps-ro",
)  # fmt: skip
REFINED = ("wanda++-ro", "wanda++", "alps-ro")
"""Those with the regional optimiser; one round of it takes as much as five."""
WITHOUT = 2**40
"""Bytes of a device without a ceiling."""


@dataclass(frozen=True)
class Row:
    """What a run was estimated to take, and took, in bytes; what it said if it did not begin."""

    method: str
    batch: int
    estimated: int
    peak: int
    refused: str
    seconds: float

    def __str__(self) -> str:
        off = self.estimated / self.peak - 1
        told = self.refused or "fits"
        return (
            f"| {self.method} | {self.batch} | {self.estimated / 2**30:.2f} |"
            f" {self.peak / 2**30:.2f} | {100 * off:+.1f} % | {told} | {self.seconds:.0f} |"
        )


def row(gpu: Standin, size: str, ceiling: int, options: dict[str, Any]) -> Row:
    """A method under a ceiling in bytes, or without it if it is refused there."""
    import torch

    from secateur import prune
    from secateur.blocks.batching import batch_size
    from secateur.errors import RecipeError
    from secateur.machine.device import choose_device
    from secateur.pruning import prepare
    from secateur.recipe import Recipe

    tokens = torch.randint(0, 32000, (options["samples"], options["sequence_length"]))
    model, refused = llama(size, blocks=1), ""
    limit_to(gpu, ceiling)
    recipe = Recipe.build({**options, "model": "in memory", "calibration": "given"})
    source = prepare.ResidentModel(model, choose_device("cuda"), model.dtype)
    batch = batch_size(None, options["sequence_length"], source)
    try:
        prepare.prepare_in_place(model, recipe, None, tokens)
    except RecipeError as fault:
        refused = str(fault)
        limit_to(gpu, WITHOUT)
    recipe = Recipe.build({**recipe.spelled_out(), "batch_size": batch})
    estimated = prepare.prepare_in_place(model, recipe, None, tokens).activations.estimated
    assert estimated is not None
    gpu.reset()
    began = time.perf_counter()
    prune(model, calibration=tokens, **options, batch_size=batch)
    seconds = time.perf_counter() - began
    return Row(options["method"], batch, estimated, gpu.peak, refused, seconds)


def limit_to(gpu: Standin, size: int) -> None:
    """Give the device so many bytes."""
    gpu.limit = size
    for index in range(gpu.device.devices):
        gpu.device.limit(index, size)


def main() -> None:
    """Print a table for every size."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=CEILINGS)
    parser.add_argument("--ceiling", type=float, help="GiB")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--activations", default="host", choices=("auto", "device", "host"))
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--quantize", help="round to this scheme too, such as w4a16")
    asked = parser.parse_args()
    if (reason := why_not()) is not None:
        sys.exit(reason)
    gpu = hollow("cuda", WITHOUT)
    for size in [asked.size] if asked.size else CEILINGS:
        ceiling = asked.ceiling or CEILINGS[size]
        print(f"\n{size}, {ceiling:g} GiB, activations {asked.activations}\n")
        print("| method | batch | estimate GiB | peak GiB | off by | under the ceiling | s |")
        print("|---|---:|---:|---:|---:|---|---:|")
        for method in asked.methods.split(","):
            options = {
                "method": method, "pattern": "2:4", "device": "cuda", "dtype": "bfloat16",
                "samples": asked.samples, "sequence_length": 2048,
                "activations": asked.activations, "block_inputs": "memory",
            }  # fmt: skip
            if asked.quantize is not None:
                options["quantize"] = asked.quantize
            if method in REFINED:
                options |= {"effort": "fast", "regional": {"rounds": 1}}
            with gpu:
                print(row(gpu, size, round(ceiling * 2**30), options), flush=True)


if __name__ == "__main__":
    main()
