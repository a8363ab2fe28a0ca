"""Secateur beside llm-compressor: the same model, tokens, precision and threads, in turn.

    python benchmarks/peers.py [--cache FOLDER] [--repeats 3]
    python benchmarks/peers.py --model builtin --calibration builtin --text builtin
    python benchmarks/peers.py --model FOLDER --calibration valid.txt --text test.txt --repeats 1

llm-compressor 0.14 and Secateur are each installed into a virtual environment of their own under
--cache, with the same build of torch as here; pip is asked first what it would install, and nothing
is if that holds CUDA's libraries. By default the model is a random Llama, made with a fixed seed;
with --model it is any folder (`real_models.py` fetches two), and the perplexities mean something.
Both get the same file of tokens, whose windows begin as `secateur prune` would begin them; the
results stand in a section of the page that bears the model's name.

Every run is a process of its own (`one_shot.py`, which also says how llm-compressor is called),
all in turn, as often as --repeats says: A B C A B C. Medians of

    prune       seconds of the call that prunes the model in memory
    cores       seconds that all cores worked on it: where a machine does other work meanwhile, a
                better measure than the clock, though threads that wait for each other count too
    whole       seconds of the process: start, load, prune, save
    peak        resident memory at the end of the call, its highest mark

each also as a share of llm-compressor's; then, of the first round's results,

    same        share of weights that both keep or both prune
    in block 0  the same share in the first block, where both see the same inputs: later blocks see
                what the pruned ones before them make, and one tie of scores that rounding turns
                over in one of them turns over more in each that follows
    perplexity  on held-out windows, measured by Secateur for all of them

A method is METHOD or METHOD:SCHEDULE. llm-compressor gets --batch-size sequences in a batch;
Secateur chooses for itself unless --own-batch-size says otherwise. --disk adds Secateur's usual
way, from disk to disk in the memory of one block, whose call reads and writes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peer_environment
import plots
import results
import torch
from floor import configuration
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import LlamaForCausalLM
from transformers.utils import logging

from secateur.checkpoint import locate, open_model
from secateur.checkpoint.model_facts import load_tokenizer
from secateur.data import Draw, load_calibration, load_heldout
from secateur.evaluation import EvaluationSettings
from secateur.evaluation.text import evaluate_text

PEER, OURS, DISK = "llm-compressor", "secateur", "secateur from disk"
STEPS = ("start", "load", "prune", "save", "end")


@dataclass(frozen=True)
class Way:
    """Who prunes, and by what."""

    program: str
    method: str

    @property
    def rival(self) -> Way:
        """The peer's run that this one is measured against."""
        return Way(PEER, self.method.partition(":")[0])


@dataclass(frozen=True)
class Agreement:
    """Share of weights that have the same fate in two results: of all, and of the first block's."""

    whole: float
    first: float


@dataclass(frozen=True)
class Inputs:
    """What all runs share: a model, a file of tokens, held-out windows [windows, tokens]."""

    model: Path
    tokens: Path
    shape: tuple[int, int]
    heldout: torch.Tensor
    said: str


