"""Does peak memory depend on the depth of the model? It must not: one block at a time is the point.

    python benchmarks/memory.py --method wanda++ --width 512 --blocks 8 16 32
    python benchmarks/memory.py --method shortgpt --pattern blocks-25% --mend
    python benchmarks/memory.py --method replacement --pattern experts-25% --experts 8

Random Llama checkpoints of growing depth (Qwen3-MoE with --experts) are pruned, each in a fresh
process, with the same calibration tokens. Measured is the process's own high-water mark of resident
memory, VmHWM in /proc/self/status (Linux). It counts mapped pages of files too, so a reader that
kept the whole checkpoint mapped would show. getrusage's ru_maxrss is no good here: a child starts
with its parent's mark.

    baseline      peak of a process that imports what a run needs and opens nothing
    weights       all weights on disk, bfloat16
    block         one block in the computing precision, float32
    activations   hidden states of all sequences, and the dense block's outputs beside them
    search        hidden states that a search among blocks says it holds (pruning/estimate.py)
    above         peak - baseline

What an allocator makes of freed memory differs from run to run by some per cent; --repeats takes
the least of several. Exit status 1 if a step from one depth to the next raises the peak by more
than 10 %, beyond what a search says: the activations are the same at every depth, so nothing else
has a reason to grow.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MOST_GROWTH = 0.10
MB = 1e6

MEASURE = """
def high_water():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
"""
BASELINE = f"""
import secateur
secateur.prune  # imports what a run needs
{MEASURE}
print(high_water())
"""
PRUNE = f"""
import json, sys
import secateur
{MEASURE}
options = json.loads(sys.argv[1])
run = secateur.prune(**options)
assert run.streamed
assert run.lost or abs(run.sparsity - 0.5) < 1e-3, run.sparsity
print(json.dumps([high_water(), run.seconds]))
"""


@dataclass(frozen=True)
class Row:
    """One depth; bytes and seconds."""

    blocks: int
    weights: int
    block: int
    activations: int
    search: int
    peak: int
    above: int
    seconds: float


def main() -> int:
    """Measure, print, judge."""
    options = parse()
    baseline = int(run_python(BASELINE))
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        tokens = make_tokens(Path(folder), options.samples, options.sequence_length)
        for blocks in options.blocks:
            rows.append(measure(options, blocks, tokens, baseline))
            print(f"pruned {blocks} blocks in {rows[-1].seconds:.1f} s", file=sys.stderr)
    print_table(options, baseline, rows)
    grown = False
    for a, b in itertools.pairwise(rows):
        verb = "doubling" if b.blocks == 2 * a.blocks else "changing"
        growth, added = b.peak - a.peak, b.weights - a.weights
        grown |= (growth - (b.search - a.search)) / a.peak > MOST_GROWTH
        print(
            f"{verb} the blocks {a.blocks} -> {b.blocks} changes peak memory by"
            f" {100 * growth / a.peak:.1f} % ({growth / MB:+.0f} MB;"
            f" the weights grew by {added / MB:.0f} MB)"
        )
    than = " more than its search says" if rows[-1].search > rows[0].search else ""
    print(f"memory {'grows' if grown else 'does not grow'} with depth{than}")
    if options.json is not None:
        facts = {"baseline": baseline, "grown": grown, "rows": [asdict(row) for row in rows]}
        settings = {k: v for k, v in vars(options).items() if k not in ("json", "folder")}
        options.json.write_text(json.dumps({**settings, **facts}, indent=2) + "\n")
    return int(grown)


def parse() -> argparse.Namespace:
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--method", default="wanda++")
    parser.add_argument("--pattern", default="2:4", help="such as blocks-25%% or experts-25%%")
    parser.add_argument("--mend", action="store_true", help="with the regional optimiser")
    parser.add_argument("--experts", type=int, help="a mixture of so many in every block")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--blocks", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=1, help="of the regional optimiser")
    parser.add_argument("--repeats", type=int, default=3, help="take the least peak of so many")
    parser.add_argument("--folder", type=Path, help="for the checkpoints, removed afterwards")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    return parser.parse_args()


def measure(options: argparse.Namespace, blocks: int, tokens: Path, baseline: int) -> Row:
    """Make a model of this depth, prune it in a process of its own, remove both."""
    with tempfile.TemporaryDirectory(dir=tokens.parent) as folder:
        source, out = Path(folder) / "dense", Path(folder) / "sparse"
        block = make_checkpoint(options, source, blocks)
        arguments: dict[str, Any] = {
            "model": str(source),
            "out": str(out),
            "method": options.method,
            "pattern": options.pattern,
            "calibration": str(tokens),
            "samples": options.samples,
            "sequence_length": options.sequence_length,
            "device": "cpu",
        }
        if options.method == "gblm":
            arguments["block_inputs"] = "disk"  # in memory they are activations that add up
        if options.mend:
            arguments["mend"] = True
        if options.mend or options.method in ("wanda++", "wanda++-ro"):
            arguments["regional"] = {"rounds": options.rounds}
        peak, seconds = sys.maxsize, 0.0
        for _ in range(options.repeats):
            measured = json.loads(run_python(PRUNE, json.dumps({**arguments, "overwrite": True})))
            peak, seconds = min(peak, measured[0]), measured[1]
        return Row(
            blocks=blocks,
            weights=sum(path.stat().st_size for path in source.glob("*.safetensors")),
            block=block,
            activations=2 * options.samples * options.sequence_length * options.width * 4,
            search=4 * options.width * searched(arguments, blocks),
            peak=peak,
            above=peak - baseline,
            seconds=seconds,
        )


def searched(arguments: dict[str, Any], blocks: int) -> int:
    """Tokens whose hidden states a run holds to choose among blocks, as its estimate has it."""
    from secateur.pruning.estimate import searching
    from secateur.recipe import Recipe
    from secateur.recipe.plan import plan_of

    recipe = Recipe.build({key: value for key, value in arguments.items() if key != "out"})
    return searching(plan_of(recipe), blocks, recipe.samples * recipe.sequence_length)


def run_python(code: str, *arguments: str) -> str:
    """What a fresh process prints; its errors go to ours."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return done.stdout


