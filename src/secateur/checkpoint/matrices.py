"""What can be pruned in a block, each seen as W [out, in] however it is stored.

torch.nn.Linear      weight [out, in]
transformers Conv1D  weight [in, out] (GPT-2): seen transposed
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from secateur.errors import ModelError

MINIMUM_COVERAGE = 0.9


@dataclass(frozen=True)
class Matrix:
    """One prunable matrix of one block.

    Attributes:
        name: its parameter's name within the block, such as "self_attn.q_proj.weight".
        owner: the module that multiplies by it; its first input is what W reads.
        transposed: whether it is stored as [in, out].
    """

    name: str
    owner: nn.Module
    transposed: bool

    @property
    def kind(self) -> str:
        """Its place within the block, the same for every block: "self_attn.q_proj"."""
        return self.name.removesuffix(".weight")

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        rows, columns = self.read().shape
        return rows, columns

    def read(self) -> Tensor:
        """W [out, in], a view of the parameter's memory without gradient."""
        stored: Tensor = self.owner.weight.detach()  # type: ignore[operator]
        return stored.T if self.transposed else stored

    def write(self, weight: Tensor) -> None:
        """Overwrite the parameter with W [out, in], cast to the parameter's dtype."""
        with torch.no_grad():
            self.read().copy_(weight)

    def as_stored(self, weight: Tensor) -> Tensor:
        """W [out, in] in the orientation of the parameter."""
        return weight.T if self.transposed else weight


def find_matrices(block: nn.Module) -> tuple[Matrix, ...]:
    """Every matrix of a block that can be pruned, in the order of its modules.

    Raises:
        ModelError: they make up less than 90 % of the block's matrix parameters, so that the
            sparsity reported would not be the sparsity of the model.
    """
    found: dict[int, Matrix] = {}
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            matrix = Matrix(f"{name}.weight", module, isinstance(module, Conv1D))
            found.setdefault(id(module.weight), matrix)  # shared weights once
    matrices = tuple(found.values())
    covered = sum(torch.Size(matrix.shape).numel() for matrix in matrices)
    present = sum(weight.numel() for weight in block.parameters() if weight.dim() >= 2)
    if covered < MINIMUM_COVERAGE * present or not matrices:
        left_out = [
            name
            for name, weight in block.named_parameters()
            if weight.dim() >= 2 and id(weight) not in found
        ]
        raise ModelError(
            f"only {covered / max(1, present):.0%} of the block's matrix parameters can be pruned"
            f" (not: {', '.join(left_out[:4])})",
            where=type(block).__name__,
            wanted=f"at least {MINIMUM_COVERAGE:.0%}",
        )
    return matrices
