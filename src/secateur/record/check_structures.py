"""Whether a model has lost the structures that it is said to have lost, for `secateur check`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.checkpoint import BlockModel, find_matrices, locate, open_model
from secateur.errors import PatternError, some
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


@dataclass(frozen=True)
class KeptTensors:
    """What is left of a source, held against it bit for bit.

    Attributes:
        but: what was not compared, and why, as a part of a sentence; empty if all was.
        unlike: names of the tensors that are not the source's; None if none were compared.
    """

    but: str = ""
    unlike: tuple[str, ...] | None = ()

    def __str__(self) -> str:
        if self.unlike is None:
            return f"not compared with the source: {self.but}"
        verdict = f"others are {some(self.unlike)}" if self.unlike else "all tensors are the same"
        return f"compared with the source, bit for bit{self.but}: {verdict}"


def compare_kept(
    made_from: str, record: RunRecord | None, source: BlockModel
) -> KeptTensors | None:
    """Whether what was not to change of a smaller model is, bit for bit, what its source has.

    Args:
        made_from: the model that it is to be made from.
        record: that of the folder.
        source: the model in the folder.

    Returns:
        None if no structures were removed.
    """
    if record is None or not record.lost:
        return None
    if record.recovery is not None:
        return KeptTensors("it was trained, which may change every tensor", None)
    dense = open_model(locate(made_from), torch.device("cpu"), source.dtype)
    for one in record.lost:
        if one.of != (had := dense.how_many(one.unit)):
            told = f"{had} {IN_FULL[one.unit]}, where run.json says {one.of}"
            return KeptTensors(unlike=(told,))
        if one.blocks not in (None, len(dense.blocks)):
            told = f"{len(dense.blocks)} blocks, where run.json tells of {one.blocks}"
            return KeptTensors(unlike=(told,))
        dense = one.taken_from(dense)
    if len(dense.blocks) != len(source.blocks):
        told = f"{len(source.blocks)} blocks, and {len(dense.blocks)} are left of the source"
        return KeptTensors(unlike=(told,))
    but, changed = _changed(record)
    with source.open_surroundings() as here, dense.open_surroundings() as there:
        unlike = _unlike(here.state_dict(), there.state_dict())
    for index in each("comparing blocks with the source's", range(len(source.blocks))):
        with source.open_block(index) as block, dense.open_block(index) as whole:
            held = dict(block.state_dict())
            for name in changed if changed is not None else _matrices(block):
                held.pop(name, None)
            unlike += [
                source.blocks.prefix(index) + name for name in _unlike(held, whole.state_dict())
            ]
    return KeptTensors(but, tuple(unlike))


def _changed(record: RunRecord) -> tuple[str, Collection[str] | None]:
    """What stages changed of what they kept, in words, and its names in a block; None: matrices."""
    if any(stage.settings.get("mend") for stage in record.stages):
        return ", but for the matrices, which mending changed", None
    if len(record.lost) < len(record.stages):
        return ", but for the matrices, which another stage changed", None
    correcting = {
        stage.title: {cut.parameter for cut in stage.narrowed.cuts if cut.reads}
        for stage in record.stages
        if stage.narrowed is not None and get(stage.title).corrects
    }
    names = {name for some_names in correcting.values() for name in some_names}
    return (
        f", but for {some(names)}, which {' and '.join(correcting)} changed" if names else ""
    ), names


def _matrices(block: nn.Module) -> Collection[str]:
    return {matrix.parameter for matrix in find_matrices(block)}


def _unlike(here: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that are not the same; those that are not in memory are left out."""
    return [
        name
        for name, value in here.items()
        if not value.is_meta and not torch.equal(value, there[name])
    ]
