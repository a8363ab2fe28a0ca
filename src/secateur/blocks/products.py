"""What a call of a linear layer was: a product with its matrix, or something of the layer's own.

Statistics of a matrix are those of the rows that it is multiplied by. Where a layer does something
else, or is never called because the block reads its weight itself, there are none.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from secateur.checkpoint import Matrix


def multiplies(matrix: Matrix, args: tuple[Any, ...], output: Any) -> bool:
    """Whether a call of the module that holds a matrix multiplied every row of its input by it.

    Some modules are linear layers by class, and do something else with their weight: they give
    every group of inputs rows of its own, or return more than a product.

    Args:
        matrix: [out, in], of its own parameter.
        args: what the module was called with.
        output: what it returned.
    """
    if not (args and isinstance(args[0], Tensor) and isinstance(output, Tensor)):
        return False
    rows, columns = matrix.shape
    inputs = args[0]
    return inputs.shape[-1:] == (columns,) and output.shape == (*inputs.shape[:-1], rows)
