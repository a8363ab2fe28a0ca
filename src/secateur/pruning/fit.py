"""What a recipe asks for held against its model and device: is there what it asks for, and room?"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import ceil

from secateur.blocks.batching import batch_size, tokens_in_each
from secateur.checkpoint import BlockModel
from secateur.checkpoint.find_widths import MOST_HEADS
from secateur.checkpoint.matrices import find_all_matrices, is_fused_experts
from secateur.checkpoint.structure import Blocks
from secateur.data import ImageBatch, TokenBatch
from secateur.errors import ModelError, RecipeError
from secateur.machine import processes
from secateur.machine.memory import free_bytes
from secateur.pruning.device_memory import Sizes, device_bytes
from secateur.pruning.experts import how_many_go
from secateur.recipe import Plan, Recipe
from secateur.recipe.wording import name_of
from secateur.sparsity import Selection

EXACT, REFUSED = 0.1, 0.05
"""Shares of an estimate of device memory: it may be off by so much; a run is refused if it is above
what is free by so much, for what was held against a device that counts was estimated too high."""


@dataclass(frozen=True)
class Placement:
    """Where activations wait, and what the run takes of its device.

    Attributes:
        host: whether they wait in main memory.
        estimated: bytes of the accelerator that the run takes beside what is there; None on a CPU.
        free: bytes of it that are free; None on a CPU.
        notices: what the user should know.
    """

    host: bool = False
    estimated: int | None = None
    free: int | None = None
    notices: tuple[str, ...] = ()


def check_plan(plan: Plan, source: BlockModel) -> BlockModel:
    """Raise unless a model has what is to be pruned or removed of it.

    Returns:
        a model of the shape that is left: where structures go, without as many of them.

    Raises:
        RecipeError: no matrix is chosen, or a part of the choice finds none.
        PatternError: it has not so many structures, or would have none left.
        ModelError: its structures cannot be removed.
    """
    if plan.structures is None:
        check_selection(plan.selection, source.blocks)
        return source
    unit = plan.structures.unit
    gone = how_many_go(source, plan.structures, plan.multiple)
    if unit != "blocks":
        return _narrowed(source, unit, gone)
    begin = (len(source.blocks) - gone) // 2
    for some in (range(begin, begin + gone), range(gone)):
        with suppress(ModelError):  # other blocks may go all the same
            return source.without_blocks(some)
    return source.without_blocks(())


def _narrowed(source: BlockModel, unit: str, gone: int) -> BlockModel:
    """A model without as many structures in every block, whichever.

    Raises:
        ModelError: there is none; names the nearest number of them of which there is one.
    """
    widths = source.widths(unit)[0]

    def without(number: int) -> BlockModel:
        stay = range(widths.total - number)
        every = [stay if widths.within(one) else () for one in source.blocks.modules]
        return source.narrowed(widths, every)

    try:
        return without(gone)
    except ModelError as fault:
        others = sorted(range(1, widths.total), key=lambda number: abs(number - gone))
        for number in others[1 : 1 + MOST_HEADS]:
            try:
                without(number)
            except ModelError:
                continue
            hint = f"{unit}-{number}"
            raise ModelError(fault.what, where=fault.where, hint=hint) from fault
        raise


def check_selection(selection: Selection, blocks: Blocks) -> None:
    """Raise `RecipeError` unless every expression finds a matrix, and something is pruned."""
    every = {
        blocks.prefix(index) + matrix.name: (index, matrix.kind)
        for index, matrices in enumerate(find_all_matrices(blocks))
        for matrix in matrices
    }
    kinds = ", ".join(dict.fromkeys(kind for _, kind in every.values()))
    if idle := selection.idle(every):
        raise RecipeError(
            f"no matrix has {idle[0]!r} in its name",
            wanted=f"an expression that finds some of {kinds}",
        )
    if all(selection.pattern_of(index, name) is None for name, (index, _) in every.items()):
        raise RecipeError(
            "nothing is left to prune",
            where=f"{len(blocks)} blocks of {kinds}",
            hint="fewer of include, exclude, blocks and dense_first",
        )


def check_experts(recipe: Recipe, source: BlockModel) -> None:
    """Check that a model has the experts that a recipe has options for.

    Raises:
        RecipeError: it has none.
    """
    given = [
        name_of(name)
        for name in ("route_all", "expert_tokens")
        if getattr(recipe, name) != Recipe.model_fields[name].get_default()
    ]
    if given and not any(map(is_fused_experts, source.model.modules())):
        raise RecipeError(
            f"{type(source.model).__name__} has no experts", wanted=f"no {' and no '.join(given)}"
        )


def place_activations(
    recipe: Recipe,
    source: BlockModel,
    plan: Plan,
    calibration: TokenBatch | ImageBatch | None,
    heldout: Sequence[TokenBatch],
) -> Placement:
    """Where the activations of a run wait: where it asks for, or where there is room.

    Args:
        recipe: what was asked for.
        source: the model, its pieces closed.
        plan: what is done with every block.
        calibration, heldout: what goes through the blocks.

    Raises:
        RecipeError: the device has less memory than the run takes, in either place.
    """
    if source.device.type == "cpu":
        return Placement()
    free = free_bytes(source.device)
    sizes = _sizes(recipe, source, calibration, heldout, free)
    here, there = (device_bytes(source, plan, sizes, host=host) for host in (False, True))
    asked = recipe.activations
    host = asked == "host" or (asked == "auto" and here * (1 + EXACT) > free and there < here)
    estimated = there if host else here
    takes = f"about {_gib(estimated)} of {source.device}, and {_gib(free)} are free"
    if estimated > free * (1 + REFUSED):
        hint = "a smaller --batch-size, fewer --samples, another method, or --device cpu"
        if not host and there < free:
            hint = "--activations host"
        elif plan.schedule == "matrix":
            hint = "--schedule block"
        raise RecipeError(f"the run takes {takes}", where=f"--method {recipe.method}", hint=hint)
    notices: tuple[str, ...] = ()
    if host and asked == "auto":
        told = f"there they would take about {_gib(here)}, and {_gib(free)} are free"
        notices = (f"activations wait in main memory, not on {source.device}: {told}",)
    if estimated * (1 + EXACT) > free:
        notices += (f"the run takes {takes}: it may not fit",)
    return Placement(host, estimated, free, notices)


def _sizes(
    recipe: Recipe,
    source: BlockModel,
    calibration: TokenBatch | ImageBatch | None,
    heldout: Sequence[TokenBatch],
    free: int,
) -> Sizes:
    """How much goes through the blocks, in each process."""
    windows = [text.input_ids for text in heldout]
    sequences, length = 0, max((text.shape[1] for text in windows), default=0)
    if calibration is not None:
        sequences = ceil(len(calibration.inputs) / processes.count())
        length = tokens_in_each(calibration, source)
    batch = batch_size(recipe.batch_size, length, source) if length else 1
    measured = ceil(sum(text.numel() for text in windows) / processes.count())
    return Sizes(sequences, length, batch, measured, free, recipe.block_inputs)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
