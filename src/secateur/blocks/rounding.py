"""New weights of an open block rounded to few bits: the last that is done to them.

Each matrix is rounded to the grid of a scheme: by the Hessian of its inputs in the dense block,
the one that a solving method has too, or to the nearest. What nothing is known of (experts that saw
too few tokens, what the block does not call) is rounded to the nearest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from secateur.blocks.new_weights import Observed, OpenBlock
from secateur.checkpoint import BlockModel, Matrix
from secateur.errors import NumericalError
from secateur.quantization import (
    RoundedMatrix,
    Rounding,
    gptq,
    round_to_nearest,
    scale_dtype,
    stacked,
)
from secateur.statistics import Need


def round_weights(
    block: OpenBlock,
    observed: Observed | None,
    weights: dict[str, Tensor],
    rounding: Rounding | None,
    source: BlockModel,
) -> dict[str, RoundedMatrix]:
    """Round the new weights of a block.

    Args:
        block: the dense block.
        observed: its statistics; None without calibration.
        weights: by matrix name float32 [out, in], 0 where pruned; rounded values take their place.
        rounding: to what, and how; None leaves them as they are.
        source: knows the dtype that each parameter is stored in.

    Returns:
        by parameter name in the model what is to be stored; of fused experts the levels, scales
        and zero points of all of them, stacked.

    Raises:
        NumericalError: a Hessian has no inverse; names the matrix.
    """
    if rounding is None:
        return {}
    scales = {
        matrix: scale_dtype(source.storage_dtype(block.prefix + matrix.parameter))
        for matrix in block.matrices
    }
    rounded: dict[str, RoundedMatrix] = {}
    if rounding.by == "gptq":
        assert observed is not None
        for group, dtype in _alike(observed, scales):
            hessian = observed.observer.values(group[0])[Need.HESSIAN]
            given = [weights[matrix.name] for matrix in group]
            try:
                found = gptq(given, hessian, rounding.scheme, dtype)
            except NumericalError as fault:
                where = block.prefix + group[0].name
                raise NumericalError(fault.what, where=where, hint=fault.hint) from fault
            rounded |= {matrix.name: one for matrix, one in zip(group, found, strict=True)}
    for matrix in block.matrices:
        if matrix.name not in rounded:
            weight = weights[matrix.name]
            rounded[matrix.name] = round_to_nearest(weight, rounding.scheme, scales[matrix])
        weights[matrix.name] = rounded[matrix.name].weight.float()
    by_parameter: dict[str, list[RoundedMatrix]] = {}
    for matrix in block.matrices:
        by_parameter.setdefault(block.prefix + matrix.parameter, []).append(rounded[matrix.name])
    fused = {block.prefix + m.parameter for m in block.matrices if m.expert is not None}
    return {
        name: stacked(matrices) if name in fused else matrices[0]
        for name, matrices in by_parameter.items()
    }


def _alike(
    observed: Observed, scales: Mapping[Matrix, torch.dtype]
) -> Iterator[tuple[list[Matrix], torch.dtype]]:
    """The matrices that read the same input and are stored in the same dtype, and that dtype."""
    unknown = {*observed.observer.starved, *observed.observer.uncalled}
    for group in observed.observer.groups:
        known = [matrix for matrix in group if matrix in scales and matrix not in unknown]
        for dtype in dict.fromkeys(scales[matrix] for matrix in known):
            yield [matrix for matrix in known if scales[matrix] == dtype], dtype
