"""Full-model gradients of an earlier run: whether they are this run's, and where its own may go."""

from __future__ import annotations

from pathlib import Path

from secateur.checkpoint import BlockModel, find_all_matrices
from secateur.checkpoint.claim import claim_file
from secateur.checkpoint.destination import result_path
from secateur.checkpoint.gradient_store import GradientFile
from secateur.data import ImageBatch, TokenBatch
from secateur.errors import OutputError, SecateurError
from secateur.recipe import Plan, Recipe


def matrix_shapes(source: BlockModel) -> dict[str, tuple[int, int]]:
    """(out, in) of every prunable matrix, by parameter name in the model."""
    return {
        source.blocks.prefix(index) + matrix.name: matrix.shape
        for index, matrices in enumerate(find_all_matrices(source.blocks))
        for matrix in matrices
    }


def gradient_facts(
    source: BlockModel, calibration: TokenBatch | ImageBatch, plan: Plan
) -> dict[str, str]:
    """What gradients depend on: those of an earlier run serve only if all of this is the same."""
    return {
        "format": "secateur/gradients/1",
        "aggregate": plan.params.gradient_order,
        "architecture": type(source.model).__name__,
        "weights": source.fingerprint(),
        "tokens": calibration.protocol.sha256,
        "precision": str(source.dtype).removeprefix("torch."),
    }


def already_saved(path: Path, source: BlockModel, facts: dict[str, str]) -> GradientFile | None:
    """The file, if an interrupted run got as far as to fill it with what this one would."""
    try:
        return GradientFile.open(path, matrix_shapes(source), facts)
    except SecateurError:
        return None


def claim_gradients(path: Path, recipe: Recipe, source: Path | None) -> None:
    """Raise unless a file of gradients can be written at `path`, whose folder must be there."""
    file = claim_file(path, overwrite=recipe.overwrite)
    if not file.parent.is_dir():
        raise OutputError("no file can be written here", where=path, wanted="a file in a folder")
    out = None if recipe.out is None else result_path(recipe.out)
    if any(file.is_relative_to(folder) for folder in (out, source and source.resolve()) if folder):
        raise OutputError(
            "the gradients would lie in the folder of the model or of the result",
            where=path,
            hint="another folder",
        )
