"""Hash every result: what must not change when the code is only moved or renamed.

    python benchmarks/bits.py --out before.json                  on one version
    python benchmarks/bits.py --out after.json --against before.json     on another

Prunes the bundled model and a tiny random mixture of experts with every method, at 2:4 and at 50 %,
by both schedules: from disk, in memory, and from disk after the process was killed in the middle
and the same call was made again. Of every result it keeps one SHA-256 over name, dtype, shape and
bytes of all tensors. Uses nothing but the public functions, so that it runs on any version; the
numbers hold for one machine, one torch and one number of threads. Exit status 1 if any differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3MoeConfig

import secateur
from secateur import methods

PATTERNS = ("2:4", "50%")
OPTIONS: dict[str, Any] = {
    "calibration": "builtin", "samples": 8, "sequence_length": 64, "batch_size": 2,
}  # fmt: skip
KILLED_AFTER = 1
"""Finished blocks of a run that is killed."""
KILLED = 9


class KilledAfter:
    """Ends the process, as a kill does, once so many blocks of the pruning itself are done."""

    def __init__(self, blocks: int, work: str) -> None:
        self._left, self._work, self._now = blocks, work, ""

    def __enter__(self) -> KilledAfter:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""

    def begin(self, what: str, total: int) -> None:
        """Remember whether this is the pruning."""
        self._now = what

    def tick(self, phase: str, done: int, total: int) -> None:
        """End the process in the block after the last one that was to be finished."""
        if self._left < 0 and self._now == self._work:
            os._exit(KILLED)

    def block(self, **facts: Any) -> None:
        """Count."""
        if self._now == self._work:
            self._left -= 1
            if self._left < 0 and self._work.startswith("magnitude"):  # it has no steps to be told
                os._exit(KILLED)

    def notice(self, text: str) -> None:
        """Say nothing."""


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over every tensor's name, dtype, shape and bytes."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().contiguous()
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.view(torch.uint8).numpy().tobytes() if value.dim() else bytes(value))
    return total.hexdigest()


def digest_of_folder(folder: Path) -> str:
    """The same of all weights of a folder."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return digest(tensors)


def make_mixture(folder: Path) -> None:
    """A random mixture of experts that reads the bundled model's tokens."""
    bundled = secateur.load("builtin")
    config = Qwen3MoeConfig(
        vocab_size=bundled.config.vocab_size, hidden_size=64, intermediate_size=96,
        moe_intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, head_dim=16,
        max_position_embeddings=256, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    source = Path(secateur.__file__).parent / "bundled" / "llama-stdlib"
    for path in source.glob("tokenizer*"):
        (folder / path.name).write_bytes(path.read_bytes())


def cases() -> list[tuple[str, str, str]]:
    """Method, pattern and schedule of every run."""
    by_block = {"wanda++-rgs", "wanda++-ro", "wanda++", "alps-ro"}
    return [
        (method.name, pattern, schedule)
        for method in methods.every()
        for pattern in PATTERNS
        for schedule in ("block", "matrix")
        if schedule == "block" or method.name not in by_block
    ]


def options_of(method: str) -> dict[str, Any]:
    """The options of a run; the least effort of a method that has any."""
    refines = methods.get(method).refine is methods.Refine.REGIONAL
    return {**OPTIONS, "effort": "fast"} if refines else OPTIONS


def prune_to(model: str, case: tuple[str, str, str], out: Path, progress: Any = None) -> None:
    """Prune from disk to disk."""
    method, pattern, schedule = case
    secateur.prune(
        model, method=method, pattern=pattern, schedule=schedule, out=out, progress=progress,
        **options_of(method),
    )  # fmt: skip


def in_memory(model: str, case: tuple[str, str, str]) -> str:
    """The hash of a model that was pruned in place."""
    method, pattern, schedule = case
    whole: PreTrainedModel = secateur.load(model)
    tokens = torch.randint(0, 256, (8, 64), generator=torch.Generator().manual_seed(1))
    options = {**options_of(method), "calibration": tokens}
    secateur.prune(whole, method=method, pattern=pattern, schedule=schedule, **options)
    return digest(whole.state_dict())


def hashes(model: str, name: str, work: Path) -> dict[str, str]:
    """By case and way the hash of the result."""
    found = {}
    for case in cases():
        label = " ".join((name, *case))
        straight, again = work / "straight", work / "again"
        prune_to(model, case, straight)
        found[f"{label} disk"] = digest_of_folder(straight)
        request = json.dumps([model, case, str(again)])
        command = [sys.executable, __file__, "--killed", request]
        status = subprocess.run(command, check=False).returncode
        if status != KILLED:
            raise SystemExit(f"{label}: the run was to be killed, and ended with {status}")
        prune_to(model, case, again)
        found[f"{label} resumed"] = digest_of_folder(again)
        found[f"{label} memory"] = in_memory(model, case)
        for folder in (straight, again):
            subprocess.run(["rm", "-r", str(folder)], check=True)
        print(label, *(found[f"{label} {way}"][:12] for way in ("disk", "resumed", "memory")),
              flush=True)  # fmt: skip
    return found


def main() -> None:
    """Hash, write, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file for the hashes")
    parser.add_argument("--against", type=Path, help="JSON file of another version")
    parser.add_argument("--killed", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.killed is not None:
        model, case, out = json.loads(asked.killed)
        killer = KilledAfter(KILLED_AFTER, f"{case[0]} {case[1]}")
        prune_to(model, tuple(case), Path(out), killer)
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_mixture(work / "mixture")
        found = hashes("builtin", "llama", work) | hashes(str(work / "mixture"), "mixture", work)
    if asked.out is not None:
        asked.out.write_text(json.dumps(found, indent=1) + "\n")
    if asked.against is not None:
        before = json.loads(asked.against.read_text())
        differing = [label for label in before if found.get(label) != before[label]]
        print(f"{len(before) - len(differing)} of {len(before)} hashes are the same")
        for label in differing:
            print(f"differs: {label}")
        sys.exit(bool(differing))


if __name__ == "__main__":
    main()
