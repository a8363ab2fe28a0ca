"""What does a crash cost? Runs are killed (SIGKILL) at random moments, and each is resumed.

    python benchmarks/faults.py --kills 50 --mischief 30 --methods wanda++ gblm sparsegpt

A random Llama checkpoint is pruned once by every method without interruption: the references. Then,
for every kill, the command `secateur prune` is run in a process of its own, killed after a random
part of its reference's time, and run again in another, to the end. The processes are forked from
this one, which has imported everything, so that the moments fall into the work. Checked is that

    every file of the result but run.json has the bits of the reference, and run.json its checksums
    the second process pruned only blocks that the first had not finished
    nothing but the result is left

and measured how much work the kill undid: the seconds since something was kept last. Before the
first block that is what the dense model has to do: its gradients (gblm), and held-out text. Then
comes the mischief of `mischief.py`: bits of source, shards and state are changed, the disk is full,
two runs want one folder. Exit status 1 if a check fails. With --json the figures of earlier calls
are added to, so that a long measurement can be made in parts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from mischief import Runs, Trial, do_mischief, judge_mischief

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"


@dataclass(frozen=True)
class Kill:
    """One crash; seconds.

    Attributes:
        method: of the run.
        moment: after the start of the process.
        before: whether the dense model was still at work: gradients, held-out text.
        finished: blocks that were finished by then.
        pruned: blocks that the second process pruned.
        undone: work that has to be done again.
        identical: whether the result has the bits of the reference.
        clean: whether nothing else was left.
    """

    method: str
    moment: float
    before: bool
    finished: int
    pruned: int
    undone: float
    identical: bool
    clean: bool


@dataclass(frozen=True)
class Reference:
    """A run that was not interrupted: its bits, its seconds, those of its longest block."""

    files: dict[str, str]
    seconds: float
    starting: float
    longest_block: float


def main() -> int:
    """Measure, print, judge."""
    options = parse()
    chance = random.Random(options.seed)
    from secateur import cli  # noqa: F401 - before any process is forked

    kills: list[Kill] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        make_inputs(folder, options)
        references = {method: refer(folder, method, options) for method in options.methods}
        for method, reference in references.items():
            print(
                f"{method}: {reference.seconds:.1f} s in all, {reference.starting:.1f} s of them"
                f" before the first block; the longest block {reference.longest_block:.2f} s",
                flush=True,
            )
        for number in range(options.kills):
            method = options.methods[number % len(options.methods)]
            kills.append(crash(folder, method, references[method], options, chance))
            print(f"{number + 1:>3} {kills[-1]}", flush=True)
        trials = mischief(folder, references, options, chance)
    if options.json is not None:
        kills = add_up(options, kills)
    failed = judge_mischief(trials)
    if kills:
        longest = max(reference.longest_block for reference in references.values())
        failed |= judge(kills, options.blocks, longest)
    return failed


def mischief(
    folder: Path,
    references: dict[str, Reference],
    options: argparse.Namespace,
    chance: random.Random,
) -> list[Trial]:
    """All of it with the first method, and gradients where it needs them."""
    method, reference = next(iter(references.items()))

    def begin(out: Path, more: tuple[str, ...], told: str) -> BaseProcess:
        return start(folder, method, str(out), options, more, told)

    needed = sum(path.stat().st_size for path in (folder / f"reference-{method}").iterdir())
    runs = Runs(folder, begin, reference.files, checksums)
    return do_mischief(runs, options, needed, chance)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--mischief", type=int, default=30, help="trials beside the kills")
    parser.add_argument("--methods", nargs="+", default=["wanda++", "gblm", "sparsegpt"])
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="for all files, removed afterwards")
    parser.add_argument("--json", type=Path, help="add the kills to those in this file")
    return parser.parse_args()


def make_inputs(folder: Path, options: argparse.Namespace) -> None:
    """A random Llama, calibration and held-out tokens."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=options.width,
        intermediate_size=options.width * 8 // 3 // 32 * 32,
        num_hidden_layers=options.blocks,
        num_attention_heads=max(1, options.width // 64),
        max_position_embeddings=options.sequence_length,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "model")
    shape = (options.samples, options.sequence_length)
    for name in ("calibration", "heldout"):
        save_file({"input_ids": torch.randint(0, 1024, shape)}, folder / f"{name}.safetensors")


def start(
    folder: Path,
    method: str,
    out: str,
    options: argparse.Namespace,
    more: tuple[str, ...] = (),
    told: str = "told",
) -> BaseProcess:
    """The command, as a user would give it, with some options more."""
    command = [
        "secateur", "prune", str(folder / "model"), "--method", method,
        "--calibration", str(folder / "calibration.safetensors"), "--samples", str(options.samples),
        "--sequence-length", str(options.sequence_length), "--batch-size", "4",
        "--text", str(folder / "heldout.safetensors"), "--windows", "4",
        "--device", "cpu", "--out", str(folder / out), *more,
    ]  # fmt: skip
    process = multiprocessing.get_context("fork").Process(
        target=run_command, args=(command, folder / told)
    )
    process.start()
    return process


