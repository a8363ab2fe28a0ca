"""What pruning a large Llama takes on one large GPU: one command, within ten minutes.

    python benchmarks/gpu.py                    on the GPU; needs no model and no network
    python benchmarks/gpu.py --tiny             the same code on the CPU, with tiny shapes
    python benchmarks/gpu.py --estimate         measures nothing: the arithmetic at a stated rate

Random weights in bfloat16 in the shapes of Llama 7B (all 32 blocks), and of Llama 8B and 70B (a few
blocks; the whole model's seconds are extrapolated in proportion and marked with ~), 128 x 2048
random tokens, 2:4. Random weights and tokens cost what real ones do: nothing here depends on their
values.

    seconds     of the call `secateur.prune` on the model in memory; making it is left out
    whole       the same for all blocks of the model
    share       of the GPU's rate of multiplying bfloat16 matrices of 8192 x 8192, measured before
                every run: operations (`flops.py`) over seconds over that rate
    its shapes  the same of the rate at the model's own matrices, 8192 tokens at a time
    peak        memory allocated on the GPU at its highest, the model included

Each run is predicted from those before, and left out if --minutes would not suffice; the JSON is
written anew after each. GBLM keeps the blocks' inputs on the GPU where they take less than 60 % of
what is free, and its gradients in a temporary folder: 4 bytes per weight, 26 GB for 7B.

A method is METHOD, METHOD:SCHEDULE or METHOD:EFFORT.

The estimate tells operations by phase (`flops.py`), and the least that they take. "One precision"
takes every product at the bfloat16 rate, and "statistics apart" those of Hessians and of single
sequences' gradients at the float32 rate; solves are float32 in both, but for the iterations of
ALPS, which are TF32. "A core" is one of a CPU, at its float32 rate.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import floor
import plots
import results
import torch
from flops import PHASES, STATISTICS, Count, Shapes, by_phase
from rate import once, rates
from transformers import AutoModelForCausalLM, LlamaConfig

from secateur.recipe import Recipe

TERA, PETA, GB = 1e12, 1e15, 1e9
GUESS = 0.35
"""Share of the matrix rate that is expected before anything was measured."""
METHODS = (
    "wanda", "wanda:matrix", "sparsegpt", "gblm", "wanda++:fast", "wanda++", "alps", "alps-ro:fast",
)  # fmt: skip
TARGETS = {
    ("7b", "wanda"): 12,
    ("7b", "sparsegpt"): 35,
    ("7b", "gblm"): 65,
    ("7b", "wanda++:fast"): 55,
    ("7b", "wanda++"): 120,
    ("7b", "alps"): 90,
    ("7b", "alps-ro:fast"): 120,
}
"""Seconds on an H100; `wanda++` is effort balanced."""


def llama(width: int, wide: int, blocks: int, heads: int, shared: int, words: int) -> LlamaConfig:
    """A configuration of Llama's."""
    return LlamaConfig(
        hidden_size=width,
        intermediate_size=wide,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        vocab_size=words,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )


MODELS = {
    "7b": llama(4096, 11008, 32, 32, 32, 32000),
    "8b": llama(4096, 14336, 32, 32, 8, 128256),
    "70b": llama(8192, 28672, 80, 64, 8, 128256),
}
TINY = {
    "7b": llama(64, 160, 4, 4, 4, 128),
    "8b": llama(64, 192, 4, 4, 2, 256),
    "70b": llama(128, 384, 8, 8, 2, 256),
}
MEASURED = {"7b": 32, "8b": 4, "70b": 2}
"""Blocks of each that are pruned; of the tiny ones two."""


@dataclass(frozen=True)
class Run:
    """One method on one model."""

    model: str
    method: str
    blocks: int
    of_blocks: int
    seconds: float
    phases: dict[str, float]
    parts: dict[str, float]
    rate: float
    rate_shaped: float
    peak: int

    @property
    def whole(self) -> float:
        """Seconds for all blocks."""
        return self.seconds * self.of_blocks / self.blocks

    @property
    def flops(self) -> float:
        return sum(self.parts.values())

    def share(self, rate: float) -> float:
        return self.flops / self.seconds / rate


