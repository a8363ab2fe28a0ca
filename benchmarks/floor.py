"""How far is each method above the arithmetic that it needs?

    python benchmarks/floor.py [--width 1024] [--blocks 2] [--samples 64] [--sequence-length 256]

A random Llama is pruned in memory, in float32 unless `--dtype` says otherwise, by every method.
Around each run the machine's rate of multiplying matrices is measured, before and after, with the
same threads, so that a machine that slows down does not look like a method that does.

    operations  what the method needs, in matrix products; `flops.py` writes them down
    passes      the same in forward passes of all calibration tokens through all blocks
    floor       operations over the rate of products of two [2048, 2048] matrices
    times floor seconds over the floor: 1 is a program that does nothing but these products
    its shapes  seconds over the operations at the rate of the model's own matrices, [batch, in]
                times [in, out], which is less: what is left above 1 is not their shapes' fault

Seconds are those of the call `secateur.prune`, the making of the model left out, and their parts by
phase: before (the recording of the blocks' calls, the full-model gradients), observe, prune
(scores, masks, solve, optimiser), propagate; what runs once, in the schedule `matrix`, is all in
observe. How many steps the regional optimiser takes is read from the record of the run.

A method may be given as METHOD:SCHEDULE or METHOD:EFFORT. `forward` is none: it is transformers'
own code, which runs the dense blocks once, and what that takes above its products every pass of a
method takes too. With --operators every method runs once more, under torch's profiler, which tells
by kind of operator where its seconds go (`operators.py`).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import plots
import results
import torch
from flops import Count, Shapes, count
from operators import by_kind
from rate import Rates, once, rates
from transformers import LlamaConfig, LlamaForCausalLM

import secateur
from secateur.blocks.batching import TOKENS_PER_BATCH
from secateur.record import RunRecord

FORWARD = "forward"
METHODS = (
    FORWARD, "magnitude", "wanda", "wanda:matrix", "sparsegpt", "sparsegpt:matrix", "alps", "gblm",
    "wanda++-rgs", "wanda++-ro:fast", "wanda++:fast", "alps-ro:fast",
)  # fmt: skip
PHASES = ("before", "observe", "prune", "propagate", "other")


@dataclass(frozen=True)
class Run:
    """One method.

    Attributes:
        method: METHOD, METHOD:SCHEDULE or METHOD:EFFORT.
        seconds: of the call, the median over repeats.
        phases: the same by phase, of the run in the middle.
        parts: operations by part.
        passes: operations in forward passes.
        floor, floor_shaped: seconds, at the rates around the run.
        rate, rate_shaped: operations per second.
        operators: seconds by kind of operator, of a run of its own, if that was asked for.
    """

    method: str
    seconds: float
    phases: dict[str, float]
    parts: dict[str, float]
    passes: float
    floor: float
    floor_shaped: float
    rate: float
    rate_shaped: float
    operators: dict[str, float]


def main() -> None:
    options = parse()
    results.check(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    found = results.facts(torch.device("cpu"))
    runs = []
    for method in options.methods:
        runs.append(measure(method, options))
        print(f"{method}: {runs[-1].seconds:.2f} s", file=sys.stderr, flush=True)
    shape = (
        f"A random Llama of {options.blocks} blocks x {options.width}, {options.samples} x"
        f" {options.sequence_length} tokens, {options.dtype}, pattern {options.pattern}, in memory."
    )
    tables = [above(runs, shape), by_phase(runs)]
    if options.operators:
        tables.append(by_operator(runs))
    results.report("floor", options, found, tables, {"runs": [asdict(run) for run in runs]})
    if options.plot is not None:
        draw(runs, options.plot)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=METHODS, metavar="METHOD[:WORD]")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--repeats", type=int, default=1, help="take the median")
    parser.add_argument("--threads", type=int, help="as many as torch takes by itself")
    parser.add_argument("--operators", action="store_true", help="profile each once more")
    results.add_options(parser)
    return parser.parse_args()


def configuration(width: int, blocks: int, length: int, **changes: Any) -> LlamaConfig:
    """A Llama of usual proportions."""
    plain = {
        "vocab_size": 1024,
        "hidden_size": width,
        "intermediate_size": max(32, width * 8 // 3 // 32 * 32),
        "num_hidden_layers": blocks,
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": length,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return LlamaConfig(**{**plain, **changes})


def recipe_options(method: str) -> dict[str, Any]:
    """METHOD, METHOD:SCHEDULE or METHOD:EFFORT as options of a recipe."""
    name, _, word = method.partition(":")
    kind = "schedule" if word in ("block", "matrix") else "effort"
    return {"method": name, **({kind: word} if word else {})}


def measure(method: str, options: argparse.Namespace) -> Run:
    """Prune a fresh model, as often as asked for; the run in the middle."""
    config = configuration(options.width, options.blocks, options.sequence_length)
    shapes, dtype = Shapes.of(config), getattr(torch, options.dtype)
    length = options.sequence_length
    rows = max(1, TOKENS_PER_BATCH // length) * length
    rows = min(rows, options.samples * options.sequence_length)
    cpu = torch.device("cpu")
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 1024, (options.samples, options.sequence_length), generator=generator)
    seen: list[Rates] = [rates(shapes, rows, cpu, dtype)]

    def run(model: Any) -> RunRecord | None:
        if method != FORWARD:
            return prune(model, method, tokens, options.pattern)
        forward(model, tokens.split(rows // length))
        return None

    def fresh() -> Any:
        torch.manual_seed(0)
        return LlamaForCausalLM(config).to(dtype).eval()

    taken: list[tuple[float, Any]] = []
    for _ in range(options.repeats):
        model = fresh()
        records: list[RunRecord | None] = []
        taken.append((once(lambda m=model, r=records: r.append(run(m)), cpu), records[0]))
        seen.append(rates(shapes, rows, cpu, dtype))
    operators: dict[str, float] = {}
    if options.operators:
        model = fresh()
        operators = by_kind(lambda: run(model))
    seconds, record = sorted(taken, key=lambda pair: pair[0])[(len(taken) - 1) // 2]
    one_pass = Count(shapes, options.samples, length).forward * options.blocks
    if record is None:
        parts, blocks = {"forward": one_pass}, [{"other": seconds}]
    else:
        parts = operations(record.recipe, shapes, options.samples, length)
        blocks = [block.seconds for block in record.blocks]
        if not 0.49 < record.sparsity < 0.51 and options.pattern == "2:4":
            raise SystemExit(f"{method}: {record.sparsity:.1%} of the weights are zero")
    square = statistics.fmean(rate.square for rate in seen)
    shaped = statistics.fmean(rate.shaped for rate in seen)
    return Run(
        method=method,
        seconds=seconds,
        phases=phases(seconds, blocks),
        parts=parts,
        passes=sum(parts.values()) / one_pass,
        floor=sum(parts.values()) / square,
        floor_shaped=sum(parts.values()) / shaped,
        rate=square,
        rate_shaped=shaped,
        operators=operators,
    )


@torch.no_grad()
def forward(model: Any, batches: Sequence[torch.Tensor]) -> None:
    """The dense model's blocks on all tokens, as transformers runs them."""
    for batch in batches:
        model.model(input_ids=batch, use_cache=False)


