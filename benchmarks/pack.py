"""How small is a packed matrix, how fast is it packed and unpacked, what does loading a model take?

    python benchmarks/pack.py [--rows 2048 --columns 4096] [--width 1024 --blocks 8] [--json FILE]

    size       bytes of values and mask over those of the dense matrix
    find       finding out which form fits
    pack, unpack    seconds over those of a copy of the dense matrix, `weight.clone()`: 1 is the
               speed of memory. A loop over weights in Python stands beside it (on a smaller matrix)
    loading    the high-water mark of a process's resident memory (VmHWM, Linux), less that of one
               that only imports: a random Llama, its matrices 2:4, loaded dense and packed, and
               every weight read once (a dense file is mapped, and costs nothing before that)

Seconds are of the processor (`time.process_time`), on one thread, the least of several: on a
machine that does other work they still compare.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import secateur
from secateur.packing import find_form, pack_matrix, unpack_matrix

CASES = [
    ("2:4", torch.bfloat16), ("1:4", torch.bfloat16), ("4:8", torch.bfloat16),
    ("50%", torch.bfloat16), ("80%", torch.bfloat16), ("2:4", torch.float32),
]  # fmt: skip
LOOP_ROWS = 8
HIGH_WATER = """
import json, sys
def high_water():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
import secateur
from transformers import AutoModelForCausalLM, LlamaForCausalLM
"""
READ = "\nall(bool(weight.isfinite().all()) for weight in model.parameters())"
LOADS = {
    "imports only": "",
    "dense, from_pretrained": "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])",
    "packed, secateur.load": "model = secateur.load(sys.argv[2])",
    "packed, from_pretrained": "model = AutoModelForCausalLM.from_pretrained(sys.argv[2])",
}


@dataclass(frozen=True)
class Row:
    """One matrix; seconds, and times the copy's."""

    pattern: str
    dtype: str
    form: str
    size: float
    copy_seconds: float
    find: float
    pack: float
    unpack: float
    loop_unpack: float


def make(rows: int, columns: int, pattern: str, dtype: torch.dtype) -> Tensor:
    """A random matrix of that pattern."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator).to(dtype)
    drawn = torch.rand(rows, columns, generator=generator)
    if pattern.endswith("%"):
        weight[drawn < float(pattern[:-1]) / 100] = 0
    else:
        n, m = map(int, pattern.split(":"))
        dropped = drawn.view(rows, -1, m).argsort(-1)[..., n:]
        weight.view(rows, -1, m).scatter_(-1, dropped, 0)
    return weight


def seconds(work: Callable[[], object], repeats: int = 7) -> float:
    """Of the processor, the least of several; the first is not counted."""
    work()
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken)


def unpack_by_loop(values: Tensor, mask: Tensor, columns: int) -> list[list[float]]:
    """As docs/packed.md says it, one weight at a time."""
    left = iter(values.flatten().tolist())
    return [
        [next(left) if row[i // 8] >> (i % 8) & 1 else 0.0 for i in range(columns)]
        for row in mask.tolist()
    ]


def measure(rows: int, columns: int, pattern: str, dtype: torch.dtype) -> Row:
    weight = make(rows, columns, pattern, dtype)
    form = find_form(weight)
    assert form is not None
    values, mask = pack_matrix(weight, form)
    assert torch.equal(unpack_matrix(values, mask, columns, form), weight)
    few_values, few_mask = pack_matrix(weight[:LOOP_ROWS], form)
    assert unpack_by_loop(few_values, few_mask, columns) == weight[:LOOP_ROWS].tolist()
    copy = seconds(weight.clone)
    loop = seconds(lambda: unpack_by_loop(few_values, few_mask, columns), 2) * rows / LOOP_ROWS
    return Row(
        pattern=pattern,
        dtype=str(dtype).removeprefix("torch."),
        form=str(form),
        size=(values.nbytes + mask.nbytes) / weight.nbytes,
        copy_seconds=copy,
        find=seconds(lambda: find_form(weight)) / copy,
        pack=seconds(lambda: pack_matrix(weight, form)) / copy,
        unpack=seconds(lambda: unpack_matrix(values, mask, columns, form)) / copy,
        loop_unpack=loop / copy,
    )


def make_model(folder: Path, width: int, blocks: int) -> Path:
    """A random Llama in bfloat16 whose matrices are 2:4."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=blocks,
        num_attention_heads=max(1, width // 64), tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if "proj" in name:
            tensor.view(-1, 4)[:, torch.randperm(4)[2:]] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def loading(dense: Path, packed: Path, repeats: int) -> dict[str, int]:
    """Bytes at the high-water mark, by way of loading, the least of several processes."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    peaks = {}
    for way, code in LOADS.items():
        program = f"{HIGH_WATER}{code}{READ if code else ''}\nprint(high_water())"
        command = [sys.executable, "-c", program, str(dense), str(packed)]
        peaks[way] = min(
            int(subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True,
                env=environment,
            ).stdout)
            for _ in range(repeats)
        )  # fmt: skip
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3, help="processes of each way of loading")
    parser.add_argument("--folder", type=Path, help="for the model, removed afterwards")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    torch.set_num_threads(1)

    print(f"{options.rows} x {options.columns}; find, pack, unpack, loop: times a copy")
    print("| pattern | dtype | form | size | copy GB/s | find | pack | unpack | Python loop |")
    print("|---|---|---|---:|---:|---:|---:|---:|---:|")
    rows = []
    for pattern, dtype in CASES:
        row = measure(options.rows, options.columns, pattern, dtype)
        rows.append(row)
        rate = options.rows * options.columns * dtype.itemsize / row.copy_seconds / 1e9
        print(
            f"| {row.pattern} | {row.dtype} | {row.form} | {row.size:.2%} | {rate:.1f}"
            f" | {row.find:.1f} | {row.pack:.1f} | {row.unpack:.1f} | {row.loop_unpack:.0f} |",
            flush=True,
        )

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        dense = make_model(Path(folder) / "dense", options.width, options.blocks)
        done = secateur.pack(dense, Path(folder) / "packed")
        peaks = loading(dense, done.out, options.repeats)
    baseline = peaks["imports only"]
    print(f"\ntensors: dense {done.before / 1e6:.0f} MB, packed {done.after / 1e6:.0f} MB")
    print("| loading | peak MB | above imports | over the dense tensors |\n|---|---:|---:|---:|")
    for way, peak in peaks.items():
        above = peak - baseline
        print(f"| {way} | {peak / 1e6:.0f} | {above / 1e6:.0f} | {above / done.before:.2f} |")
    if options.json is not None:
        facts = {
            "rows": options.rows, "columns": options.columns, "matrices": list(map(asdict, rows)),
            "packing": done.as_dict(), "peak_bytes": peaks, "torch": torch.__version__,
        }  # fmt: skip
        options.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
