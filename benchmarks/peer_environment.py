"""Virtual environments with llm-compressor and with Secateur, each with the torch that is here.

Each program so has what its own installation brings, and nothing else: what lies about in an
environment is imported by transformers, and takes memory and time.

pip is asked twice what it would do before it does it: whether this very build of torch needs
CUDA's libraries, and what all that the program needs would be. CUDA's libraries are gigabytes
that a comparison on the CPU has no use for; if there are any, nothing is installed. (nvidia-ml-py,
which llm-compressor names, is a small module that reads the state of GPUs.)
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import torch

PEER = "llmcompressor==0.14.*"
ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("nvidia-", "cuda-", "triton", "pytorch-triton")
HARMLESS = {"nvidia-ml-py"}


def peer(cache: Path) -> Path:
    """The Python of llm-compressor's environment."""
    return _ready(cache, PEER.rstrip(".*").replace("==", "-"), [PEER], "")


def own(cache: Path) -> Path:
    """The Python of this Secateur's environment; made anew when what it needs has changed."""
    needs = [(ROOT / name).read_text() for name in ("pyproject.toml", "constraints.txt")]
    name = "secateur-" + hashlib.sha256("".join([str(ROOT), *needs]).encode()).hexdigest()[:12]
    return _ready(cache, name, ["-e", str(ROOT)], needs[1])


def _ready(cache: Path, name: str, wanted: list[str], constraints: str) -> Path:
    """The Python of an environment with what is `wanted`; it is made if it is not there.

    Exits with a line if it cannot be made without CUDA's libraries.
    """
    pin = f"torch=={torch.__version__}"
    folder = cache.resolve() / f"{name}-{pin.replace('==', '-')}"
    python = folder / "bin" / "python"
    finished = folder / "finished"
    if finished.is_file():
        return python
    if torch.version.cuda is not None:
        sys.exit("torch here is built for CUDA: install with -c constraints.txt, for the CPU")
    print(f"making {folder}", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=True, clear=True)
    pins = folder / "constraints.txt"
    others = [line for line in constraints.splitlines() if not line.startswith("torch==")]
    pins.write_text("\n".join([pin, *others]) + "\n")
    pip = [str(python), "-m", "pip", "install", "--quiet", "-c", str(pins)]
    needed = [
        requirement
        for package in planned([*pip, "--no-deps", pin], folder)
        for requirement in package["metadata"].get("requires_dist", [])
        if "extra ==" not in requirement
    ]
    refuse(needed, pin)
    chosen = planned([*pip, pin, *wanted], folder)
    refuse([package["metadata"]["name"] for package in chosen], wanted[-1])
    done = subprocess.run([*pip, pin, *wanted], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{wanted[-1]} cannot be installed: {done.stderr.strip()[-1000:]}")
    finished.write_text("\n".join(sorted(map(_said, chosen))) + "\n")
    return python


def planned(command: list[str], folder: Path) -> list[dict[str, Any]]:
    """What pip would install; nothing is."""
    report = folder / "planned.json"
    done = subprocess.run(
        [*command, "--dry-run", "--ignore-installed", "--report", str(report)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"pip cannot resolve {command[-1]}: {done.stderr.strip()[-1000:]}")
    found: list[dict[str, Any]] = json.loads(report.read_text())["install"]
    return found


def refuse(names: list[str], what: str) -> None:
    """Exit if CUDA's libraries are among the requirements."""
    heavy = [name for name in names if name.startswith(HEAVY) and name.split()[0] not in HARMLESS]
    if heavy:
        sys.exit(f"{what} would bring {', '.join(heavy[:5])}: nothing is installed")


def _said(package: dict[str, Any]) -> str:
    return f"{package['metadata']['name']}=={package['metadata']['version']}"
