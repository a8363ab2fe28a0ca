"""Time and memory against width, depth, sequences, their length, and processes.

    python benchmarks/scaling.py [--methods wanda wanda++] [--repeats 1]

From one point, each of the five that is given several values is varied alone. Every point is a
random Llama on disk and a process of its own that runs `secateur prune` with one thread; or several
processes under torchrun, with one thread each. Taken from the record of the run are

    seconds     of the run, without starting Python
    peak        resident memory at its highest, of the first process; it holds Python and torch,
                which alone take what stands above the table
    growth      how seconds grow from the point before: 1 is in proportion, 2 with the square

and from outside `whole`, seconds with the start of Python. Medians of --repeats.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import plots
import results
import torch
from floor import configuration, recipe_options
from safetensors.torch import save_file
from transformers import LlamaForCausalLM
from transformers.utils import logging

MB = 1e6
BASELINE = """
import secateur, transformers
from secateur.report.record import peak_memory_bytes
print(peak_memory_bytes())
"""


@dataclass(frozen=True)
class Point:
    """What is pruned, and by how many processes."""

    width: int
    blocks: int
    samples: int
    sequence_length: int
    processes: int


@dataclass(frozen=True)
class Run:
    """One point, one method."""

    varied: str
    method: str
    point: Point
    seconds: float
    whole: float
    peak: int

    @property
    def value(self) -> int:
        """Of what is varied."""
        value: int = asdict(self.point)[self.varied]
        return value


def main() -> None:
    options = parse()
    results.check(options)
    logging.disable_progress_bar()
    found = results.facts(torch.device("cpu"), threads=1)
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        baseline = int(python(["-c", BASELINE]).stdout)
        for method in options.methods:
            known: dict[Point, tuple[float, float, int]] = {}
            for varied, point in points(options):
                if point not in known:
                    known[point] = measure(point, method, Path(name), options.repeats)
                    print(f"{method} {point}: {known[point][0]:.2f} s", file=sys.stderr, flush=True)
                runs.append(Run(varied, method, point, *known[point]))
    base = base_point(options)
    said = (
        f"Around a random Llama of {base.blocks} blocks x {base.width}, {base.samples} x"
        f" {base.sequence_length} tokens, float32, 2:4, one thread in each process; Python, torch"
        f" and Secateur alone take {baseline / MB:.0f} MB."
    )
    numbers = {"baseline": baseline, "runs": [{**asdict(run), "value": run.value} for run in runs]}
    results.report("scaling", options, found, [table(runs, said)], numbers)
    if options.plot is not None:
        draw(runs, options.plot)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=["wanda", "wanda++"])
    for name, (default, meaning) in VARIED.items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=int, nargs="+", default=default, help=meaning)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="for all files, removed afterwards")
    results.add_options(parser)
    return parser.parse_args()


VARIED = {
    "width": ([128, 256, 512], "the middle one stands where others are varied"),
    "blocks": ([2, 4, 8], "likewise"),
    "samples": ([16, 32, 64], "likewise"),
    "sequence_length": ([64, 128, 256], "likewise"),
    "processes": ([1, 2], "the first one stands where others are varied"),
}


def base_point(options: argparse.Namespace) -> Point:
    """Where the others are varied from."""
    values = {name: getattr(options, name) for name in VARIED}
    middle = {name: found[(len(found) - 1) // 2] for name, found in values.items()}
    return Point(**{**middle, "processes": values["processes"][0]})


def points(options: argparse.Namespace) -> list[tuple[str, Point]]:
    """What is varied, and the point."""
    base = base_point(options)
    return [
        (name, replace(base, **{name: value}))
        for name in VARIED
        if len(getattr(options, name)) > 1
        for value in getattr(options, name)
    ]


def measure(point: Point, method: str, folder: Path, repeats: int) -> tuple[float, float, int]:
    """Seconds of the run, of the process, and its peak; medians."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        here = Path(name)
        config = configuration(point.width, point.blocks, point.sequence_length)
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(here / "dense")
        tokens = torch.randint(3, config.vocab_size, (point.samples, point.sequence_length))
        save_file({"input_ids": tokens}, here / "tokens.safetensors")
        command = ["-m", "secateur", "prune", str(here / "dense")]
        if point.processes > 1:
            launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
            command = [*launch, str(point.processes), *command]
        for option, value in recipe_options(method).items():
            command += [f"--{option}", value]
        command += [
            "--pattern", "2:4", "--calibration", str(here / "tokens.safetensors"),
            "--samples", str(point.samples), "--sequence-length", str(point.sequence_length),
            "--device", "cpu", "--out", str(here / "sparse"), "--overwrite",
        ]  # fmt: skip
        taken = []
        for _ in range(repeats):
            began = time.perf_counter()
            python(command)
            whole = time.perf_counter() - began
            record = json.loads((here / "sparse" / "run.json").read_text())
            taken.append((record["seconds"], whole, record["peak_memory_bytes"]))
        seconds, wholes, peaks = zip(*taken, strict=True)
        return (
            statistics.median(seconds),
            statistics.median(wholes),
            round(statistics.median(peaks)),
        )


def python(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """A fresh process with one thread; ends here with its last words if it fails."""
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return done


def table(runs: Sequence[Run], said: str) -> results.Table:
    rows = []
    before: Run | None = None
    for run in runs:
        follows = before is not None and (before.varied, before.method) == (run.varied, run.method)
        growth = ""
        if follows and before is not None:
            power = math.log(run.seconds / before.seconds) / math.log(run.value / before.value)
            growth = f"{power:.2f}"
        rows.append(
            (
                run.varied.replace("_", " "), str(run.value), run.method, f"{run.seconds:.2f}",
                growth, f"{run.whole:.2f}", f"{run.peak / MB:.0f}",
            )
        )  # fmt: skip
        before = run
    heads = ("varied", "value", "method", "seconds", "growth", "whole (s)", "peak (MB)")
    return results.Table(said, heads, rows)


def draw(runs: Sequence[Run], path: Path) -> None:
    """Seconds in one file, memory in another beside it."""
    for suffix, label in (("", "seconds"), ("-memory", "peak memory (MB)")):
        panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for run in runs:
            curve = panels.setdefault(run.varied.replace("_", " "), {}).setdefault(run.method, [])
            curve.append((run.value, run.peak / MB if suffix else run.seconds))
        plots.lines(path.with_stem(path.stem + suffix), panels, label)


if __name__ == "__main__":
    main()
