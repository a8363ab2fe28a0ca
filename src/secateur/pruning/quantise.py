"""What a quantisation asks of a model and its files: looked at before a run, written after it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torch import nn

from secateur.checkpoint import BlockModel, Matrix, find_all_matrices
from secateur.checkpoint.compressed import tensors_library
from secateur.checkpoint.compressed_writing import compressed_config
from secateur.checkpoint.weight_files import CONFIG
from secateur.errors import ModelError
from secateur.quantization import fitted, scale_dtype, stored_bytes
from secateur.recipe import Plan
from secateur.recipe.wording import name_of

_ASYMMETRIC = (
    "transformers 5.23 loads zero points only with CompressedTensorsConfig(dequantize=True)"
)


def fit_rounding(plan: Plan, source: BlockModel, *, written: bool) -> tuple[Plan, tuple[str, ...]]:
    """The plan with groups that fill the rows of the model, and what the user should know of that.

    Args:
        plan: what is done with every block.
        source: the model.
        written: whether the result is a folder, or else measured or in memory.

    Raises:
        ModelError: the files of the result cannot hold a matrix quantised.
        SecateurError: the library that writes them is missing.
    """
    if plan.rounding is None:
        return plan, ()
    chosen = dict(_chosen(plan, source))
    if written:
        tensors_library()
        _check_written(chosen, source)
    asked = plan.rounding.scheme
    widths = {matrix.shape[1] for matrix in chosen.values()}
    scheme = fitted(asked, widths)
    notices = () if scheme.symmetric or not written else (_ASYMMETRIC,)
    if scheme == asked:
        return plan, notices
    odd = ", ".join(map(str, sorted(width for width in widths if width % (asked.group or 1))))
    instead = "a scale for every row" if scheme.group is None else f"groups of {scheme.group}"
    told = f"groups of {asked.group} do not divide {odd} inputs: all matrices get {instead}"
    return replace(plan, rounding=replace(plan.rounding, scheme=scheme)), (told, *notices)


def quantised_config(plan: Plan, source: BlockModel, folder: Path) -> str | None:
    """The config.json of the result; None if nothing is quantised.

    Args:
        plan: what was done with every block.
        source: the model.
        folder: its own.
    """
    if plan.rounding is None:
        return None
    text = source.new_config or (folder / CONFIG).read_text(encoding="utf-8")
    quantised = {name.removesuffix(".weight") for name in dict(_chosen(plan, source))}
    layers = (name for name, part in source.model.named_modules() if isinstance(part, nn.Linear))
    others = [name for name in layers if name not in quantised]
    return compressed_config(text, plan.rounding.scheme, others)


def weight_bytes(plan: Plan, source: BlockModel) -> int:
    """The bytes of all weights as the files of the result hold them, or would.

    Args:
        plan: what is done with every block.
        source: the model.
    """
    total = source.count_bytes()
    if plan.rounding is None:
        return total
    for name, matrix in _chosen(plan, source):
        (rows, columns), stored = matrix.shape, source.storage_dtype(_parameter_of(name, matrix))
        total += stored_bytes(plan.rounding.scheme, rows, columns, scale_dtype(stored))
        total -= rows * columns * stored.itemsize
    return total


def _parameter_of(name: str, matrix: Matrix) -> str:
    """The parameter that a matrix of that name in the model lies in."""
    return name.removesuffix(matrix.name) + matrix.parameter


def _chosen(plan: Plan, source: BlockModel) -> Iterator[tuple[str, Matrix]]:
    """What is quantised, by its name in the model: the matrices that have a pattern."""
    for index, matrices in enumerate(find_all_matrices(source.blocks)):
        for matrix in matrices:
            name = source.blocks.prefix(index) + matrix.name
            if plan.selection.pattern_of(index, name) is not None:
                yield name, matrix


def _check_written(chosen: dict[str, Matrix], source: BlockModel) -> None:
    """Raise `ModelError` unless every matrix that is quantised can be written so."""
    where = type(source.model).__name__
    if not source.streamed:
        raise ModelError(
            "the files cannot be read block by block, and so are not written quantised", where=where
        )
    for name, matrix in chosen.items():
        if matrix.expert is not None:
            what = "fused experts are"
        elif matrix.transposed:
            what = "a layer that stores its weight as [in, out] is"
        elif not name.endswith(".weight") or source.stored_name(name) is None:
            what = "a matrix of several tensors is"
        else:
            continue
        raise ModelError(
            f"{what} not written quantised",
            where=name,
            hint=f"{name_of('exclude')} {matrix.kind.rpartition('.')[2]}, which also leaves it"
            " unpruned, or a model in memory",
        )