def make_checkpoint(options: argparse.Namespace, folder: Path, blocks: int) -> int:
    """A random model in bfloat16; the bytes of one of its blocks in float32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    width, experts = options.width, options.experts
    kind, mixture = "llama", {}
    if experts is not None:
        kind = "qwen3_moe"
        mixture = {
            "num_experts": experts,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": width // 2,
            "head_dim": 64,
        }
    config = AutoConfig.for_model(
        kind,
        vocab_size=1024,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 32 * 32,
        num_hidden_layers=blocks,
        num_attention_heads=max(1, width // 64),
        num_key_value_heads=max(1, width // 64),
        max_position_embeddings=options.sequence_length,
        tie_word_embeddings=False,
        **mixture,
    )
    model = AutoModelForCausalLM.from_config(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    return 4 * sum(p.numel() for p in model.model.layers[0].parameters())


def make_tokens(folder: Path, samples: int, length: int) -> Path:
    """The calibration tokens that all runs share."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    path = folder / "tokens.safetensors"
    save_file({"input_ids": torch.randint(0, 1024, (samples, length), generator=generator)}, path)
    return path


def print_table(options: argparse.Namespace, baseline: int, rows: list[Row]) -> None:
    print(
        f"{options.method}{' mended' if options.mend else ''}, {options.pattern},"
        f" width {options.width}, {options.samples} sequences of"
        f" {options.sequence_length} tokens; MB; baseline {baseline / MB:.0f} MB"
    )
    heads = ["blocks", "weights", "block", "activations", "search", "peak", "above"]
    heads += ["above first", "seconds"]
    print("  ".join(f"{head:>11}" for head in heads))
    for row in rows:
        cells = [
            str(row.blocks),
            *(f"{v / MB:.1f}" for v in (row.weights, row.block, row.activations, row.search)),
            *(f"{v / MB:.1f}" for v in (row.peak, row.above)),
            f"{(row.above - rows[0].above) / rows[0].above:+.1%}",
            f"{row.seconds:.1f}",
        ]
        print("  ".join(f"{cell:>11}" for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
