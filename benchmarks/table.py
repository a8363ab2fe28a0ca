"""The papers' table on any model: perplexity by method, pattern and seed.

    python benchmarks/table.py MODEL --calibration SOURCE --text HELDOUT [--also-text OTHER ...]
        [--methods wanda,wanda++] [--patterns 2:4,50%] [--seeds 0,1,2]
        [--samples 128] [--sequence-length 256] [--windows N] [--json FILE]

A seed chooses the calibration sequences and the optimiser's draws. Every finished run is a line of
FILE; runs that are already there are not repeated. `damage` is the share of Wanda's that a method
removes: (ppl_wanda - ppl) / (ppl_wanda - ppl_dense), at the same pattern and seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from transformers.utils import logging

import secateur
from secateur import methods, pipeline
from secateur.report.record import machine, now, versions


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--also-text", nargs="*", default=[])
    parser.add_argument("--methods", default=",".join(m.name for m in methods.every()))
    parser.add_argument("--patterns", default="2:4,50%")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--preset", default="auto")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--windows", type=int, default=None)
    parser.add_argument("--json", type=Path, default=Path("table.jsonl"))
    return parser.parse_args()


def measured(model: str, options: argparse.Namespace) -> dict[str, float]:
    """Perplexity on every text."""
    return {
        text: pipeline.evaluate(
            model, text, sequence_length=options.sequence_length, windows=options.windows
        ).perplexity
        for text in (options.text, *options.also_text)
    }


def run(method: str, pattern: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Prune once and measure."""
    with tempfile.TemporaryDirectory() as folder:
        record = secateur.prune(
            options.model, method=method, pattern=pattern, calibration=options.calibration,
            samples=options.samples, sequence_length=options.sequence_length, seed=seed,
            preset=options.preset, out=Path(folder) / "out",
        )  # fmt: skip
        return {
            "perplexity": measured(str(Path(folder) / "out"), options),
            "output_error": record.mean_output_error,
            "seconds": sum(sum(block.seconds.values()) for block in record.blocks),
            "sparsity": record.sparsity,
        }


def main() -> None:
    options = arguments()
    logging.disable_progress_bar()
    done: dict[str, dict[str, Any]] = {}
    if options.json.exists():
        lines = map(json.loads, options.json.read_text().splitlines())
        done = {line["key"]: line for line in lines}

    def once(key: str, work: Any) -> dict[str, Any]:
        if key not in done:
            import torch

            facts = {"when": now(), **machine(torch.device("cpu")), **versions()}
            done[key] = {"key": key, **work(), "facts": facts}
            with options.json.open("a") as file:
                file.write(json.dumps(done[key]) + "\n")
        return done[key]

    seeds = [int(seed) for seed in options.seeds.split(",")]
    dense = once("dense", lambda: {"perplexity": measured(options.model, options)})["perplexity"]
    texts = [options.text, *options.also_text]
    print("| method | pattern | " + " | ".join(Path(text).name for text in texts)
          + " | damage removed | output error | seconds |")  # fmt: skip
    print("|---|---|" + "---:|" * (len(texts) + 3))
    print("| dense | | " + " | ".join(f"{dense[text]:.2f}" for text in texts) + " | | | |")
    for pattern in options.patterns.split(","):
        runs = {
            method: [
                once(
                    f"{method} {options.preset} {pattern} {seed}",
                    lambda m=method, p=pattern, s=seed: run(m, p, s, options),
                )
                for seed in seeds
            ]
            for method in options.methods.split(",")
        }
        for method, found in runs.items():
            cells = [spread([r["perplexity"][text] for r in found], "{:.2f}") for text in texts]
            errors = spread([r["output_error"] for r in found], "{:.4f}")
            seconds = f"{statistics.median(r['seconds'] for r in found):.1f}"
            share = removed(found, runs.get("wanda"), options.text, dense[options.text])
            row = [method, pattern, *cells, share, errors, seconds]
            print("| " + " | ".join(row) + " |", flush=True)


def removed(
    found: list[dict[str, Any]], wanda: list[dict[str, Any]] | None, text: str, dense: float
) -> str:
    """The share of Wanda's damage that a method removes, seed by seed."""
    if wanda is None:
        return ""
    pairs = [
        (f["perplexity"][text], w["perplexity"][text]) for f, w in zip(found, wanda, strict=True)
    ]
    return spread(
        [100 * (before - after) / (before - dense) for after, before in pairs], "{:.0f} %"
    )


def spread(values: list[float], form: str) -> str:
    """Mean, and half the range if there are several."""
    mean = form.format(statistics.fmean(values))
    if len(values) == 1:
        return mean
    return f"{mean} ± {form.format((max(values) - min(values)) / 2)}"


if __name__ == "__main__":
    main()
