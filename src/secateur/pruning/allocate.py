"""Sparsity where it hurts least: a ratio for every part of every block, from the dense model.

Before anything is pruned, some calibration sequences go through the dense model once.

    owl        outliers of a block: weights whose Wanda score is over 5 times the block's mean
    measured   each part of each block is pruned alone, by Wanda, to two ratios; what this does to
               the model's predictions (KL divergence from the dense model's) is measured at its end

A part is a matrix, experts in the same place taken together; for owl, the block. All of it takes
one pass over the files: what was pruned below travels up beside the dense hidden states. In memory
are the hidden states of a few tokens (`to_search_with`) for every part and ratio.

How ratios follow is in `sparsity/allocation.py`. The shares that are pruned stay what was asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from secateur.blocks.batching import batch_size
from secateur.blocks.observe import observe
from secateur.blocks.observer import Observer, ToGather
from secateur.blocks.store import for_a_while
from secateur.blocks.stream import Stream, Tick
from secateur.checkpoint import BlockModel, Matrix, find_all_matrices
from secateur.checkpoint.durable import write_text
from secateur.data import TokenBatch
from secateur.evaluation.perplexity import effects_of
from secateur.machine import processes
from secateur.machine.accelerator import as_float64
from secateur.methods.wanda import WandaParams, wanda
from secateur.progress import Progress
from secateur.pruning.inputs import to_search_with
from secateur.pruning.prepare import Prepared
from secateur.sparsity import Selection, Unstructured, keep_mask, without_dropped
from secateur.sparsity.allocation import Count, by_damage, by_outliers
from secateur.statistics import Need, Statistics

OUTLIER = 5.0
"""How many times the mean score of its block a weight exceeds to be an outlier: OWL's choice."""
STEP = 0.1
"""Distance from the target of the two ratios at which damage is measured."""
TO_GATHER = ToGather(frozenset({Need.INPUT_NORM}))
"""What Wanda scores need."""


@dataclass(frozen=True)
class Part:
    """Matrices that share a ratio.

    Attributes:
        block: which block it is of.
        expression: matches the names of its matrices, and of no others.
        matrices: what it is made of.
    """

    block: int
    expression: str
    matrices: tuple[Matrix, ...]

    @property
    def size(self) -> int:
        """How many weights it has."""
        return sum(rows * columns for rows, columns in (m.shape for m in self.matrices))

    def pruned(self, ratio: float) -> int:
        """How many of its weights are pruned at a ratio, the same in every row."""
        shapes = (matrix.shape for matrix in self.matrices)
        return sum(rows * Unstructured(ratio).pruned_of(columns) for rows, columns in shapes)


def allocate(prepared: Prepared, progress: Progress, folder: Path | None) -> Prepared:
    """The run with a ratio of its own for every part, if its recipe asks for that.

    Args:
        prepared: the run.
        progress: told what happens.
        folder: where the ratios are kept for a process that goes on after an interruption; None
            for a run that nothing goes on with.
    """
    recipe, source, plan = prepared.recipe, prepared.source, prepared.plan
    calibration, pattern = prepared.calibration, plan.selection.pattern
    if recipe.allocation == "uniform":
        return prepared
    assert isinstance(calibration, TokenBatch)  # prepare.py has seen to it
    assert isinstance(pattern, Unstructured)
    file = None if folder is None else folder / "allocation.json"
    ratios = processes.from_first(lambda: _read(file))
    if ratios is None:
        parts = _parts(source, plan.selection, whole_blocks=recipe.allocation == "owl")
        progress.begin(f"allocation {recipe.allocation}", len(source.blocks))
        inputs = to_search_with(calibration)
        size = batch_size(recipe.batch_size, inputs.shape[1], source)
        stream = Stream(source, inputs, size, host=prepared.activations.host)
        if recipe.allocation == "owl":
            shares = outliers(source, stream, parts, progress.tick)
            by_part = by_outliers(shares, pattern.ratio, _counter(parts))
        else:
            tried = _ratios_around(pattern.ratio)
            damage = damages(source, stream, parts, tried, progress.tick)
            sizes = torch.tensor([float(part.size) for part in parts], dtype=torch.float64)
            tried_ratios = torch.tensor(tried, dtype=torch.float64)
            by_part = by_damage(damage, tried_ratios, sizes, pattern.ratio, _counter(parts))
        ratios = {part.expression: ratio for part, ratio in zip(parts, by_part, strict=True)}
        if file is not None and processes.first():
            write_text(file, json.dumps(ratios, indent=1))
    patterns = tuple((expression, Unstructured(ratio)) for expression, ratio in ratios.items())
    selection = replace(plan.selection, patterns=(*plan.selection.patterns, *patterns))
    return replace(prepared, plan=replace(plan, selection=selection))