def main() -> None:
    options = parse()
    results.check(options)
    logging.disable_progress_bar()
    pythons = {PEER: peer_environment.peer(options.cache)}
    pythons[OURS] = pythons[DISK] = peer_environment.own(options.cache)
    found = results.facts(torch.device("cpu"), options.threads)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        inputs = prepare(Path(name), options)
        ways = choose(options)
        runs: dict[Way, list[dict[str, Any]]] = {way: [] for way in ways}
        agreed: dict[Way, Agreement] = {}
        perplexity: dict[Way, float] = {}
        for number in range(options.repeats):
            for way in ways:
                out = Path(name) / f"{way.program} {way.method}"
                runs[way].append(run(way, pythons[way.program], inputs, out, options))
                print(
                    f"{number + 1}/{options.repeats} {way.program}, {way.method}:"
                    f" {runs[way][-1]['prune']:.2f} s",
                    file=sys.stderr,
                    flush=True,
                )
        names, first = prunable(inputs.model), prunable(inputs.model, block=0)
        for way in ways:
            own, rival = (Path(name) / f"{w.program} {w.method}" for w in (way, way.rival))
            agreed[way] = Agreement(same(own, rival, names), same(own, rival, first))
            text = inputs.heldout
            perplexity[way] = evaluate_text(
                EvaluationSettings(
                    model=str(own),
                    text="tokens in memory",
                    sequence_length=text.shape[1],
                    device="cpu",
                ),
                tokens=text,
            ).perplexity
    found["peer"] = runs[ways[0]][0]["versions"]
    theirs = ", ".join(f"{name} {number}" for name, number in found["peer"].items())
    table = compare(runs, agreed, perplexity, f"{inputs.said} The peer: {theirs}.")
    section = None if options.model is None else f"peers-{Path(options.model).name}"
    results.report("peers", options, found, [table], numbers(runs, agreed, perplexity), section)
    if options.plot is not None:
        draw(runs, options.plot)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path.home() / ".cache" / "secateur-peers",
        help="where the two environments are made once",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["wanda", "wanda:matrix", "sparsegpt", "sparsegpt:matrix"],
        metavar="METHOD[:SCHEDULE]",
    )
    parser.add_argument("--model", help="a folder, or builtin; none: a random Llama")
    parser.add_argument("--calibration", help="as for `secateur prune`; none: random tokens")
    parser.add_argument("--text", help="held-out text; none: random tokens")
    parser.add_argument("--width", type=int, default=768, help="of the random Llama")
    parser.add_argument("--blocks", type=int, default=6, help="of the random Llama")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--windows", type=int, default=16, help="of held-out text")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch-size", type=int, default=1, help="llm-compressor's sequences")
    parser.add_argument("--own-batch-size", type=int, help="Secateur's; none: it chooses")
    parser.add_argument("--disk", action="store_true", help="also from disk to disk")
    parser.add_argument("--folder", type=Path, help="for all files, removed afterwards")
    results.add_options(parser)
    return parser.parse_args()


def prepare(folder: Path, options: argparse.Namespace) -> Inputs:
    """The model, the calibration tokens and the held-out windows, on disk."""
    if options.model is None:
        config = configuration(options.width, options.blocks, options.sequence_length)
        torch.manual_seed(0)
        model = folder / "dense"
        LlamaForCausalLM(config).to(getattr(torch, options.dtype)).save_pretrained(model)
        said = f"A random Llama of {options.blocks} blocks x {options.width}"
    else:
        model = locate(options.model)
        said = Path(options.model).name
    vocabulary = open_model(model, torch.device("cpu"), None).model.config.vocab_size
    length = options.sequence_length
    generator = torch.Generator().manual_seed(0)

    def at_random(count: int) -> torch.Tensor:
        return torch.randint(3, vocabulary, (count, length), generator=generator)

    tokens, heldout = at_random(options.samples), at_random(options.windows)
    if options.calibration is not None:
        tokens = load_calibration(
            options.calibration, Draw(options.samples, length), tokenizer=load_tokenizer(model),
            vocabulary=vocabulary,
        ).input_ids  # fmt: skip
    if options.text is not None:
        heldout = load_heldout(
            options.text, tokenizer=load_tokenizer(model), sequence_length=length,
            windows=options.windows, vocabulary=vocabulary,
        ).input_ids  # fmt: skip
    file = folder / "tokens.safetensors"
    save_file({"input_ids": tokens.contiguous()}, file)
    said += (
        f", {len(tokens)} x {tokens.shape[1]} tokens, {options.dtype}, 2:4; perplexity on"
        f" {len(heldout)} windows of"
        f" {Path(options.text).name if options.text else 'random tokens'}; medians of"
        f" {options.repeats}."
    )
    return Inputs(model, file, (len(tokens), tokens.shape[1]), heldout, said)


def choose(options: argparse.Namespace) -> list[Way]:
    """Who runs, in order: of every method the peer, then Secateur's schedules."""
    ways: dict[Way, None] = {}
    for method in options.methods:
        ways[Way(OURS, method).rival] = None
        ways[Way(OURS, method)] = None
        if options.disk:
            ways[Way(DISK, method)] = None
    return list(ways)


