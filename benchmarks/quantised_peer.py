"""The same 2:4 folder in four bits, by Secateur and by llm-compressor, judged by one ruler.

    python benchmarks/quantised_peer.py --model FOLDER --calibration valid.txt --text test.txt \\
        [--text FOLDER] [--cache FOLDER]

The model is pruned to 2:4 once (--method), or --pruned is such a folder. It is then quantised, with
the same token ids, precision, threads and grid (4 bits, symmetric, a scale for --group weights of a
row):

    second pass   by Secateur, `--pattern dense --quantize`, GPTQ and to the nearest (RTN)
    llm-compressor  GPTQModifier and QuantizationModifier, as `one_shot.py` calls them
    one sweep     by Secateur from the dense model, every block pruned and quantised in turn

Every result is a folder of compressed-tensors; `secateur check` counts its zeros and its groups of
four from the files, and `secateur evaluate` measures it on the same windows.

    seconds       from disk to disk: reading, the work, writing; a second pass without the pruning
    cores         seconds that all cores worked meanwhile
    2:4           whether every group of four has two zeros at least, in every matrix
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import peer_environment
import peers
import results
import torch
from safetensors.torch import save_file
from transformers.utils import logging

import secateur
from secateur.checkpoint.model_facts import load_tokenizer
from secateur.data import Draw, load_calibration, load_heldout

PATTERN = "2:4"


@dataclass
class Row:
    """One folder; `perplexity` by text, seconds None where nothing was timed."""

    name: str
    folder: Path
    seconds: float | None = None
    cores: float | None = None
    bytes: int = 0
    zeros: float = 0.0
    holds: bool = False
    perplexity: dict[str, float] = field(default_factory=dict)


def main() -> None:
    options = parse()
    results.check(options)
    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    python = peer_environment.peer(options.cache)
    found = results.facts(torch.device("cpu"), options.threads)
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        texts = prepare(Path(name), options)
        for row in made(Path(name), python, found, options):
            judge(row, texts, options)
            print(row, flush=True)
            rows.append(row)
    theirs = ", ".join(f"{name} {number}" for name, number in found["peer"].items())
    said = (
        f"{options.model.name}, {options.samples} x {options.sequence_length} tokens,"
        f" {options.dtype}, a scale for {options.group} weights; perplexity on {options.windows}"
        f" windows of {' and of '.join(texts)}. The peer: {theirs}."
    )
    heads = ["", "MB", "zeros", PATTERN, *texts, "seconds", "cores (s)"]
    cells = [
        [row.name, f"{row.bytes / 1e6:.1f}", f"{row.zeros:.2%}", "yes" if row.holds else "no",
         *(f"{value:.2f}" for value in row.perplexity.values()),
         *("" if taken is None else f"{taken:.0f}" for taken in (row.seconds, row.cores))]
        for row in rows
    ]  # fmt: skip
    numbers = {"rows": [{**asdict(row), "folder": row.folder.name} for row in rows]}
    results.report(
        "quantised_peer", options, found, [results.Table(said, heads, cells)], numbers,
        f"quantised-peer-{options.model.name}",
    )  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    cache = Path.home() / ".cache" / "secateur-peers"
    add("--cache", type=Path, default=cache, help="where llm-compressor is installed once")
    add("--model", type=Path, required=True, metavar="FOLDER")
    add("--pruned", type=Path, metavar="FOLDER", help="the model at 2:4; none: pruned here")
    add("--method", default="sparsegpt", help="that prunes")
    add("--calibration", required=True, help="as for `secateur prune`")
    add("--text", action="append", required=True, help="held out; may be given again")
    add("--samples", type=int, default=32)
    add("--sequence-length", type=int, default=512)
    add("--windows", type=int, default=24, help="of each text")
    add("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    add("--group", type=int, default=64, choices=[32, 64, 128])
    add("--threads", type=int, default=os.cpu_count())
    add("--folder", type=Path, help="for all files, removed afterwards")
    results.add_options(parser)
    return parser.parse_args()


def prepare(place: Path, options: argparse.Namespace) -> dict[str, Path]:
    """Write the calibration tokens; name -> file of the windows of every text."""
    tokenizer = load_tokenizer(options.model)
    draw = Draw(options.samples, options.sequence_length)
    tokens = load_calibration(options.calibration, draw, tokenizer=tokenizer).input_ids
    save_file({"input_ids": tokens.contiguous()}, place / "tokens.safetensors")
    texts = {}
    for number, text in enumerate(options.text):
        heldout = load_heldout(
            text, tokenizer=tokenizer, sequence_length=options.sequence_length,
            windows=options.windows,
        ).input_ids  # fmt: skip
        file = place / f"heldout-{number}.safetensors"
        save_file({"input_ids": heldout.contiguous()}, file)
        texts["/".join(Path(text).parts[-2:])] = file
    return texts


def made(
    place: Path, python: Path, found: dict[str, Any], options: argparse.Namespace
) -> Iterator[Row]:
    """Every folder, as it is done; the peer's versions go into `found`."""
    dense, pruned = options.model, options.pruned or place / "pruned"
    scheme, by_method = f"w4a16:g{options.group}", {"method": options.method, "pattern": PATTERN}
    yield Row("dense, 16 bits", dense)
    if options.pruned is None:
        yield ours(f"{PATTERN}, 16 bits", dense, pruned, options, **by_method)
    else:
        yield Row(f"{PATTERN}, 16 bits", pruned)
    for by in ("gptq", "rtn"):
        second = {"pattern": "dense", "quantize": scheme, "quantize_by": by}
        yield ours(f"second pass, {by}", pruned, place / f"ours-{by}", options, **second)
        request = {
            "program": peers.PEER, "method": by, "model": str(pruned), "group": options.group,
            "tokens": str(place / "tokens.safetensors"), "out": str(place / f"theirs-{by}"),
            "dtype": options.dtype, "threads": options.threads, "batch_size": 1,
            "started": time.time(),
        }  # fmt: skip
        took = peers.ask(python, request)
        found["peer"] = took["versions"]
        seconds, cores = (
            sum(took[step + what] for step in ("load", "prune", "save")) for what in ("", "_cpu")
        )
        yield Row(f"{peers.PEER}, {by}", Path(request["out"]), seconds, cores)
    if options.pruned is None:
        sweep = {**by_method, "quantize": scheme, "quantize_by": "gptq"}
        yield ours("one sweep, gptq", dense, place / "sweep", options, **sweep)


def ours(name: str, model: Path, out: Path, options: argparse.Namespace, **settings: Any) -> Row:
    """A run of Secateur from disk to disk."""
    began, worked = time.perf_counter(), time.process_time()
    if settings.get("quantize_by") != "rtn":  # which needs no text
        settings["calibration"] = out.parent / "tokens.safetensors"
        settings |= {"samples": options.samples, "sequence_length": options.sequence_length}
    secateur.prune(model, out=out, device="cpu", dtype=options.dtype, **settings)
    return Row(name, out, time.perf_counter() - began, time.process_time() - worked)


def judge(row: Row, texts: dict[str, Path], options: argparse.Namespace) -> None:
    """Fill in what the files say, and what the model makes of the texts."""
    row.bytes = sum(file.stat().st_size for file in row.folder.glob("*.safetensors"))
    proof = secateur.check(row.folder, pattern=PATTERN)
    row.zeros, row.holds = proof.zeros / proof.weights, bool(proof.holds)
    for name, file in texts.items():
        row.perplexity[name] = secateur.evaluate(
            row.folder, text=file, sequence_length=options.sequence_length, device="cpu",
            dtype=options.dtype,
        ).perplexity  # fmt: skip


if __name__ == "__main__":
    main()