@torch.no_grad()
def outliers(source: BlockModel, stream: Stream, parts: Sequence[Part], tick: Tick) -> Tensor:
    """The share of weights whose Wanda score is an outlier, in every part: float64 [parts]."""
    shares = torch.zeros(len(parts), dtype=torch.float64)
    for index in range(len(source.blocks)):
        tick("outliers", index, len(source.blocks))
        with source.open_block(index) as module:
            numbers = [number for number, part in enumerate(parts) if part.block == index]
            matrices = [matrix for number in numbers for matrix in parts[number].matrices]
            dense = observe(module, index, stream, matrices, TO_GATHER)
            for number in numbers:
                scores = torch.cat(
                    [_score(matrix, dense.observer).flatten() for matrix in parts[number].matrices]
                )
                shares[number] = as_float64(scores > OUTLIER * scores.mean()).mean().cpu()
        stream.hidden = dense.outputs
    return shares


@torch.no_grad()
def damages(
    source: BlockModel, stream: Stream, parts: Sequence[Part], ratios: Sequence[float], tick: Tick
) -> Tensor:
    """KL divergence from the dense model with one part pruned alone: float64 [parts, ratios]."""
    pruned: dict[tuple[int, int], Stream] = {}
    for index in range(len(source.blocks)):
        tick("measure", index, len(source.blocks))
        with source.open_block(index) as module:
            for other in pruned.values():
                other.advance(module, index)
            numbers = [number for number, part in enumerate(parts) if part.block == index]
            matrices = [matrix for number in numbers for matrix in parts[number].matrices]
            dense = observe(module, index, stream, matrices, TO_GATHER)
            for number in numbers:
                for column, ratio in enumerate(ratios):
                    with for_a_while(_pruned(parts[number], dense.observer, ratio)):
                        pruned[number, column] = stream.fork()
                        pruned[number, column].advance(module, index)
        stream.hidden = dense.outputs
    damage = torch.zeros(len(parts), len(ratios), dtype=torch.float64)
    effects = effects_of(source, list(pruned.values()), stream)
    for (number, column), effect in zip(pruned, effects, strict=True):
        damage[number, column] = effect.divergence
    return damage


def _pruned(part: Part, observer: Observer, ratio: float) -> dict[Matrix, Tensor]:
    """The weights [out, in] of the matrices of a part, pruned by Wanda."""
    pattern = Unstructured(ratio)
    return {
        matrix: without_dropped(matrix.read(), keep_mask(_score(matrix, observer), pattern))
        for matrix in part.matrices
    }


def _score(matrix: Matrix, observer: Observer) -> Tensor:
    statistics = Statistics(observer.values(matrix), sequences=1)
    return wanda(matrix.read().float(), statistics, WandaParams())


def _parts(source: BlockModel, selection: Selection, *, whole_blocks: bool) -> list[Part]:
    """What gets a ratio of its own: whatever is pruned to the pattern that has no exception."""
    parts: list[Part] = []
    for index, matrices in enumerate(find_all_matrices(source.blocks)):
        prefix = source.blocks.prefix(index)
        by_expression: dict[str, list[Matrix]] = {}
        for matrix in matrices:
            if selection.pattern_of(index, prefix + matrix.name) == selection.pattern:
                inside = "" if whole_blocks else _names_alike(matrix)
                by_expression.setdefault("^" + re.escape(prefix) + inside, []).append(matrix)
        parts += [Part(index, names, tuple(group)) for names, group in by_expression.items()]
    return parts


def _names_alike(matrix: Matrix) -> str:
    """What the names of a matrix, and of all experts in its place, are within their block."""
    if matrix.expert is None:
        return re.escape(matrix.name) + "$"
    module, _, leaf = matrix.parameter.rpartition(".")
    return rf"{re.escape(module)}\.\d+\.{re.escape(leaf)}$"


def _counter(parts: Sequence[Part]) -> Count:
    """What ratios of the parts really prune."""
    total = sum(part.size for part in parts)
    return lambda ratios: (
        sum(part.pruned(ratio) for part, ratio in zip(parts, ratios, strict=True)) / total
    )


def _read(file: Path | None) -> dict[str, float] | None:
    """The ratios that an interrupted run had computed."""
    if file is None or not file.is_file():
        return None
    ratios: dict[str, float] = json.loads(file.read_text())
    return ratios


def _ratios_around(target: float) -> list[float]:
    """Where damage is measured: below and above the target, within 0 and 1."""
    reach = min(STEP, target / 2, (1 - target) / 2)
    return [target - reach, target + reach]
