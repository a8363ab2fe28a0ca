"""What pruning costs a small ViT on real images: top-1 on scikit-learn's digits.

    python benchmarks/vision.py [--seeds 0 1 2] [--steps 400] [--samples 128]

For every seed a ViT of 4 blocks, 32 wide, is trained on 1200 digits of 16 x 16 pixels and measured
on the 597 others, which other people wrote. It is pruned by every method at 50 % and 2:4,
calibrated on `--samples` of the training images, which the seed draws as well. Top-1 in per cent,
mean and standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import torch

import secateur

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import digits

METHODS = ["magnitude", "wanda", "sparsegpt", "gblm", "wanda++-rgs", "wanda++-ro", "wanda++"]
PATTERNS = ["50%", "2:4"]


def top1(model: Path, images: Path) -> float:
    """In per cent."""
    found = secateur.evaluate(model, images=images).top1
    assert found is not None
    return 100 * found


def measure(seed: int, steps: int, samples: int, folder: Path) -> dict[tuple[str, str], float]:
    """Top-1 by pattern and method, the dense model's under ("", "dense")."""
    train = digits.write_images(folder / "train", slice(0, 1797 - digits.HELD_OUT))
    held_out = digits.write_images(folder / "held-out", slice(-digits.HELD_OUT, None))
    vit = digits.save(digits.train(seed, steps, num_hidden_layers=4), folder / f"vit-{seed}")
    scores = {("", "dense"): top1(vit, held_out)}
    for pattern in PATTERNS:
        for method in METHODS:
            out = folder / "pruned"
            secateur.prune(
                vit,
                method=method,
                pattern=pattern,
                images=str(train),
                samples=samples,
                seed=seed,
                out=out,
                overwrite=True,
            )
            scores[pattern, method] = top1(out, held_out)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--samples", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        found = [
            measure(seed, options.steps, options.samples, Path(scratch)) for seed in options.seeds
        ]
    print("| pattern | method | top-1 (%) | by seed |\n|---|---|---:|---|")
    for pattern, method in found[0]:
        scores = [scores[pattern, method] for scores in found]
        spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
        by_seed = ", ".join(f"{score:.1f}" for score in scores)
        print(f"| {pattern} | {method} | {statistics.fmean(scores):.1f}{spread} | {by_seed} |")


if __name__ == "__main__":
    main()
