"""What computing in half precision does to masks and perplexity, against float32.

    python benchmarks/precision.py [MODEL] [--calibration SOURCE] [--text SOURCE] [--methods NAMES]
        [--samples 32] [--sequence-length 256] [--windows 64] [--dtypes bfloat16,float16]

Statistics, scores and the optimiser's weights are float32 whatever the blocks compute in. What
differs is what the blocks make of their inputs. `same` is the share of weights with the same fate;
perplexity is that of the pruned model, computed in float32 for all, on held-out windows.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plots
import results
import torch
from transformers.utils import logging

import secateur
from secateur.checkpoint import load_whole

REFERENCE = "float32"


def pruned(method: str, dtype: str, options: argparse.Namespace) -> tuple[torch.Tensor, float]:
    """Which weights of the pruned matrices are kept, one after the other, and the perplexity."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        record = secateur.prune(
            options.model, method=method, pattern="2:4", calibration=options.calibration,
            samples=options.samples, sequence_length=options.sequence_length, dtype=dtype, out=out,
        )  # fmt: skip
        names = [matrix.name for block in record.blocks for matrix in block.matrices]
        weights = load_whole(out).state_dict()
        kept = torch.cat([(weights[name] != 0).flatten() for name in names])
        measured = secateur.evaluate(
            out, text=options.text, sequence_length=options.sequence_length,
            windows=options.windows, dtype=REFERENCE,
        )  # fmt: skip
        return kept, measured.perplexity


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="builtin")
    parser.add_argument("--calibration", default="builtin")
    parser.add_argument("--text", default="builtin")
    parser.add_argument("--methods", default="wanda,sparsegpt,gblm,wanda++-rgs,wanda++")
    parser.add_argument("--dtypes", default="bfloat16,float16")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--windows", type=int, default=64)
    results.add_options(parser)
    options = parser.parse_args()
    results.check(options)
    logging.disable_progress_bar()
    found = results.facts(torch.device("cpu"))
    rows, numbers = [], []
    for method in options.methods.split(","):
        reference, base = pruned(method, REFERENCE, options)
        rows.append((f"{method}, {REFERENCE}", "", f"{base:.3f}", ""))
        for dtype in options.dtypes.split(","):
            kept, perplexity = pruned(method, dtype, options)
            same = float((kept == reference).double().mean())
            change = perplexity / base - 1
            rows.append(
                (f"{method}, {dtype}", f"{same:.3%}", f"{perplexity:.3f}", f"{change:+.2%}")
            )
            numbers.append({"method": method, "dtype": dtype, "same": same, "change": change})
            print(f"{method}, {dtype}: {change:+.2%}", file=sys.stderr, flush=True)
    said = (
        f"{options.model}, {options.samples} x {options.sequence_length} tokens of"
        f" {options.calibration}, 2:4; perplexity on {options.windows} windows of {options.text}."
    )
    heads = ("", "same", "perplexity", "against float32")
    table = results.Table(said, heads, rows)
    results.report("precision", options, found, [table], {"runs": numbers})
    if options.plot is not None:
        draw(numbers, options.plot)


def draw(numbers: Sequence[Mapping[str, Any]], path: Path) -> None:
    plots.stacked(
        path,
        "Weights that fare otherwise than in float32, %",
        [f"{run['method']}, {run['dtype']}" for run in numbers],
        {"other": [100 * (1 - run["same"]) for run in numbers]},
    )


if __name__ == "__main__":
    main()