def prune(model: Any, method: str, tokens: torch.Tensor, pattern: str, **more: Any) -> RunRecord:
    """Prune a model in place on all tokens [sequences, length]; magnitude needs none."""
    needed = None if method == "magnitude" else tokens
    sequences, length = tokens.shape
    return secateur.prune(
        model, **recipe_options(method), pattern=pattern, calibration=needed, samples=sequences,
        sequence_length=length, **more,
    )  # fmt: skip


def operations(
    recipe: Mapping[str, Any], shapes: Shapes, sequences: int, length: int
) -> dict[str, float]:
    """What a recorded run needed."""
    return count(
        recipe["method"], shapes, sequences, length, recipe.get("schedule"), recipe["regional"]
    )


def phases(seconds: float, blocks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Seconds of a run by phase; what the blocks do not know of is `before`."""
    total = dict.fromkeys(PHASES, 0.0)
    for block in blocks:
        for phase, taken in block.items():
            total[phase if phase in PHASES else "other"] += taken
    total["before"] = max(0.0, seconds - sum(total.values()))
    return total


def above(runs: Sequence[Run], shape: str) -> results.Table:
    rows = []
    for run in runs:
        total = sum(run.parts.values())
        ratios = (
            (f"{run.seconds / run.floor:.2f}", f"{run.seconds / run.floor_shaped:.2f}")
            if total
            else ("", "")
        )
        rows.append(
            (
                run.method, f"{run.seconds:.2f}", f"{total / 1e9:.0f}", f"{run.passes:.2f}",
                f"{run.rate / 1e9:.0f}", f"{run.rate_shaped / 1e9:.0f}",
                f"{run.floor:.2f}" if total else "", *ratios,
            )
        )  # fmt: skip
    heads = (
        "method", "seconds", "GFLOP", "passes", "GFLOP/s", "its shapes", "floor (s)", "times floor",
        "at its shapes",
    )  # fmt: skip
    return results.Table(shape, heads, rows)


def by_phase(runs: Sequence[Run]) -> results.Table:
    shown = [p for p in PHASES if any(round(run.phases[p], 2) for run in runs)]
    rows = [(run.method, *(f"{run.phases[phase]:.2f}" for phase in shown)) for run in runs]
    return results.Table("Seconds by phase:", ("method", *shown), rows)


def by_operator(runs: Sequence[Run]) -> results.Table:
    kinds = list(runs[0].operators)
    rows = []
    for run in runs:
        whole = sum(run.operators.values())
        shares = (f"{100 * run.operators[kind] / whole:.0f} %" for kind in kinds)
        rows.append((run.method, f"{whole:.2f}", *shares))
    said = "Share of the seconds by kind of operator, in a run under torch's profiler:"
    return results.Table(said, ("method", "seconds", *kinds), rows)


def draw(runs: Sequence[Run], path: Path) -> None:
    counted = [run for run in runs if run.parts]
    plots.stacked(
        path,
        "Seconds over the arithmetic floor, by phase",
        [run.method for run in counted],
        {
            phase: [run.phases[phase] / run.floor for run in counted]
            for phase in PHASES
            if any(round(run.phases[phase], 2) for run in counted)
        },
        reference=1.0,
    )


if __name__ == "__main__":
    main()
