"""What a recipe asks for held against its model: has it what is to be chosen, or used?"""

from __future__ import annotations

from secateur.checkpoint import BlockModel
from secateur.checkpoint.matrices import find_all_matrices, is_fused_experts
from secateur.checkpoint.structure import Blocks
from secateur.errors import RecipeError
from secateur.recipe import Plan, Recipe
from secateur.recipe.wording import name_of
from secateur.sparsity import Selection


def check_plan(plan: Plan, source: BlockModel) -> None:
    """Raise unless a model has what is to be pruned or removed of it.

    Raises:
        RecipeError: no matrix is chosen, or a part of the choice finds none.
        PatternError: it has not so many structures, or would have none left.
        ModelError: its structures cannot be removed.
    """
    if plan.structures is None:
        check_selection(plan.selection, source.blocks)
        return
    plan.structures.removed_of(len(source.blocks))
    source.without_blocks(())


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


def matrix_shapes(source: BlockModel) -> dict[str, tuple[int, int]]:
    """(out, in) of every prunable matrix, by parameter name in the model."""
    return {
        source.blocks.prefix(index) + matrix.name: matrix.shape
        for index, matrices in enumerate(find_all_matrices(source.blocks))
        for matrix in matrices
    }
