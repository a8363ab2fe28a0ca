"""Decoding by a packed 2:4 matrix on a GPU, beside the dense and the semi-structured one.

    python benchmarks/kernel.py [--vectors 1 2 4 8 16] [--json FILE] [--no-graphs] [--quick]
    python benchmarks/kernel.py --interpret

For each shape [out, in] and number of vectors: microseconds of F.linear in bfloat16 (cuBLAS), of
PyTorch's semi-structured tensor, and of the packed kernel with the fastest of its tiles; the ratio
to dense; and the bytes of weights read per second as a share of a copy measured in the same run.
Calls are replayed by CUDA graphs, so that the GPU's own time is compared; `--no-graphs` launches
them one by one, as a model in eager mode does. Every product is compared with float32 first.

Without CUDA it leaves with status 2. `--interpret` runs the same story on a CPU in Triton's
interpreter, on tiny shapes, for correctness alone: its times mean nothing and are not printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

if "--interpret" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch
from torch import Tensor, nn

from secateur.inference import PackedLinear, probe
from secateur.inference.forms import UnfitError, convert
from secateur.inference.layers import matrix_bytes
from secateur.inference.tile import Tile, candidates
from secateur.sparsity import NofM, keep_mask

SHAPES = [(4096, 4096), (4096, 11008), (11008, 4096), (8192, 8192)]
"""(out, in) of the matrices of a 7B Llama, and a square one of a 70B."""
TINY = [(33, 100), (20, 64)]
MOST_ERROR = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
"""Relative to the product in float32."""
COPIED_BYTES = 1 << 30


def sparse_layer(rows: int, columns: int, dtype: torch.dtype, device: str) -> nn.Linear:
    """A random layer whose matrix is 2:4."""
    weight = torch.randn(rows, columns, device=device)
    layer = nn.Linear(columns, rows, bias=False, device="meta")
    kept = weight * keep_mask(weight.abs(), NofM(2, 4))
    layer.weight = nn.Parameter(kept.to(dtype), requires_grad=False)
    return layer


def error(layer: nn.Module, dense: nn.Linear, x: Tensor) -> float:
    """Of a layer's product, relative to that in float32."""
    wanted = x.float() @ dense.weight.float().T
    return float((layer(x).float() - wanted).norm() / wanted.norm())


def copied_bytes_per_second() -> float:
    """Bytes read and written per second by a large copy, the median of several."""
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    taken = []
    for _ in range(12):
        torch.cuda.synchronize()
        began = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return 2 * COPIED_BYTES / statistics.median(taken[2:])


def measure(shape: tuple[int, int], vectors: list[int], graphs: bool) -> list[dict[str, Any]]:
    """A row for each number of vectors and form."""
    dense = sparse_layer(*shape, torch.bfloat16, "cuda")
    copies = max(2, probe.COLD_BYTES // dense.weight.nbytes + 1)
    rows: list[dict[str, Any]] = []
    for form in ("dense", "semi-structured", "packed"):
        try:
            layers = [convert(probe.copy(dense), form) for _ in range(copies)]
        except UnfitError as fault:
            print(f"{shape}: {form}: {fault}")
            continue
        for number in vectors:
            x = torch.randn(number, shape[1], dtype=torch.bfloat16, device="cuda")
            tile = None
            if form == "packed":
                tile, taken = probe.tune(layers, x, graphs=graphs)
            else:
                taken = probe.milliseconds(layers, x, graphs=graphs)
            apart = error(layers[0], dense, x)
            if not apart < MOST_ERROR[torch.bfloat16]:
                sys.exit(f"{form} {shape} x {number} is wrong: relative error {apart:.1e}")
            rows.append(
                {
                    "out": shape[0], "in": shape[1], "vectors": number, "form": form,
                    "microseconds": 1000 * taken, "relative_error": apart,
                    "weight_bytes": matrix_bytes(layers[0]), "tile": tile and str(tile),
                }
            )  # fmt: skip
    return rows


def show(rows: list[dict[str, Any]], copy_rate: float) -> None:
    """The table: dense beside sparse, a loss called a loss."""
    print(f"{'out x in':>14} {'vectors':>7} {'form':<16} {'us':>8} {'of copy':>8} {'ratio':>6}")
    dense = {
        (row["out"], row["in"], row["vectors"]): row["microseconds"]
        for row in rows
        if row["form"] == "dense"
    }
    for row in sorted(rows, key=lambda row: (row["out"], row["in"], row["vectors"])):
        row["ratio"] = dense[row["out"], row["in"], row["vectors"]] / row["microseconds"]
        row["share_of_copy"] = row["weight_bytes"] / row["microseconds"] * 1e6 / copy_rate
        print(
            f"{row['out']:>6} x {row['in']:<5} {row['vectors']:>7} {row['form']:<16}"
            f" {row['microseconds']:8.1f} {row['share_of_copy']:8.0%} {row['ratio']:6.2f}"
            f"{' loss' if row['ratio'] < 1 else ''}  {row['tile'] or ''}"
        )


def interpret(vectors: list[int]) -> None:
    """The kernel on a CPU, on shapes that no tile divides."""
    for shape in TINY:
        for dtype in (torch.float32, torch.bfloat16):
            dense = sparse_layer(*shape, dtype, "cpu")
            packed = PackedLinear.from_linear(dense)
            for number in vectors:
                x = torch.randn(number, shape[1]).to(dtype)
                for way in (Tile(4, 8, splits=2), Tile(16, 8, dot=True), candidates(number)[0]):
                    packed.tiles = {number: way}
                    apart = error(packed, dense, x)
                    if not apart < MOST_ERROR[dtype]:
                        sys.exit(f"{shape} x {number}, {dtype}, {way}: relative error {apart:.1e}")
            print(f"{shape[0]} x {shape[1]}, {dtype}, vectors {vectors}: right")
    print("interpreted: nothing was timed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=int, nargs="+", default=None)
    parser.add_argument("--quick", action="store_true", help="4096 x 4096 alone")
    parser.add_argument("--no-graphs", action="store_true", help="launch calls one by one")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--interpret", action="store_true", help="correctness on a CPU")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.interpret:
        interpret(arguments.vectors or [1, 3])
        return
    if not torch.cuda.is_available():
        print("error: this needs a GPU with CUDA; try --interpret on a CPU", file=sys.stderr)
        sys.exit(2)
    copy_rate = copied_bytes_per_second()
    print(f"{torch.cuda.get_device_name()}, a copy moves {copy_rate / 1e9:.0f} GB/s")
    rows: list[dict[str, Any]] = []
    for shape in SHAPES[:1] if arguments.quick else SHAPES:
        rows += measure(shape, arguments.vectors or [1, 2, 4, 8, 16], not arguments.no_graphs)
    show(rows, copy_rate)
    if arguments.json is not None:
        facts = {"device": torch.cuda.get_device_name(), "torch": torch.__version__,
                 "copy_bytes_per_second": copy_rate, "graphs": not arguments.no_graphs}  # fmt: skip
        arguments.json.write_text(json.dumps({**facts, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
