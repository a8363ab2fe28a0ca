"""A linear layer whose matrix is 2:4 and stays packed: 56 % of the bytes of a dense one in 16 bits.

    y = x W^T + bias     W [out, in] as values [out, in / 2] and mask uint8 [out, ceil(in / 8)]

Up to 64 vectors (decoding) are multiplied by the kernel of `kernel.py`, which reads the packed
matrix once. More of them (a prompt) are bound by arithmetic, not by reading: the matrix is unpacked
into memory that is given back after the product, and the dense routine multiplies. That costs one
writing and reading of the dense matrix per call, and no second copy of the weights in between.

Without CUDA, or without Triton, every product unpacks: right, and slower than a dense layer.
"""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name it is known by

from secateur.inference.tile import MOST_VECTORS, Tile, candidates
from secateur.machine.kernels import kernel_runs
from secateur.packing import pack_matrix, unpack_matrix
from secateur.sparsity import NofM

TWO_OF_FOUR = NofM(2, 4)


class PackedLinear(nn.Module):
    """`nn.Linear` with a packed 2:4 matrix; for inference, no gradient reaches the weights.

    Args:
        values: [out, in / 2], the two kept weights of each group of four in order.
        mask: uint8 [out, ceil(in / 8)], the lowest bit first, 1 where a weight is kept.
        bias: [out], or None.
        tiles: by number of vectors, the tile that was measured to be fastest; the first candidate
            serves where none is named.

    Raises:
        PatternError: mask and values cannot be those of a 2:4 matrix.
    """

    values: Tensor
    mask: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        values: Tensor,
        mask: Tensor,
        bias: nn.Parameter | None = None,
        tiles: dict[int, Tile] | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = values.shape[0], 2 * values.shape[1]
        self.register_buffer("values", values.contiguous())
        self.register_buffer("mask", mask.contiguous())
        self.register_parameter("bias", bias)
        self.tiles = dict(tiles or {})
        self.unpack()  # refuses what is not 2:4: the kernel takes two bits a group for granted

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Self:
        """The same layer, packed; its bias is shared.

        Raises:
            PatternError: the matrix is not 2:4.
        """
        weight = linear.weight.detach() + 0.0  # -0.0 becomes 0.0, which need not be kept
        values, mask = pack_matrix(weight, TWO_OF_FOUR)
        return cls(values, mask, linear.bias)

    @property
    def weight(self) -> Tensor:
        """W [out, in], unpacked anew."""
        return self.unpack()

    def unpack(self) -> Tensor:
        """W [out, in] in the dtype of the values."""
        return unpack_matrix(self.values, self.mask, self.in_features, TWO_OF_FOUR)

    def forward(self, x: Tensor) -> Tensor:
        """y [..., out] of x [..., in], summed in float32."""
        vectors = x.numel() // self.in_features
        if x.dtype != self.values.dtype or not kernel_runs(x.device, x.dtype):
            return F.linear(x, self.unpack(), self.bias)
        from secateur.inference import kernel

        if not 0 < vectors <= MOST_VECTORS:
            return F.linear(x, kernel.unpack_two_of_four(self.mask, self.values), self.bias)
        y = kernel.multiply(
            x.reshape(vectors, -1), self.mask, self.values, self.tile_for(vectors)
        )  # [vectors, out]
        if self.bias is not None:
            y += self.bias
        return y.view(*x.shape[:-1], self.out_features)

    def tile_for(self, vectors: int) -> Tile:
        """The tile measured for the next larger number of vectors, or one to begin with."""
        measured = min((number for number in self.tiles if number >= vectors), default=None)
        return candidates(vectors)[0] if measured is None else self.tiles[measured]

    def extra_repr(self) -> str:
        """The text that `print(model)` shows."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features},"
            f" bias={self.bias is not None}, packed 2:4"
        )
