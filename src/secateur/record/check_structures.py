"""Whether a model has lost the structures that it is said to have lost, for `secateur check`."""

from __future__ import annotations

import torch

from secateur.checkpoint import BlockModel, locate, open_model
from secateur.errors import PatternError
from secateur.machine.waiting import each
from secateur.methods import get
from secateur.record.record import RunRecord
from secateur.sparsity import IN_FULL, Structures


def told_of_structures(record: RunRecord | None) -> tuple[str, ...]:
    """What a record says was removed, a line for each stage that removed something."""
    return () if record is None else tuple(map(str, record.lost))


def fault_of_structures(
    source: BlockModel, record: RunRecord | None, asked: Structures | None
) -> str | None:
    """What is not so of the structures of a model, in a phrase; None if all is, or nothing is said.

    Args:
        source: the model.
        record: that of the folder.
        asked: what is to have been removed.
    """
    lost = () if record is None else record.lost
    if record is not None and sum(stage.removes for stage in record.stages) != len(lost):
        return "run.json does not say which structures were removed"
    last = {one.unit: one for one in lost}  # the number that is left is that of the last stage
    for unit, one in last.items():
        if (there := source.how_many(unit)) != one.left:
            return f"{there} {IN_FULL[unit]}, run.json says {one.left}"
    if asked is None:
        return None
    of_kind = [one for one in lost if one.unit == asked.unit]
    if not of_kind:
        return f"no record that {asked} was removed"
    try:
        if any(one.lost == asked.removed_of(one.of, one.multiple) for one in of_kind):
            return None
    except PatternError as fault:
        return str(fault)
    return f"not {asked}: {'; '.join(told_of_structures(record))}"


def unlike_kept(
    made_from: str, record: RunRecord | None, source: BlockModel
) -> tuple[str, ...] | None:
    """Names of the tensors that are not, bit for bit, those of the blocks that were kept.

    None where they need not be: where more was done than to remove blocks, or nothing was removed.

    Args:
        made_from: the model that it is to be made from.
        record: that of the folder.
        source: the model in the folder.
    """
    if record is None or record.recovery is not None or not record.lost:
        return None
    if len(record.lost) < len(record.stages):
        return None
    if any(one.settings.get("mend") or get(one.title).corrects for one in record.stages):
        return None
    dense = open_model(locate(made_from), torch.device("cpu"), source.dtype)
    for one in record.lost:
        if one.of != (had := dense.how_many(one.unit)):
            return (f"{had} {IN_FULL[one.unit]}, where run.json says {one.of}",)
        if one.blocks not in (None, len(dense.blocks)):
            return (f"{len(dense.blocks)} blocks, where run.json tells of {one.blocks}",)
        dense = one.taken_from(dense)
    if len(dense.blocks) != len(source.blocks):
        return (f"{len(source.blocks)} blocks, and {len(dense.blocks)} are left of the source",)
    unlike = []
    for index in each("comparing blocks with the source's", range(len(source.blocks))):
        with source.open_block(index) as here, dense.open_block(index) as there:
            known = there.state_dict()
            unlike += [
                source.blocks.prefix(index) + name
                for name, value in here.state_dict().items()
                if not torch.equal(value, known[name])
            ]
    return tuple(unlike)
