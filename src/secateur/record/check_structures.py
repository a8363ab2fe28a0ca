"""Whether a model has lost the structures that it is said to have lost, for `secateur check`."""

from __future__ import annotations

import torch

from secateur.checkpoint import BlockModel, locate, open_model
from secateur.errors import PatternError
from secateur.machine.waiting import each
from secateur.record.record import RunRecord
from secateur.sparsity import Structures


def told_of_structures(record: RunRecord | None) -> tuple[str, ...]:
    """What a record says was removed, a line for each stage that removed something."""
    if record is None:
        return ()
    return tuple(
        f"blocks {', '.join(map(str, sorted(one.removed)))} of {one.of} are removed:"
        f" {len(one.kept)} are left"
        for one in record.removed
    )


def fault_of_structures(
    blocks: int, record: RunRecord | None, asked: Structures | None
) -> str | None:
    """What is not so of the number of blocks, in a phrase; None if all is, or nothing is said.

    Args:
        blocks: how many the files hold.
        record: that of the folder.
        asked: what is to have been removed.
    """
    removed = () if record is None else record.removed
    if record is not None and sum(stage.removes for stage in record.stages) != len(removed):
        return "run.json does not say which blocks were removed"
    if removed and blocks != len(removed[-1].kept):
        return f"{blocks} blocks, run.json says {len(removed[-1].kept)}"
    if asked is None:
        return None
    if not removed:
        return f"no record that {asked} was removed"
    try:
        if any(len(one.removed) == asked.removed_of(one.of) for one in removed):
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
    if record is None or record.recovery is not None or not record.removed:
        return None
    if any(one.removed is None or one.settings.get("mend") for one in record.stages):
        return None
    dense = open_model(locate(made_from), torch.device("cpu"), source.dtype)
    for one in record.removed:
        if one.of != len(dense.blocks):
            return (f"{len(dense.blocks)} blocks, where run.json says {one.of}",)
        dense = dense.without_blocks(one.removed)
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
