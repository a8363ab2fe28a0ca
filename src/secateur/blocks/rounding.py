"""New weights of an open block rounded to few bits: the last that is done to them.

Each matrix is rounded to the grid of a scheme: by the Hessian of its inputs, or to the nearest.
The inputs are those that it has in the pruned block, which runs once more for them. What nothing is
known of (experts that saw too few tokens, what the block does not call) is rounded to the nearest.
Where there is a regional optimiser, it begins with that and works through the rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from secateur.blocks.in_training import Masked
from secateur.blocks.new_weights import Observed, OpenBlock, Pruned, task_of
from secateur.blocks.observe import observe
from secateur.blocks.observer import ToGather
from secateur.blocks.regional import optimise
from secateur.blocks.store import for_a_while
from secateur.blocks.stream import Tick
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
from secateur.recipe import Plan
from secateur.statistics import Need


def observe_pruned(
    block: OpenBlock, observed: Observed, pruned: Mapping[str, Tensor], plan: Plan, tick: Tick
) -> Observed:
    """What the block shows of itself once it is pruned: the Hessians that it is rounded by.

    Args:
        block: the dense block, which it is again afterwards.
        observed: its statistics.
        pruned: its weights, float32 [out, in].
        plan: what is observed.
        tick: told of progress.
    """
    to_gather = ToGather(
        frozenset({Need.HESSIAN}), probe_tokens=0, route_all=plan.route_all,
        expert_tokens=plan.expert_tokens, all_outputs=False,
    )  # fmt: skip
    with for_a_while({matrix: pruned[matrix.name] for matrix in block.matrices}):
        again = observe(block.module, block.index, observed.stream, block.matrices, to_gather, tick)
    return replace(observed, observer=again.observer)


def round_weights(
    block: OpenBlock,
    observed: Observed | None,
    pruned: Pruned,
    plan: Plan,
    source: BlockModel,
    tick: Tick,
) -> tuple[Pruned, dict[str, RoundedMatrix]]:
    """Round the new weights of a block.

    Args:
        block: the dense block.
        observed: its statistics, Hessians among them for GPTQ; None without calibration.
        pruned: its weights, float32 [out, in], 0 where pruned.
        plan: to what they are rounded, and how; if to nothing, they stay as they are.
        source: knows the dtype that each parameter is stored in.
        tick: told of progress.

    Returns:
        the same with the rounded values; and by parameter name in the model what is to be stored,
        of fused experts the levels, scales and zero points of all of them, stacked.

    Raises:
        NumericalError: a Hessian has no inverse, or the regional loss is not finite.
    """
    if plan.rounding is None:
        return pruned, {}
    rounded: Mapping[str, RoundedMatrix] = _rounded(
        block, observed, pruned.weights, plan.rounding, source, tick
    )
    judged = pruned.judged
    if plan.trains_rounded and observed is not None:
        start = {
            name: Masked(weight != 0, weight, rounded[name])
            for name, weight in pruned.weights.items()
        }
        task = task_of(block, observed, plan)
        refined = optimise(task, start, None, plan.regional, plan.seed, tick)
        rounded, judged = refined.rounded, refined.judged
    weights = {name: one.weight.float() for name, one in rounded.items()}
    by_parameter: dict[str, list[RoundedMatrix]] = {}
    for matrix in block.matrices:
        by_parameter.setdefault(block.prefix + matrix.parameter, []).append(rounded[matrix.name])
    fused = {block.prefix + m.parameter for m in block.matrices if m.expert is not None}
    return replace(pruned, weights=weights, judged=judged), {
        name: stacked(matrices) if name in fused else matrices[0]
        for name, matrices in by_parameter.items()
    }


def _rounded(
    block: OpenBlock,
    observed: Observed | None,
    weights: Mapping[str, Tensor],
    rounding: Rounding,
    source: BlockModel,
    tick: Tick,
) -> dict[str, RoundedMatrix]:
    """The matrices of a block, rounded, by their name."""
    scales = {
        matrix: scale_dtype(source.storage_dtype(block.prefix + matrix.parameter))
        for matrix in block.matrices
    }
    rounded: dict[str, RoundedMatrix] = {}
    if rounding.by == "gptq":
        assert observed is not None
        groups = list(_alike(observed, scales))
        for number, (group, dtype) in enumerate(groups):
            tick("round", number, len(groups))
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
            rounded[matrix.name] = round_to_nearest(
                weights[matrix.name], rounding.scheme, scales[matrix]
            )
    return {matrix.name: rounded[matrix.name] for matrix in block.matrices}


def _alike(
    observed: Observed, scales: Mapping[Matrix, torch.dtype]
) -> Iterator[tuple[list[Matrix], torch.dtype]]:
    """The matrices that read the same input and are stored in the same dtype, and that dtype."""
    unknown = {*observed.observer.starved, *observed.observer.uncalled}
    for group in observed.observer.groups:
        known = [matrix for matrix in group if matrix in scales and matrix not in unknown]
        for dtype in dict.fromkeys(scales[matrix] for matrix in known):
            yield [matrix for matrix in known if scales[matrix] == dtype], dtype
