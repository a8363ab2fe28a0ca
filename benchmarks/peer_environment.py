"""A virtual environment with llm-compressor in it, made once, with the torch that is here.

pip is asked twice what it would do before it does it: whether this very build of torch needs
CUDA's libraries, and what all that llm-compressor needs would be. CUDA's libraries are gigabytes
that a comparison on the CPU has no use for; if there are any, nothing is installed. (nvidia-ml-py,
which llm-compressor names, is a small module that reads the state of GPUs.)
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import torch

PEER = "llmcompressor==0.14.*"
HEAVY = ("nvidia-", "cuda-", "triton", "pytorch-triton")
HARMLESS = {"nvidia-ml-py"}


def ready(cache: Path) -> Path:
    """The Python of the environment; it is made if it is not there.

    Exits with a line if it cannot be made without CUDA's libraries.
    """
    pin = f"torch=={torch.__version__}"
    folder = cache.resolve() / f"{PEER.rstrip('.*')} {pin}".replace("==", "-").replace(" ", "-")
    python = folder / "bin" / "python"
    finished = folder / "finished"
    if finished.is_file():
        return python
    if torch.version.cuda is not None:
        sys.exit("torch here is built for CUDA: install with -c constraints.txt, for the CPU")
    print(f"making {folder}", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=True, clear=True)
    pins = folder / "constraints.txt"
    pins.write_text(pin + "\n")
    pip = [str(python), "-m", "pip", "install", "--quiet", "-c", str(pins)]
    needed = [
        requirement
        for package in planned([*pip, "--no-deps", pin], folder)
        for requirement in package["metadata"].get("requires_dist", [])
        if "extra ==" not in requirement
    ]
    refuse(needed, pin)
    chosen = planned([*pip, pin, PEER], folder)
    refuse([package["metadata"]["name"] for package in chosen], PEER)
    done = subprocess.run([*pip, pin, PEER], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{PEER} cannot be installed: {done.stderr.strip()[-1000:]}")
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