def main() -> None:
    options = parse()
    results.check(options)
    if options.estimate:
        text = estimate(options).markdown()
        print(text)
        if options.markdown is not None:
            results.put(options.markdown, "gpu-estimate", text)
        return
    if not options.tiny and not torch.cuda.is_available():
        sys.exit("there is no GPU here: --tiny tries the script, --estimate computes the floor")
    device = torch.device("cpu" if options.tiny else "cuda")
    found = results.facts(device)
    began = time.perf_counter()
    runs: list[Run] = []
    left_out: list[str] = []
    for model in options.models:
        for method in options.methods:
            left = 60 * options.minutes - (time.perf_counter() - began)
            needed = predicted(runs, model, method, options)
            if needed > left:
                left_out.append(f"{model} {method}, about {needed:.0f} s")
                continue
            runs.append(measure(model, method, device, options))
            print(f"{model} {method}: {runs[-1].seconds:.2f} s", file=sys.stderr, flush=True)
            results.save("gpu", options, found, numbers(runs, left_out))
    said = (
        f"{options.samples} x {options.sequence_length} tokens, bfloat16, 2:4, random weights"
        f"{' of tiny shapes, on the CPU: these are no timings' if options.tiny else ''}."
    )
    if left_out:
        said += f" Left out for want of time: {'; '.join(left_out)}."
    results.report(
        "gpu", options, found, [table(runs, said), phases(runs)], numbers(runs, left_out)
    )
    if options.plot is not None:
        draw(runs, options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--methods", nargs="+", default=METHODS, metavar="METHOD[:WORD]")
    parser.add_argument("--blocks", type=int, help="of every model; none: 32, 4 and 2")
    parser.add_argument("--samples", type=int, help="none: 128")
    parser.add_argument("--sequence-length", type=int, help="none: 2048")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, on the CPU")
    parser.add_argument("--estimate", action="store_true", help="compute and measure nothing")
    parser.add_argument("--rate", type=float, default=700, help="bfloat16 TFLOP/s of an estimate")
    parser.add_argument("--float32-rate", type=float, default=50, help="the same of float32")
    parser.add_argument("--tf32-rate", type=float, default=400, help="the same of TF32")
    parser.add_argument("--core-rate", type=float, default=0.09, help="a core's float32 TFLOP/s")
    results.add_options(parser)
    options = parser.parse_args()
    options.samples = options.samples or (8 if options.tiny else 128)
    options.sequence_length = options.sequence_length or (32 if options.tiny else 2048)
    return options


def configuration(model: str, options: argparse.Namespace, whole: bool = False) -> LlamaConfig:
    """Of what is pruned, or of the whole model."""
    config = (TINY if options.tiny else MODELS)[model]
    if whole:
        return config
    blocks = options.blocks or (2 if options.tiny else MEASURED[model])
    changed = {**config.to_dict(), "num_hidden_layers": min(blocks, config.num_hidden_layers)}
    return LlamaConfig(**changed)


def needed_parts(method: str, config: LlamaConfig, options: argparse.Namespace) -> dict[str, float]:
    """Operations of a method with its default settings."""
    recipe = Recipe.build(
        {"model": "-", "calibration": "tokens", **floor.recipe_options(method)}
    ).spelled_out()
    shapes = Shapes.of(config)
    return floor.operations(recipe, shapes, options.samples, options.sequence_length)


def predicted(runs: Sequence[Run], model: str, method: str, options: argparse.Namespace) -> float:
    """Seconds that a run will take, as far as one can tell from those before."""
    if not runs:
        return 0.0
    alike = [run for run in runs if run.method == method] or list(runs)
    last = alike[-1]
    share = last.share(last.rate) if last.method == method else GUESS
    needed = sum(needed_parts(method, configuration(model, options), options).values())
    return needed / (share * last.rate) + 5


def measure(model: str, method: str, device: torch.device, options: argparse.Namespace) -> Run:
    """Make a model on the device, prune it, let it go."""
    config, dtype = configuration(model, options), torch.bfloat16
    shapes = Shapes.of(config)
    rows, side = (256, 256) if options.tiny else (8192, 8192)
    rate = rates(shapes, rows, device, dtype, least=0.3, side=side)
    torch.manual_seed(0)
    with torch.device(device):
        made = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    generator = torch.Generator().manual_seed(0)
    shape = (options.samples, options.sequence_length)
    tokens = torch.randint(3, config.vocab_size, shape, generator=generator)
    more = {}
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        inputs = shapes.blocks * tokens.numel() * config.hidden_size * dtype.itemsize
        if method.partition(":")[0] == "gblm":
            fits = inputs < 0.6 * torch.cuda.mem_get_info()[0]
            more["block_inputs"] = "memory" if fits else "disk"
    records: list[Any] = []
    seconds = once(lambda: records.append(floor.prune(made, method, tokens, "2:4", **more)), device)
    (record,) = records
    if not 0.499 < record.sparsity < 0.501:
        sys.exit(f"{model} {method}: {record.sparsity:.2%} of the weights are zero, not half")
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else record.peak_memory_bytes
    return Run(
        model=model,
        method=method,
        blocks=config.num_hidden_layers,
        of_blocks=configuration(model, options, whole=True).num_hidden_layers,
        seconds=seconds,
        phases=floor.phases(seconds, [block.seconds for block in record.blocks]),
        parts=floor.operations(record.recipe, shapes, *shape),
        rate=rate.square,
        rate_shaped=rate.shaped,
        peak=peak,
    )


def numbers(runs: Sequence[Run], left_out: Sequence[str]) -> dict[str, Any]:
    """For the JSON."""
    return {
        "runs": [{**asdict(run), "whole": run.whole, "share": run.share(run.rate)} for run in runs],
        "left_out": list(left_out),
    }


def table(runs: Sequence[Run], said: str) -> results.Table:
    rows = [
        (
            f"{run.model}, {run.method}", f"{run.blocks} of {run.of_blocks}", f"{run.seconds:.1f}",
            f"{'' if run.blocks == run.of_blocks else '~'}{run.whole:.0f}",
            str(TARGETS.get((run.model, run.method), "")), f"{run.flops / TERA:.4g}",
            f"{run.rate / TERA:.4g}", f"{run.share(run.rate):.0%}",
            f"{run.share(run.rate_shaped):.0%}", f"{run.peak / GB:.1f}",
        )
        for run in runs
    ]  # fmt: skip
    heads = (
        "", "blocks", "seconds", "whole (s)", "target (s)", "TFLOP", "TFLOP/s", "share",
        "its shapes", "peak (GB)",
    )  # fmt: skip
    return results.Table(said, heads, rows)


def phases(runs: Sequence[Run]) -> results.Table:
    shown = [p for p in floor.PHASES if any(round(run.phases[p], 2) for run in runs)]
    rows = [
        (f"{run.model}, {run.method}", *(f"{run.phases[phase]:.2f}" for phase in shown))
        for run in runs
    ]
    return results.Table("Seconds by phase:", ("", *shown), rows)


def estimate(options: argparse.Namespace) -> results.Table:
    """The floor of whole models at stated rates."""
    rows = []
    for model in options.models:
        config = configuration(model, options, whole=True)
        one = Count(Shapes.of(config), options.samples, options.sequence_length)
        for method in options.methods:
            parts = needed_parts(method, config, options)
            total, phase = sum(parts.values()), by_phase(parts)
            passes = total / (one.forward * config.num_hidden_layers)
            rows.append(
                (
                    f"{model}, {method}",
                    *(f"{phase[name] / PETA:.2f}" if name in phase else "" for name in PHASES),
                    f"{total / PETA:.2f}", f"{passes:.2f}",
                    *(f"{at(parts, options, apart):.0f}" for apart in (False, True)),
                    f"{total / (TERA * options.core_rate) / 3600:.0f}",
                    str(TARGETS.get((model, method), "")),
                )
            )  # fmt: skip
    said = (
        f"**An estimate; nothing was measured.** {options.samples} x {options.sequence_length}"
        f" tokens, PFLOP by phase; at {options.rate:g} TFLOP/s in bfloat16,"
        f" {options.tf32_rate:g} in TF32 and {options.float32_rate:g} in float32, which is what one"
        f" may hope for of an H100, and at {options.core_rate:g} of a core."
    )
    heads = (
        "", *PHASES, "PFLOP", "passes", "one precision (s)", "statistics apart (s)", "a core (h)",
        "target (s)",
    )  # fmt: skip
    return results.Table(said, heads, rows)


def at(parts: Mapping[str, float], options: argparse.Namespace, apart: bool) -> float:
    """Seconds at the stated rates."""
    slower = dict.fromkeys({"solve", *(STATISTICS if apart else ())}, options.float32_rate)
    slower["fit"] = options.tf32_rate
    return sum(
        operations / (TERA * slower.get(part, options.rate)) for part, operations in parts.items()
    )


def draw(runs: Sequence[Run], options: argparse.Namespace) -> None:
    plots.stacked(
        options.plot,
        "Seconds for all blocks, by phase",
        [f"{run.model}, {run.method}" for run in runs],
        {
            phase: [run.phases[phase] * run.of_blocks / run.blocks for run in runs]
            for phase in floor.PHASES
            if any(round(run.phases[phase], 2) for run in runs)
        },
    )


if __name__ == "__main__":
    main()
