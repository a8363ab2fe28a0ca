"""What a recipe asks to be done with every block."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.methods import Method, Params
from secateur.recipe.recipe import Recipe, Schedule
from secateur.recipe.regional import Regional
from secateur.sparsity import Selection


@dataclass(frozen=True)
class Plan:
    """What to do with every block.

    Attributes:
        selection: which matrix gets which pattern.
        schedule: whether a block is pruned once it has been observed, or while it runs.
        route_all: norms and Hessians of an expert are of all tokens, not only of those sent to it.
        expert_tokens: an expert that saw fewer is starved: it is pruned by magnitude.
    """

    method: Method
    params: Params
    selection: Selection
    regional: Regional
    seed: int
    route_all: bool = False
    expert_tokens: int = 32
    schedule: Schedule = "block"


def plan_of(recipe: Recipe) -> Plan:
    """What a recipe asks to be done with every block."""
    return Plan(
        recipe.chosen_method,
        recipe.chosen_params,
        recipe.selection,
        recipe.chosen_regional,
        recipe.seed,
        recipe.route_all,
        recipe.expert_tokens,
        recipe.schedule,
    )
