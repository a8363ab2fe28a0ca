"""Which channels, heads or experts of every block go, by a method, and the narrower model.

    scores      the sum of a method's scores over the weights that read a structure
    inputs      what a method says of the norms of what is read of a structure
    turns       what a method takes one after the other, by the Hessian of what is read
    experts     what a method says of them (`experts.py`)

One pass of the dense model over the calibration: every block is observed, scored and passed, one in
memory. Every block loses as many, for the configuration holds one number for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from secateur.blocks.narrowed import Narrowed, layout_of
from secateur.blocks.new_weights import Observed, OpenBlock, informed
from secateur.blocks.observe import observe
from secateur.blocks.observer import ToGather
from secateur.blocks.stream import Stream, Tick
from secateur.checkpoint import Matrix, find_matrices
from secateur.checkpoint.proved import read_facts, write_facts
from secateur.checkpoint.unfinished import CHOSEN
from secateur.data import TokenBatch
from secateur.machine import processes
from secateur.methods import Method
from secateur.methods.parameters import AbsenceParams
from secateur.progress import Progress
from secateur.pruning.experts import ExpertChoice, how_many_go
from secateur.pruning.inputs import to_prove_with, to_search_with
from secateur.pruning.prepare import Prepared
from secateur.record.narrowed import CutRecord, LostWidth, written
from secateur.sparsity import Dense
from secateur.statistics import Statistics, check_finite


def choose_widths(
    prepared: Prepared, stream: Stream | None, progress: Progress, folder: Path | None
) -> LostWidth:
    """What every block of a run's model loses.

    Args:
        prepared: a run whose recipe has a pattern of structures in every block.
        stream: the calibration before the first block, left behind the last one; None without any.
        progress: told what happens.
        folder: where the choice is kept for a process that goes on after an interruption; None
            for a run that nothing goes on with.

    Raises:
        ModelError: the model's structures cannot be removed.
        NumericalError: a score is not finite.
    """
    file = None if folder is None else folder / CHOSEN
    known = processes.from_first(
        lambda: None if file is None or not file.is_file() else read_facts(file)
    )
    if known is not None:
        return LostWidth.model_validate(known)
    structures, source = prepared.plan.structures, prepared.source
    assert structures is not None
    progress.begin(f"{prepared.recipe.method} {structures}", len(source.blocks))
    count = how_many_go(source, structures, prepared.plan.multiple)
    (chosen,) = widths_for_each(prepared, [count], stream, progress.tick)
    if file is not None and processes.first():
        write_facts(file, chosen.model_dump(mode="json"))
    return chosen


def widths_for_each(
    prepared: Prepared, counts: Sequence[int], stream: Stream | None, tick: Tick
) -> list[LostWidth]:
    """What every block loses where so many structures go, for each of several numbers.

    Those of a smaller number are the first of a larger one: they are scored once.

    Args:
        prepared: a run whose recipe has a pattern of structures in every block.
        counts: how many of every block, as many as the model can lose (`how_many_go`).
        stream: the calibration before the first block, left behind the last one; None without any.
        tick: told of progress.

    Raises:
        ModelError: the model's structures cannot be removed.
        NumericalError: a score is not finite.
    """
    structures, source, multiple = prepared.plan.structures, prepared.source, prepared.plan.multiple
    assert structures is not None
    unit, total, most = structures.unit, source.how_many(structures.unit), max(counts)
    experts: ExpertChoice | None = None
    if unit == "experts":
        removal = prepared.recipe.chosen_method.removal
        assert removal is not None
        assert stream is not None  # faults.py has seen to both
        experts = ExpertChoice(source, removal, stream, most, tick)
        multiple = experts.groups
    tokens = to_prove_with(source, prepared.calibration)
    layouts = [layout_of(source, unit, total - count, tokens) for count in counts]
    orders: list[Sequence[int]] = []  # of each block those that go, the least important first
    sizes: list[int] = []  # weights of the matrices that they lie in
    for index in range(len(source.blocks)):
        tick("score", index, len(source.blocks))
        with source.open_block(index) as module:
            cuts = {cut.parameter: cut for cut in layouts[0].within(module)}
            matrices = [one for one in find_matrices(module) if one.parameter in cuts]
            sizes.append(sum(one.read().numel() for one in matrices))
            if matrices and experts is not None:
                orders.append(experts.of(module, index))
                continue
            if matrices:
                reading = [one for one in matrices if cuts[one.parameter].reads]
                importance = _importance(prepared, (index, module), reading, stream, (total, most))
                check_finite(importance, "the importance is", f"block {index}")
                orders.append(importance.argsort(stable=True)[:most].tolist())
            else:
                orders.append(())
            if stream is not None:
                stream.advance(module, index)
    return [
        LostWidth(
            unit=unit,
            of=total,
            removed=tuple(written(order[:count]) for order in orders),
            cuts=tuple(
                CutRecord(parameter=cut.parameter, dim=cut.dim, parts=cut.parts, reads=cut.reads)
                for cut in widths.cuts
            ),
            multiple=multiple,
            weights=sum(size * count // total for size in sizes),
        )
        for count, widths in zip(counts, layouts, strict=True)
    ]


def to_choose_with(prepared: Prepared) -> Prepared:
    """The run with no more calibration than the choice of structures within its blocks reads."""
    calibration, params = prepared.calibration, prepared.recipe.chosen_params
    if not prepared.recipe.chosen_method.needs_calibration:
        return replace(prepared, calibration=None)  # what there is may be to mend with
    if not isinstance(params, AbsenceParams):
        return prepared
    assert isinstance(calibration, TokenBatch)  # faults.py has seen to it
    few = to_search_with(calibration, params.tokens)
    return replace(prepared, calibration=replace(calibration, input_ids=few))


def without_width(prepared: Prepared, lost: LostWidth) -> tuple[Prepared, Narrowed]:
    """The run on the narrower model, and what it needs of the dense one.

    Raises:
        ModelError: no such model can be made.
    """
    source, widths = prepared.source, lost.of_model(prepared.source)
    narrow = source.narrowed(widths, lost.kept)
    narrowed = Narrowed(
        source, narrow, widths, lost.kept, to_prove_with(prepared.source, prepared.calibration)
    )
    notices = (*prepared.notices, f"{prepared.plan.structures}: {lost}")
    return replace(prepared, source=narrow, notices=notices, narrowed=lost), narrowed


def _importance(
    prepared: Prepared,
    block: tuple[int, nn.Module],
    reading: Sequence[Matrix],
    stream: Stream | None,
    numbers: tuple[int, int],
) -> Tensor:
    """The importance of every structure of an open block, float32 [structures].

    Args:
        prepared: the run.
        block: its number and its module.
        reading: the matrices that read what the structures make.
        stream: before the block; it stays there.
        numbers: how many structures there are, and how many go.
    """
    (index, module), (total, _) = block, numbers
    method, params = prepared.recipe.chosen_method, prepared.recipe.chosen_params
    observed = None
    if stream is not None:
        to_gather = ToGather(method.needs, all_outputs=False)
        seen = observe(module, index, stream, reading, to_gather)
        observed = Observed(stream, seen.observer, [], [])
    patterns = dict.fromkeys(reading, Dense())
    opened = OpenBlock(index, module, prepared.source.blocks.prefix(index), patterns)
    plan = replace(prepared.plan, method=method, params=params)
    scores = informed(opened, observed, None, plan).scores
    sums = []
    for matrix in reading:
        statistics = scores.statistics[matrix.name]
        if method.corrects:
            by_structure = _turns(method, matrix, statistics, numbers)
        elif method.removal is None:
            score = scores.of(matrix, matrix.read().float(), params)
            by_structure = score.sum(dim=0).view(total, -1).sum(dim=1)
        else:
            assert method.removal.of_inputs is not None
            of_inputs = method.removal.of_inputs(statistics.input_norm)
            by_structure = of_inputs.view(total, -1).sum(dim=1)
        sums.append(by_structure)
    return torch.stack(sums).sum(dim=0)


def _turns(
    method: Method, matrix: Matrix, statistics: Statistics, numbers: tuple[int, int]
) -> Tensor:
    """The importance of structures that a method takes in turn: the first least, [structures].

    Args:
        method: takes them by the Hessian.
        matrix: what reads the structures.
        statistics: of its inputs.
        numbers: how many structures there are, and how many go.
    """
    assert method.removal is not None
    assert method.removal.of_hessian is not None
    total, count = numbers
    size = matrix.shape[1] // total
    gone = method.removal.of_hessian(matrix.read().float(), statistics.hessian, size, count)
    turns = torch.zeros(total, device=gone.device)
    turns[gone] = torch.arange(-count, 0, dtype=turns.dtype, device=gone.device)
    return turns
