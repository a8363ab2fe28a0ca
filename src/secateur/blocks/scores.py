"""A method that scores, at work on one block: its masks, and the parameters that suit the block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.blocks.in_training import Masked
from secateur.blocks.judge import best_of
from secateur.blocks.task import Task
from secateur.checkpoint import Matrix
from secateur.methods import Method, Params
from secateur.methods.wanda import WandaParams, wanda
from secateur.recipe import Plan
from secateur.sparsity import Pattern, keep_mask, without_dropped
from secateur.statistics import Statistics, check_finite


@dataclass(frozen=True)
class Scores:
    """How a method that scores masks the matrices of a block.

    Attributes:
        prefix: what its parameters' names begin with in the model.
        patterns: what is pruned in it, and how.
        statistics: by matrix name.
        flat: matrices that no gradient comes back to, which get Wanda's score.
    """

    prefix: str
    patterns: Mapping[Matrix, Pattern]
    statistics: Mapping[str, Statistics]
    flat: frozenset[Matrix]
    method: Method

    @torch.no_grad()
    def of(self, matrix: Matrix, weight: Tensor, params: Params) -> Tensor:
        """The importance of every weight of a matrix, float32 [out, in] like its weights now."""
        assert self.method.score is not None
        statistics = self.statistics[matrix.name]
        if matrix in self.flat:
            score = wanda(weight, statistics, WandaParams())
        else:
            score = self.method.score(weight, statistics, params)
        check_finite(score, "the scores are", self.prefix + matrix.name)
        return score

    @torch.no_grad()
    def keep(self, matrix: Matrix, weight: Tensor, params: Params) -> Tensor:
        """The keep-mask of a matrix whose weights are now float32 [out, in], bool [out, in]."""
        score = self.of(matrix, weight, params)
        return keep_mask(score, self.patterns[matrix], params.chosen_competition)

    def masked(self, params: Params) -> dict[str, Masked]:
        """The dense weights of every matrix under its mask, by matrix name."""
        start = {}
        for matrix in self.patterns:
            weight = matrix.read().float()
            keep = self.keep(matrix, weight, params)
            start[matrix.name] = Masked(keep, without_dropped(weight, keep))
        return start


def params_of(task: Task | None, scores: Scores, plan: Plan) -> Params:
    """The parameters that the block is scored with: those that suit it, of the plan's candidates.

    Without the block's outputs, as where it is pruned while it runs, they are the plan's own.
    """
    candidates = plan.params.candidates
    if task is None or len(candidates) == 1 or not task.targets:
        return plan.params

    def prune(params: Params) -> dict[str, Tensor]:
        return {name: masked.weight for name, masked in scores.masked(params).items()}

    return best_of(task, candidates, prune)
