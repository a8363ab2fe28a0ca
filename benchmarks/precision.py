"""What computing in half precision does to masks and perplexity, against float32.

    python benchmarks/precision.py [MODEL] [--calibration SOURCE] [--text SOURCE]
        [--methods METHOD[:EFFORT],...] [--dtypes bfloat16,float16] [--samples 32]
        [--sequence-length 256] [--windows 64] [--window-length 256] [--blocks 0-9] [--minutes 25]

Statistics, scores and the optimiser's weights are float32 whatever the blocks compute in. What
differs is what the blocks make of their inputs. `same` is the share of weights with the same fate;
perplexity is that of the pruned model, computed in float32 for all, on held-out windows;
`processor` the seconds of all cores that the run took, reading and writing included, which other
programs change less than those of a clock.

With --minutes no method begins once so much of the processors was used, and the table says which
were left out; the JSON is written anew after each run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import plots
import results
import torch
from floor import recipe_options
from transformers.utils import logging

import secateur
from secateur.checkpoint import load_whole

REFERENCE = "float32"


@dataclass(frozen=True)
class Run:
    """One method in one precision.

    Attributes:
        method, dtype: what was run.
        same: share of weights with the same fate as in float32; 1 for float32 itself.
        perplexity: of the pruned model, computed in float32.
        change: of perplexity against float32's, as a share of it.
        processor: seconds of all cores.
    """

    method: str
    dtype: str
    same: float
    perplexity: float
    change: float
    processor: float


def pruned(
    method: str, dtype: str, options: argparse.Namespace
) -> tuple[torch.Tensor, float, float]:
    """Which weights of the pruned matrices are kept, one after the other; perplexity; processor."""
    with tempfile.TemporaryDirectory() as folder:
        out, began = Path(folder) / "out", time.process_time()
        record = secateur.prune(
            options.model, **recipe_options(method), pattern="2:4", dtype=dtype, out=out,
            calibration=None if method == "magnitude" else options.calibration,
            samples=options.samples, sequence_length=options.sequence_length, blocks=options.blocks,
        )  # fmt: skip
        taken = time.process_time() - began
        names = [matrix.name for block in record.blocks for matrix in block.matrices]
        weights = load_whole(out).state_dict()
        kept = torch.cat([(weights[name] != 0).flatten() for name in names])
        del weights
        measured = secateur.evaluate(
            out, text=options.text, sequence_length=options.window_length,
            windows=options.windows, dtype=REFERENCE,
        )  # fmt: skip
        return kept, measured.perplexity, taken


def compared(method: str, options: argparse.Namespace) -> Iterator[Run]:
    """A method in float32, then in every other precision."""
    reference, base, taken = pruned(method, REFERENCE, options)
    yield Run(method, REFERENCE, 1.0, base, 0.0, taken)
    for dtype in options.dtypes.split(","):
        kept, perplexity, taken = pruned(method, dtype, options)
        same = float((kept == reference).double().mean())
        yield Run(method, dtype, same, perplexity, perplexity / base - 1, taken)


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
    parser.add_argument("--window-length", type=int, help="none: as --sequence-length")
    parser.add_argument("--blocks", help="prune these alone, the others are passed: 0-9; none: all")
    parser.add_argument("--minutes", type=float, help="of the processors, for everything")
    results.add_options(parser)
    options = parser.parse_args()
    options.window_length = options.window_length or options.sequence_length
    results.check(options)
    logging.disable_progress_bar()
    found = results.facts(torch.device("cpu"))
    runs: list[Run] = []
    left_out: list[str] = []
    for method in options.methods.split(","):
        if options.minutes is not None and time.process_time() > 60 * options.minutes:
            left_out.append(method)
            continue
        for run in compared(method, options):
            runs.append(run)
            print(f"{method}, {run.dtype}: {run.change:+.2%}", file=sys.stderr, flush=True)
            results.save("precision", options, found, numbers(runs, left_out))
    model = Path(options.model).name
    section = None if model == "builtin" else f"precision-{model}"
    tables = [table(runs, left_out, options)]
    results.report("precision", options, found, tables, numbers(runs, left_out), section)
    if options.plot is not None:
        draw(runs, options.plot)


def numbers(runs: Sequence[Run], left_out: Sequence[str]) -> dict[str, Any]:
    """For the JSON."""
    return {"runs": [asdict(run) for run in runs], "left_out": list(left_out)}


def table(
    runs: Sequence[Run], left_out: Sequence[str], options: argparse.Namespace
) -> results.Table:
    of_blocks = "" if options.blocks is None else f" in blocks {options.blocks}"
    calibration, text = Path(options.calibration).name, Path(options.text).name
    said = (
        f"{Path(options.model).name}, {options.samples} x {options.sequence_length} tokens of"
        f" {calibration}, 2:4{of_blocks}; perplexity on {options.windows} windows of"
        f" {options.window_length} tokens of {text}."
    )
    if left_out:
        said += f" Left out for want of time: {', '.join(left_out)}."
    rows = []
    for run in runs:
        other = run.dtype != REFERENCE
        rows.append(
            (
                f"{run.method}, {run.dtype}", f"{run.same:.3%}" if other else "",
                f"{run.perplexity:.3f}", f"{run.change:+.2%}" if other else "",
                f"{run.processor:.0f}",
            )
        )  # fmt: skip
    heads = ("", "same", "perplexity", "against float32", "processor (s)")
    return results.Table(said, heads, rows)


def draw(runs: Sequence[Run], path: Path) -> None:
    others = [run for run in runs if run.dtype != REFERENCE]
    plots.stacked(
        path,
        "Weights that fare otherwise than in float32, %",
        [f"{run.method}, {run.dtype}" for run in others],
        {"other": [100 * (1 - run.same) for run in others]},
    )


if __name__ == "__main__":
    main()
