"""Is a GGUF file the same model to llama.cpp? Its perplexity on our token ids beside ours.

    python -m venv CPP && CPP/bin/pip install llama-cpp-python      (compiled from its source)
    python benchmarks/llama_cpp.py --python CPP/bin/python --text FILE --model FOLDER

Every model (--model may be given again) is written by `secateur pack --format gguf` as it is, at
2:4 by Wanda, and without the six blocks that ShortGPT chooses. The windows are the same token ids
for both sides, BOS in front where the tokenizer puts one; ours reads the file back as MODEL, in
float32. The tokenizers are compared apart, on the text as it stands: the ids that differ, of all.

    read back    how far the tensors of the file, read as MODEL, are from those that were written:
                 the furthest, as a share of the largest of the 32 weights beside it
    rounded      ours with what llama.cpp rounds while it computes: the inputs of matrices, to the
                 type of these or to 8 bits in blocks of 32, and keys and values, to float16
    difference   llama.cpp's perplexity over ours, less 1; and over ours rounded
    zeros        of the matrices in the blocks, as the file holds them
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import results
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import secateur
from secateur.checkpoint import Checkpoint, locate
from secateur.checkpoint.from_gguf import CACHE

DENSE = "dense"
SCORE = """
import json, sys
import llama_cpp
import numpy as np
file, text, threads = sys.argv[1], sys.argv[3], int(sys.argv[4])
windows = json.load(open(sys.argv[2]))
length = len(windows[0])
model = llama_cpp.Llama(model_path=file, n_ctx=length, n_batch=length, n_ubatch=length,
                        logits_all=True, verbose=False, n_threads=threads)
lost = count = 0
for window in windows:
    model.reset()
    model.eval(window)
    for place in range(length - 1):
        row = np.asarray(model.scores[place], dtype=np.float64)
        lost += row.max() + np.log(np.exp(row - row.max()).sum()) - row[window[place + 1]]
        count += 1
