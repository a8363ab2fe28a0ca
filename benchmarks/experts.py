"""What does removing experts cost a trained mixture, and which method costs least?

    python benchmarks/experts.py CALIBRATION HELD_OUT [--model benchmarks/mixture] [--seeds 0 1 2]

`benchmarks/mixture/` is a Qwen3-MoE of 5 M parameters, trained on books (its README is its card).
Every method removes the experts of every pattern, in memory nothing but a block, and perplexity and
divergence are measured on the held-out text; a seed draws the calibration. `chance` is no method
but what all must beat: experts drawn at random, by the seed. What is left has had no training.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

import secateur
from secateur.methods import Routing, every_remover
from secateur.methods.base import remove

MIXTURE = Path(__file__).parent / "mixture"
CHANCE = "chance"


@remove(CHANCE, "of_routing", paper="https://arxiv.org/abs/0000.00000")
def chance(routing: Routing) -> Tensor:
    """Experts drawn at random."""
    return torch.rand(len(routing.tokens))


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("calibration", help="as `secateur prune --calibration` takes it")
    words.add_argument("held_out", help="as `secateur prune --text` takes it")
    words.add_argument("--model", type=Path, default=MIXTURE)
    words.add_argument(
        "--methods", nargs="+", default=[one.name for one in every_remover("experts")]
    )
    words.add_argument("--patterns", nargs="+", default=["experts-1", "experts-25%", "experts-50%"])
    words.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    words.add_argument("--samples", type=int, default=32)
    words.add_argument("--sequence-length", type=int, default=512)
    words.add_argument("--windows", type=int, default=64)
    asked = words.parse_args()
    print("| pattern | method | perplexity, mean (lowest to highest) | divergence | seconds |")
    print("|---|---|---:|---:|---:|")
    for pattern in asked.patterns:
        for method in asked.methods:
            perplexities, divergences, seconds = [], [], []
            for seed in asked.seeds:
                torch.manual_seed(seed)
                with tempfile.TemporaryDirectory() as folder:
                    began = time.monotonic()
                    run = secateur.prune(
                        asked.model,
                        method=method,
                        pattern=pattern,
                        out=Path(folder) / "out",
                        calibration=asked.calibration,
                        text=asked.held_out,
                        samples=asked.samples,
                        sequence_length=asked.sequence_length,
                        windows=asked.windows,
                        seed=seed,
                    )
                    seconds.append(time.monotonic() - began)
                (measured,) = run.evaluations
                perplexities.append(measured.perplexity)
                divergences.append(measured.divergence)
            spread = f"{min(perplexities):.2f} to {max(perplexities):.2f}"
            print(
                f"| {pattern} | `{method}` | {mean(perplexities):.2f} ({spread})"
                f" | {mean(divergences):.4f} | {mean(seconds):.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