def run_command(command: list[str], told: Path) -> None:
    """In a process of its own: `secateur` with its standard error in a file."""
    from secateur import cli
    from secateur.cli import terminal

    terminal.out.quiet = True
    with told.open("w") as file:
        sys.argv, sys.stderr = command, file
        terminal.err.file = file
        cli.main()


def finish(process: BaseProcess, folder: Path) -> list[dict[str, Any]]:
    """The events of a process that must succeed."""
    process.join()
    told = (folder / "told").read_text()
    if process.exitcode:
        raise SystemExit(f"the command failed: {told}")
    return [json.loads(line) for line in told.splitlines()]


def refer(folder: Path, method: str, options: argparse.Namespace) -> Reference:
    """Run without interruption."""
    began = time.time()
    finish(start(folder, method, f"reference-{method}", options), folder)
    seconds = time.time() - began
    out = folder / f"reference-{method}"
    record = json.loads((out / "run.json").read_text())
    (stage,) = record["stages"]
    blocks = [sum(block["seconds"].values()) for block in stage["blocks"]]
    return Reference(checksums(out), seconds, seconds - sum(blocks), max(blocks))


def crash(
    folder: Path,
    method: str,
    reference: Reference,
    options: argparse.Namespace,
    chance: random.Random,
) -> Kill:
    """Start, kill, start again, compare."""
    out = folder / "out"
    state = folder / ".out.partial" / "state"
    while True:
        process = start(folder, method, out.name, options)
        moment = chance.uniform(0, reference.seconds)
        process.join(moment)
        if process.is_alive():
            break
        shutil.rmtree(out)  # it was over before: the machine has become faster
    process.kill()
    killed = time.time()
    process.join()
    kept = sorted(state.glob("block-*.json"))
    whole = [state / "gradients", state / "dense.safetensors", state / "identity.json"]
    times = [path.stat().st_mtime for path in [*kept, *whole] if path.exists()]
    undone = killed - max(times) if times else 0.0
    needed = whole[:2] if method == "gblm" else whole[1:2]
    before = not out.exists() and not all(path.exists() for path in needed)
    pruned = 0
    if not out.exists():
        events = finish(start(folder, method, out.name, options), folder)
        pruned = sum(event["event"] == "block" and "sparsity" in event for event in events)
    files = checksums(out)
    record = json.loads((out / "run.json").read_text())
    identical = files == reference.files == record["files"]
    left = {path.name for path in folder.iterdir()}
    clean = ".out.partial" not in left and not any(path.is_dir() for path in out.iterdir())
    shutil.rmtree(out)
    done = len(kept) if pruned or kept else options.blocks  # killed when all was written
    return Kill(method, moment, before, done, pruned, undone, identical, clean)


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the record."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != "run.json"
    }


def add_up(options: argparse.Namespace, kills: list[Kill]) -> list[Kill]:
    """These kills and those of earlier calls, written down."""
    path: Path = options.json
    earlier = json.loads(path.read_text()) if path.exists() else []
    both = [*(Kill(**facts) for facts in earlier), *kills]
    path.write_text(json.dumps([asdict(kill) for kill in both], indent=1) + "\n")
    return both


def judge(kills: list[Kill], blocks: int, longest: float) -> int:
    """Print the figures; 1 if a crash cost more than it may."""
    again = [kill.finished + kill.pruned - blocks for kill in kills]
    spread = [sum(kill.finished == n for kill in kills) for n in range(blocks + 1)]
    undone = sorted(kill.undone for kill in kills if not kill.before)
    before = sorted(kill.undone for kill in kills if kill.before)
    print(
        f"{len(kills)} kills; after 0 to {blocks} finished blocks: {', '.join(map(str, spread))}"
        f"\nidentical bits: {sum(kill.identical for kill in kills)}"
        f"\nnothing left:   {sum(kill.clean for kill in kills)}"
        f"\nfinished blocks that were pruned again: {sum(again)}"
        f"\nwork undone among the blocks ({len(undone)} kills):"
        f" median {undone[len(undone) // 2]:.2f} s, most {undone[-1]:.2f} s;"
        f" the longest block took {longest:.2f} s"
        f"\nwork undone before them ({len(before)} kills): most {max(before, default=0):.2f} s"
    )
    return int(not all(kill.identical and kill.clean for kill in kills) or any(again))


if __name__ == "__main__":
    sys.exit(main())
