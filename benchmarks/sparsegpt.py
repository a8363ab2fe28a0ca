"""What sharing and halving save in SparseGPT's solve of one Llama block.

    python benchmarks/sparsegpt.py [--width 1024] [--repeats 3] [--pattern 2:4] [--device cuda]

The ways over the same Hessians, in turn, medians of wall seconds:

    alone, by column    every matrix factorises for itself and is solved column after column within
                        blocks of 128: the published script
    alone, by halves    the same, columns solved by halves
    shared, by column   q, k, v and gate, up stacked: one factorisation for each distinct input
    shared, by halves   what `secateur prune --method sparsegpt` does on a CPU
    shared, by a kernel what it does on a GPU with Triton; left out elsewhere
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from secateur.machine.accelerator import wait_for
from secateur.methods import columns, sparsegpt
from secateur.sparsity import parse_pattern
from secateur.statistics import Need, Statistics


def block(width: int, device: torch.device) -> list[tuple[list[Tensor], Statistics]]:
    """The matrices of one Llama block by distinct input, with a Hessian each."""
    generator = torch.Generator().manual_seed(0)
    wide = width * 8 // 3 // 8 * 8
    groups = [([width] * 3, width), ([width], width), ([wide] * 2, width), ([width], wide)]
    made = []
    for rows, inner in groups:
        inputs = torch.randn(2 * inner, inner, generator=generator)
        weights = [torch.randn(out, inner, generator=generator).to(device) for out in rows]
        hessian = (inputs.T @ inputs).to(device)
        made.append((weights, Statistics({Need.HESSIAN: hessian}, sequences=1)))
    return made


def seconds(groups: list[tuple[list[Tensor], Statistics]], pattern: str, leaf: int | None) -> float:
    """Wall seconds of solving every group; no leaf: by the kernel."""
    width = mock.patch.object(columns, "_LEAF", leaf or columns._LEAF)
    kernel = mock.patch.object(columns, "kernel_runs", return_value=leaf is None)
    device = groups[0][0][0].device
    wait_for(device)
    began = time.perf_counter()
    with width, kernel:
        for weights, gathered in groups:
            sparsegpt.sparsegpt(
                weights, gathered, parse_pattern(pattern), sparsegpt.SparseGPTParams()
            )
    wait_for(device)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--device", default="cpu", type=torch.device)
    arguments = parser.parse_args()
    shared = block(arguments.width, arguments.device)
    alone = [([weight], gathered) for weights, gathered in shared for weight in weights]
    ways: dict[str, tuple[Any, int | None]] = {
        "alone, by column": (alone, 128),
        "alone, by halves": (alone, 16),
        "shared, by column": (shared, 128),
        "shared, by halves": (shared, 16),
    }
    if columns.kernel_runs(arguments.device, torch.float32):
        ways["shared, by a kernel"] = (shared, None)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.repeats):
        for name, (groups, leaf) in ways.items():
            times[name].append(seconds(groups, arguments.pattern, leaf))
    first = statistics.median(next(iter(times.values())))
    print(f"width {arguments.width}, {arguments.pattern}, {torch.get_num_threads()} threads")
    for name, found in times.items():
        middle = statistics.median(found)
        print(f"{name:<19} {middle:7.3f} s   {middle / first:5.2f} of the first")


if __name__ == "__main__":
    main()
