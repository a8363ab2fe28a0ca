"""What a recipe asks to be done with every block."""

from __future__ import annotations

from dataclasses import dataclass, replace

from secateur.methods import Method, Params, Refine, Removal, get
from secateur.quantization import Rounding
from secateur.recipe.recipe import Recipe, Schedule
from secateur.recipe.regional import Regional
from secateur.sparsity import Dense, Selection, Structures
from secateur.statistics import Need


@dataclass(frozen=True)
class Plan:
    """What to do with every block.

    Attributes:
        method: what is done with the weights, and mended if the recipe asks for that; where
            structures are removed, and chosen by the recipe's method, their being kept.
        selection: which matrix gets which pattern.
        schedule: whether a block is pruned once it has been observed, or while it runs.
        route_all: norms and Hessians of an expert are of all tokens, not only of those sent to it.
        expert_tokens: an expert that saw fewer is starved: it is pruned by magnitude.
        structures: what is removed before anything else; None if nothing is.
        multiple: of which so many channels are left, where a share of them is removed.
        scorer: the method that scores them in every block; None for patterns that need none.
        removal: how those that go are chosen; None if by their weights.
        choosing: the parameters of that.
        rounding: what is done with the weights once they are pruned; None if nothing is.
    """

    method: Method
    params: Params
    selection: Selection
    regional: Regional
    seed: int
    route_all: bool = False
    expert_tokens: int = 32
    schedule: Schedule = "block"
    structures: Structures | None = None
    multiple: int = 1
    scorer: Method | None = None
    removal: Removal | None = None
    choosing: Params | None = None
    rounding: Rounding | None = None

    @property
    def trains_rounded(self) -> bool:
        """Whether the regional optimiser works through the rounding, on a mask that is held."""
        refined = self.method.refine is Refine.REGIONAL and self.regional.hold_mask
        return refined and self.rounding is not None

    @property
    def observes_pruned(self) -> bool:
        """Whether a pruned block runs once more, for the Hessians that its weights are rounded by.

        One that is pruned as it runs is observed so anyhow, and one of which nothing is pruned
        reads what it did.
        """
        rounds = self.rounding is not None and self.rounding.by == "gptq"
        prunes = any(type(pattern) is not Dense for pattern in self.selection.every_pattern)
        return rounds and prunes and self.schedule == "block"

    @property
    def corrects(self) -> bool:
        """Whether what is left of every block makes up for what is gone of it."""
        return self.scorer is not None and self.scorer.corrects


def multiple_of(structures: Structures | None, asked: int) -> int:
    """The multiple of which structures are left: channels are rounded, and nothing else."""
    return asked if structures is not None and structures.unit == "ffn" else 1


def plan_of(recipe: Recipe) -> Plan:
    """What a recipe asks to be done with every block."""
    method, params, scorer = recipe.chosen_method, recipe.chosen_params, None
    if recipe.structures is not None:
        scorer = method if recipe.structures.unit != "blocks" else None
        method = replace(get("magnitude"), refine=Refine.NONE)
        params = method.params()
    if recipe.mend:
        method = replace(method, refine=Refine.REGIONAL)
    rounding = recipe.rounding
    plan = Plan(
        method,
        params,
        recipe.selection,
        recipe.chosen_regional,
        recipe.seed,
        recipe.route_all,
        recipe.expert_tokens,
        recipe.schedule,
        recipe.structures,
        multiple_of(recipe.structures, recipe.width_multiple),
        scorer,
        recipe.chosen_method.removal,
        recipe.chosen_params,
        rounding,
    )
    if rounding is not None and rounding.by == "gptq" and not plan.observes_pruned:
        plan = replace(plan, method=replace(method, needs=method.needs | {Need.HESSIAN}))
    return plan