def run(
    way: Way, python: Path, inputs: Inputs, out: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """One way, in a process of its own."""
    peer = way.program == PEER
    if way.program == DISK and out.exists():
        out.rename(out.with_name(f"{out.name} {time.monotonic_ns()}"))
    request = {
        "program": way.program,
        "method": way.method,
        "model": str(inputs.model),
        "tokens": str(inputs.tokens),
        "out": str(out),
        "dtype": options.dtype,
        "threads": options.threads,
        "batch_size": options.batch_size if peer else options.own_batch_size,
        "started": time.time(),
    }
    return ask(python, request)


def ask(python: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """One process of `one_shot.py`; what it says it took, and its seconds from outside."""
    code = Path(__file__).with_name("one_shot.py")
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(request["threads"]),
        "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    environment.pop("PYTHONPATH", None)  # each must see its own packages only
    began = time.perf_counter()
    done = subprocess.run(
        [str(python), str(code), json.dumps(request)],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    whole = time.perf_counter() - began
    if done.returncode:
        said = f"{request['program']}, {request['method']} failed:\n{done.stderr[-3000:]}"
        raise SystemExit(said)
    took: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    known = sum(took[step] for step in STEPS if step in took)
    return {**took, "end": max(0.0, whole - known), "whole": whole}


def prunable(model: Path, block: int | None = None) -> list[str]:
    """Names of the matrices within one block, or all of them."""
    source = open_model(model, torch.device("cpu"), None)
    blocks = source.blocks.path + ("." if block is None else f".{block}.")
    return [
        name
        for name, parameter in source.model.named_parameters()
        if name.startswith(blocks) and parameter.dim() == 2
    ]


def same(a: Path, b: Path, names: Sequence[str]) -> float:
    """Share of weights that have the same fate in two results."""
    if a == b:
        return 1.0
    ours, theirs = Weights(a), Weights(b)
    alike = total = 0
    for name in names:
        kept, other = ours.read(name) != 0, theirs.read(name) != 0
        alike += int((kept == other).sum())
        total += kept.numel()
    return alike / total


class Weights:
    """The tensors of a result, however they are split into files."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                self._files.update(dict.fromkeys(file.keys(), path))

    def read(self, name: str) -> torch.Tensor:
        """One tensor."""
        with safe_open(self._files[name], framework="pt") as file:
            return file.get_tensor(name)


COLUMNS = (("prune", 1, 2), ("prune_cpu", 1, 2), ("whole", 1, 2), ("peak", 1e6, 0))
"""What is measured, divided by what, with how many digits."""
Runs = Mapping[Way, Sequence[Mapping[str, Any]]]


def median(runs: Runs, way: Way, what: str) -> float:
    return statistics.median(run[what] for run in runs[way])


def compare(
    runs: Runs, agreed: Mapping[Way, Agreement], perplexity: Mapping[Way, float], said: str
) -> results.Table:
    rows = []
    for way in runs:
        cells = [f"{way.program}, {way.method}"]
        for what, scale, digits in COLUMNS:
            value, theirs = median(runs, way, what), median(runs, way.rival, what)
            cells += [f"{value / scale:.{digits}f}", f"{value / theirs:.2f}"]
        cells += [f"{100 * share:.3f} %" for share in (agreed[way].whole, agreed[way].first)]
        cells.append(f"{perplexity[way]:.3f}")
        rows.append(cells)
    heads = (
        "", "prune (s)", "ratio", "cores (s)", "ratio", "whole (s)", "ratio", "peak (MB)", "ratio",
        "same", "in block 0", "perplexity",
    )  # fmt: skip
    return results.Table(said, heads, rows)


def numbers(
    runs: Runs, agreed: Mapping[Way, Agreement], perplexity: Mapping[Way, float]
) -> dict[str, Any]:
    return {
        "runs": [
            {
                "program": way.program,
                "method": way.method,
                "taken": list(taken),
                "ratios": {
                    what: median(runs, way, what) / median(runs, way.rival, what)
                    for what, _, _ in COLUMNS
                },
                "same": agreed[way].whole,
                "same_in_block_0": agreed[way].first,
                "perplexity": perplexity[way],
            }
            for way, taken in runs.items()
        ]
    }


def draw(runs: Runs, path: Path) -> None:
    plots.stacked(
        path,
        "Seconds of a process",
        [f"{way.program}, {way.method}" for way in runs],
        {step: [median(runs, way, step) for way in runs] for step in STEPS},
    )


if __name__ == "__main__":
    main()
