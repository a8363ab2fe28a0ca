"""The packed kernel in Triton's interpreter against dense float64, for `test_kernel.py`.

    python tests/interpreted.py [SCRIPT ARGUMENTS]    prints a JSON object: case -> relative error
                                                      and then runs another script

A process of its own, since Triton decides when it is first imported whether to interpret.
"""

from __future__ import annotations

import json
import os
import runpy
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor, nn

from secateur.inference import PackedLinear, kernel
from secateur.inference.tile import Tile
from secateur.packing import pack_matrix
from secateur.sparsity import NofM, keep_mask

FMA = Tile(4, 8)
DOT = Tile(16, 8, dot=True)
SHAPES = [(5, 12), (33, 100), (16, 64), (19, 4), (1, 132)]
"""(out, in): none but the third fits a tile; 12, 100, 4 and 132 leave half a byte of mask."""


def make(rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """A random 2:4 matrix, among whose kept weights are zeros."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    keep = keep_mask(torch.rand(rows, columns, generator=generator), NofM(2, 4))
    weight[torch.rand(rows, columns, generator=generator) < 0.05] = 0
    return (weight * keep).to(dtype) + 0.0


def error(found: Tensor, wanted: Tensor) -> float:
    """Relative, in the norm of the whole."""
    return float((found.double() - wanted).norm() / wanted.norm())


def product(shape: tuple[int, int], vectors: int, dtype: torch.dtype, tile: Tile) -> float:
    """Relative error of a product."""
    weight = make(*shape, dtype)
    values, mask = pack_matrix(weight, NofM(2, 4))
    x = torch.randn(vectors, shape[1], generator=torch.Generator().manual_seed(1)).to(dtype)
    return error(kernel.multiply(x, mask, values, tile), x.double() @ weight.double().T)


def unpacked(shape: tuple[int, int], dtype: torch.dtype) -> float:
    """1 if a single bit is not as it was."""
    weight = make(*shape, dtype)
    values, mask = pack_matrix(weight, NofM(2, 4))
    return float(not torch.equal(kernel.unpack_two_of_four(mask, values), weight))


def layer(vectors: tuple[int, ...]) -> float:
    """Relative error of a layer with a bias, on inputs of several dimensions."""
    dense = nn.Linear(52, 21)
    with torch.no_grad():
        dense.weight.copy_(make(21, 52, torch.float32))
        x = torch.randn(*vectors, 52)
        return error(PackedLinear.from_linear(dense)(x), dense.double()(x.double()))


def main() -> None:
    found: dict[str, float] = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        for shape in SHAPES if dtype == torch.float32 else SHAPES[1:2]:
            for tile in (FMA, DOT):
                way = "dot" if tile.dot else "fma"
                found[f"{name} {shape} {way}"] = product(shape, 3, dtype, tile)
        found[f"{name} unpacked"] = unpacked((33, 100), dtype)
    for splits in (
        2,
        3,
        7,
    ):  # of 4 tiles: unlike shares, or too many
        for tile in (Tile(4, 8, splits=splits), Tile(16, 8, splits=splits, dot=True)):
            found[f"float32 {tile}"] = product((33, 100), 2, torch.float32, tile)
    for vectors in (1, 5, 16):
        for tile in (FMA, DOT):
            found[f"float32 {vectors} vectors, dot {tile.dot}"] = product(
                (19, 36), vectors, torch.float32, tile
            )
    found["float32 layer, 6 vectors"] = layer((2, 3))
    found["float32 layer, 65 vectors"] = layer((65,))
    found["float32 layer, one vector without a batch"] = layer(())
    print(json.dumps(found), flush=True)
    if sys.argv[1:]:
        del sys.argv[0]
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