ids = model.tokenize(open(text, "rb").read(), add_bos=False, special=True)
print(json.dumps({"nats": lost / count, "ids": ids}))
"""
"""What the other environment runs: mean cross-entropy over the windows, and the ids of a text."""


@dataclass(frozen=True)
class Row:
    """One file; perplexities, and shares of 1."""

    model: str
    form: str
    type: str
    bytes: int
    zeros: float
    furthest: float
    ours: float
    rounded: float
    theirs: float
    other_ids: int
    all_ids: int


def main() -> None:
    options = parse()
    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    found = results.facts(torch.device("cpu"), options.threads)
    found["versions"]["llama-cpp-python"] = version(options.python)
    with tempfile.TemporaryDirectory() as place:
        os.environ[CACHE] = str(Path(place) / "cache")
        rows = [row for model in options.model for row in compare(model, Path(place), options)]
    heads = ["", "type", "MB", "zeros", "read back", "ours", "rounded", "llama.cpp"]
    heads += ["difference", "from rounded", "ids that differ"]
    cells = [
        [f"{row.model}, {row.form}", row.type, f"{row.bytes / 1e6:.0f}", f"{row.zeros:.1%}",
         f"{row.furthest:.2%}", f"{row.ours:.4f}", f"{row.rounded:.4f}", f"{row.theirs:.4f}",
         *(f"{row.theirs / here - 1:+.2%}" for here in (row.ours, row.rounded)),
         f"{row.other_ids} of {row.all_ids}"]
        for row in rows
    ]  # fmt: skip
    caption = f"Perplexity in {options.windows} windows of {options.length} tokens."
    numbers = {"rows": [asdict(row) for row in rows]}
    results.report("llama_cpp", options, found, [results.Table(caption, heads, cells)], numbers)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", type=Path, required=True, help="has llama-cpp-python")
    parser.add_argument("--model", type=Path, action="append", required=True, metavar="FOLDER")
    parser.add_argument("--text", type=Path, required=True, metavar="FILE")
    parser.add_argument("--types", default="BF16,Q8_0,Q4_0")
    parser.add_argument("--forms", default=",".join([DENSE, *PRUNED]), help="some of these")
    parser.add_argument("--windows", type=int, default=6)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--characters", type=int, default=20_000, help="for the tokenizers")
    parser.add_argument("--threads", type=int, default=1)
    results.add_options(parser)
    options = parser.parse_args()
    results.check(options)
    return options


def version(python: Path) -> str:
    code = "from importlib.metadata import version; print(version('llama-cpp-python'))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def compare(model: Path, place: Path, options: argparse.Namespace) -> Iterator[Row]:
    """Every form of a model in every type."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    text = options.text.read_text("utf-8")
    windows = cut(tokenizer, text, options.windows, options.length)
    save_file({"input_ids": torch.tensor(windows)}, place / "windows.safetensors")
    (place / "windows.json").write_text(json.dumps(windows))
    (place / "text").write_text(text[: options.characters], "utf-8")
    ids = tokenizer(text[: options.characters], add_special_tokens=False)["input_ids"]
    for form, folder in forms(model, place / model.name, options.forms.split(",")):
        for type_ in options.types.split(","):
            file = place / f"{model.name}.gguf"
            done = secateur.pack_gguf(folder, file, type=type_, overwrite=True)
            scored = subprocess.run(
                [options.python, "-c", SCORE, file, place / "windows.json", place / "text",
                 str(options.threads)],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            theirs = json.loads(scored.stdout)
            ours = secateur.evaluate(
                file, text=place / "windows.safetensors", dtype="float32",
                sequence_length=options.length, windows=options.windows,
            )  # fmt: skip
            zeros, furthest = read_back(folder, file)
            row = Row(
                model.name, form, type_, done.after, zeros, furthest, ours.perplexity,
                rounding(file, type_, windows), math.exp(theirs["nats"]),
                differing(ids, theirs["ids"]), len(ids),
            )  # fmt: skip
            print(row, flush=True)
            yield row


def cut(tokenizer, text: str, count: int, length: int) -> list[list[int]]:
    """Windows of token ids, each begun as the tokenizer begins a text."""
    first = tokenizer("a")["input_ids"]
    begin = first[:1] if len(first) and first[0] == tokenizer.bos_token_id else []
    inner = length - len(begin)
    ids = tokenizer(text[: 20 * count * length], add_special_tokens=False)["input_ids"]
    return [begin + ids[at * inner : (at + 1) * inner] for at in range(count)]


PRUNED = {
    "2:4": {"pattern": "2:4", "method": "wanda"},
    "six blocks fewer": {"pattern": "blocks-6", "method": "shortgpt"},
}
"""Form -> what is done to a model."""


def forms(model: Path, place: Path, asked: list[str]) -> Iterator[tuple[str, Path]]:
    """A model as it is, pruned, and of fewer blocks."""
    if DENSE in asked:
        yield DENSE, model
    for form in (form for form in PRUNED if form in asked):
        folder = place / form.replace(":", "of")
        secateur.prune(
            model, calibration="builtin", samples=8, sequence_length=512, out=folder,
            **PRUNED[form],
        )  # fmt: skip
        yield form, folder


def read_back(folder: Path, file: Path) -> tuple[float, float]:
    """The share of zeros of a file's blocks, and how far its tensors are from the folder's."""
    written, read = Checkpoint(folder), Checkpoint(locate(file))
    assert written.names == read.names
    none = count = 0
    far = 0.0
    for name in written.names:
        (before,), (after,) = (each.load([name]).values() for each in (written, read))
        if ".layers." in name and after.dim() == 2:
            none += int((after == 0).sum())
            count += after.numel()
        groups = (-1, 32) if before.dim() == 2 and before.shape[1] % 32 == 0 else (1, -1)
        before, after = (each.float().reshape(groups) for each in (before, after))
        largest = before.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        far = max(far, float(((after - before).abs().amax(dim=1) / largest).max()))
    return none / count, far


def rounding(file: Path, type_: str, windows: list[list[int]]) -> float:
    """Our perplexity, with the inputs of matrices, keys and values rounded as llama.cpp does."""
    model = AutoModelForCausalLM.from_pretrained(locate(file), dtype=torch.float32).eval()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, given: (narrowed(given[0], type_),))
        if name.endswith(("k_proj", "v_proj")):
            module.register_forward_hook(lambda _, given, made: made.half().float())
    lost = 0.0
    with torch.no_grad():
        for ids in torch.tensor(windows):
            logits = model(ids[None]).logits[0, :-1]
            lost += float(nn.functional.cross_entropy(logits, ids[1:])) / len(windows)
    return math.exp(lost)


def narrowed(inputs: torch.Tensor, type_: str) -> torch.Tensor:
    """Inputs [..., in] in the precision in which llama.cpp multiplies them with such matrices."""
    if type_ in ("F16", "BF16"):
        return inputs.to(torch.float16 if type_ == "F16" else torch.bfloat16).float()
    groups = inputs.reshape(-1, 32)
    step = groups.abs().amax(dim=1, keepdim=True) / 127
    levels = (groups / torch.where(step > 0, step, 1)).round()
    return (levels * step.half().float()).view(inputs.shape)


def differing(ours: list[int], theirs: list[int]) -> int:
    """How many ids are not where they are on the other side; all after an id too many count."""
    apart = abs(len(ours) - len(theirs))
    return apart + sum(a != b for a, b in zip(ours, theirs, strict=False))


if __name__ == "__main__":
    main()
