"""Time and memory against width, depth, sequences, their length, and processes.

    python benchmarks/scaling.py [--methods wanda wanda++] [--repeats 1]
    python benchmarks/scaling.py --methods wanda sparsegpt --processes 1 2 \
        --width 768 --blocks 3 --samples 64 --sequence-length 512

From one point, each of the five that is given several values is varied alone. Every point is a
random Llama on disk and a process of its own that runs `secateur prune` with one thread; or several
processes under torchrun, with one thread each. Taken from the record of the run are

    seconds     of the run, without starting Python
    peak        resident memory at its highest, of the first process; it holds Python and torch,
                which alone take what stands above the table
    growth      how seconds grow from the point before: 1 is in proportion, 2 with the square
    of first    seconds over those of the first value

and from outside `whole`, seconds with the start of Python. Where processes are varied there is also

    apart       seconds of as many runs that know nothing of each other, at the same time, each with
                its share of the sequences: what the machine gives to processes that need not wait
                for each other, and the least that they could take together

Medians of --repeats; what is compared is measured in turn, A B C A B C.
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
from concurrent.futures import ThreadPoolExecutor
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
from secateur.machine.facts import peak_memory_bytes
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
class Taken:
    """By one run: seconds, `whole` with the start of Python; bytes; seconds of runs apart."""

    seconds: float
    whole: float
    peak: int
    apart: float | None = None


@dataclass(frozen=True)
class Run:
    """One point, one method, medians."""

    varied: str
    method: str
    point: Point
    taken: Taken

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
    wanted = [(method, *what) for method in options.methods for what in points(options)]
    taken: dict[tuple[str, Point], list[Taken]] = {(how, point): [] for how, _, point in wanted}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        baseline = int(python(["-c", BASELINE]).stdout)
        for number in range(options.repeats):
            for (method, point), before in taken.items():
                before.append(measure(point, method, Path(name)))
                print(
                    f"{number + 1}/{options.repeats} {method} {point}: {before[-1].seconds:.2f} s",
                    file=sys.stderr,
                    flush=True,
                )
    runs = [Run(varied, how, point, median(taken[how, point])) for how, varied, point in wanted]
    base = base_point(options)
    said = (
        f"Around a random Llama of {base.blocks} blocks x {base.width}, {base.samples} x"
        f" {base.sequence_length} tokens, float32, 2:4, one thread in each process; Python, torch"
        f" and Secateur alone take {baseline / MB:.0f} MB. Medians of {options.repeats}."
    )
    numbers = {
        "baseline": baseline,
        "runs": [{**asdict(run), "value": run.value} for run in runs],
        "taken": [
            {"method": method, **asdict(point), "taken": [asdict(one) for one in several]}
            for (method, point), several in taken.items()
        ],
    }
    only = {run.varied for run in runs} == {"processes"}
    section = "processes" if only else None
    results.report("scaling", options, found, [table(runs, said)], numbers, section)
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


def measure(point: Point, method: str, folder: Path) -> Taken:
    """One model of its own, one run; of several processes also as many runs apart."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        here = Path(name)
        config = configuration(point.width, point.blocks, point.sequence_length)
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(here / "dense")
        tokens = torch.randint(3, config.vocab_size, (point.samples, point.sequence_length))
        save_file({"input_ids": tokens}, here / "tokens.safetensors")
        found = prune(here, point, method, "sparse")
        if point.processes == 1:
            return found
        share = replace(point, processes=1, samples=point.samples // point.processes)
        with ThreadPoolExecutor(point.processes) as together:
            each = range(point.processes)
            others = together.map(lambda k: prune(here, share, method, f"apart-{k}"), each)
            return replace(found, apart=max(other.seconds for other in others))


def prune(here: Path, point: Point, method: str, out: str) -> Taken:
    """`secateur prune` in processes of its own."""
    command = ["-m", "secateur", "prune", str(here / "dense")]
    if point.processes > 1:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        command = [*launch, str(point.processes), *command]
    for option, value in recipe_options(method).items():
        command += [f"--{option}", value]
    command += [
        "--pattern", "2:4", "--calibration", str(here / "tokens.safetensors"),
        "--samples", str(point.samples), "--sequence-length", str(point.sequence_length),
        "--device", "cpu", "--out", str(here / out),
    ]  # fmt: skip
    began = time.perf_counter()
    python(command)
    whole = time.perf_counter() - began
    record = json.loads((here / out / "run.json").read_text())
    return Taken(record["seconds"], whole, record["peak_memory_bytes"])


def median(several: Sequence[Taken]) -> Taken:
    """Of each number by itself."""
    apart = [one.apart for one in several if one.apart is not None]
    return Taken(
        statistics.median(one.seconds for one in several),
        statistics.median(one.whole for one in several),
        round(statistics.median(one.peak for one in several)),
        statistics.median(apart) if apart else None,
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
    heads = ["varied", "value", "method", "seconds", "of first", "growth", "whole (s)", "peak (MB)"]
    apart = any(run.taken.apart for run in runs)
    first = before = runs[0]
    for run in runs:
        if (run.varied, run.method) != (first.varied, first.method):
            first = before = run
        of_first, growth = run.taken.seconds / first.taken.seconds, ""
        if run is not first:
            power = math.log(run.taken.seconds / before.taken.seconds)
            growth = f"{power / math.log(run.value / before.value):.2f}"
        cells = [
            run.varied.replace("_", " "), str(run.value), run.method, f"{run.taken.seconds:.2f}",
            f"{of_first:.2f}", growth, f"{run.taken.whole:.2f}", f"{run.taken.peak / MB:.0f}",
        ]  # fmt: skip
        if apart and run.taken.apart is None:
            cells += ["", ""]
        elif run.taken.apart is not None:
            of_first = run.taken.apart / first.taken.seconds
            cells += [f"{run.taken.apart:.2f}", f"{of_first:.2f}"]
        rows.append(cells)
        before = run
    return results.Table(said, [*heads, *(["apart (s)", "apart, of first"] if apart else [])], rows)


def draw(runs: Sequence[Run], path: Path) -> None:
    """Seconds in one file, memory in another beside it."""
    for suffix, label in (("", "seconds"), ("-memory", "peak memory (MB)")):
        panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for run in runs:
            curve = panels.setdefault(run.varied.replace("_", " "), {}).setdefault(run.method, [])
            value = run.taken.peak / MB if suffix else run.taken.seconds
            curve.append((run.value, value))
        plots.lines(path.with_stem(path.stem + suffix), panels, label)


if __name__ == "__main__":
    main()
