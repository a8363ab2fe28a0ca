"""In which directions an error of a block's output matters: as the model's loss feels them.

    G = sum over tokens of g g',  g = d loss / d (block output)      scaled to a mean diagonal of 1
    error of one token = d' ((1 - EVEN) G + EVEN I) d,  d = f_dense - f_sparse

    g, d [width]       of one token
    G [width, width]   second moment of g over all calibration tokens

To second order, and were tokens independent, d' G d is what the error does to the loss. EVEN keeps
some weight on what these tokens happen not to feel. The regional optimiser reads the matrix as a
factor F with F F' equal to it, so that the error is norm2(d F)**2.

One pass up and one down through the dense model, in the memory of one block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.blocks.full_gradients import UpAndDown, full_gradients
from secateur.blocks.stream import Stream
from secateur.checkpoint import BlockModel
from secateur.machine import processes
from secateur.statistics import check_finite

EVEN = 0.1
"""Share of the error that counts the same in every direction, as at the head of this module."""
_SCALE = 1e3
"""Factor of gradients before they are squared: of a mean over tokens they are too small as is."""


def error_factors(source: BlockModel, stream: Stream, way: UpAndDown) -> list[Tensor]:
    """F of every block, float32 [width, width], in main memory.

    Args:
        source: the dense model.
        stream: the sequences before block 0; they are there again afterwards.
        way: how the blocks are run, and who is told.

    Raises:
        NumericalError: a loss or a gradient is not finite.
    """
    moments: dict[int, Tensor] = {}

    def look(index: int, gradients: Sequence[Tensor]) -> None:
        width = gradients[0].shape[-1]
        moment = torch.zeros(width, width, device=source.device)
        for gradient in stream.activations.bring(gradients):
            rows = gradient.flatten(0, -2).float()  # [tokens, width]
            moment.addmm_((rows * _SCALE).T, rows * _SCALE)
        processes.add_up([moment])
        check_finite(moment, "the loss gradient is", f"the output of block {index}")
        moments[index] = moment.cpu()

    full_gradients(source, stream, None, "l2", way, look)
    return [_factor(moments[index]) for index in range(len(source.blocks))]


def _factor(moment: Tensor) -> Tensor:
    """F with F F' = (1 - EVEN) G + EVEN I, for a moment of any scale."""
    size = moment.diagonal().mean()
    scaled = moment / size if size > 0 else torch.zeros_like(moment)
    even = torch.eye(len(moment), dtype=moment.dtype)
    mixed = ((1 - EVEN) * scaled + EVEN * even).double()
    factor: Tensor = torch.linalg.cholesky(mixed)
    return factor.float()
