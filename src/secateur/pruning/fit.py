"""A selection of matrices held against a model: does it find what it asks for?"""

from __future__ import annotations

from secateur.checkpoint.matrices import find_all_matrices
from secateur.checkpoint.structure import Blocks
from secateur.errors import RecipeError
from secateur.sparsity import Selection


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
