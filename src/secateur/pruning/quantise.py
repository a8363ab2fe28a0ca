"""What a quantisation asks of a model and its files: looked at before a run, written after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path

from torch import nn

from secateur.checkpoint import BlockModel, Matrix, find_all_matrices
from secateur.checkpoint.compressed import tensors_library
from secateur.checkpoint.compressed_writing import compressed_config
from secateur.checkpoint.matrices import is_fused_experts
from secateur.checkpoint.weight_files import CONFIG
from secateur.errors import ModelError
from secateur.quantization import fitted, scale_dtype, stored_bytes
from secateur.recipe import Plan
from secateur.record import BlockRecord

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
        _check_written(plan, chosen, source)
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
    chosen = {_parameter_of(name, matrix) for name, matrix in _chosen(plan, source)}
    layers = [name for name, part in source.model.named_modules() if isinstance(part, nn.Linear)]
    # Engines know layers by the names in the files, and take for linear what is a router here.
    inside = [
        source.blocks.prefix(index) + name
        for index, block in enumerate(source.blocks.modules)
        for name, weight in block.named_parameters()
        if weight.dim() > 1
    ]
    quantised = {name for one in chosen for name in (one, *source.stored_names(one))}
    others = {
        *(f"{layer}.weight" for layer in layers),
        *(name for one in inside for name in source.stored_names(one)),
    }
    ignored = {name for name in others - quantised if name.endswith(".weight")}
    return compressed_config(
        text, plan.rounding.scheme, [name.removesuffix(".weight") for name in ignored]
    )


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
        rows, columns = matrix.shape
        parameter = _parameter_of(name, matrix)
        stored = source.storage_dtype(parameter)
        parts = max(1, len(source.stored_names(parameter)) // _experts(matrix))
        scheme, scales = plan.rounding.scheme, scale_dtype(stored)
        total += parts * stored_bytes(scheme, rows // parts, columns, scales)
        total -= rows * columns * stored.itemsize
    return total


def packed_weight_bytes(plan: Plan, source: BlockModel, blocks: Sequence[BlockRecord]) -> int:
    """The bytes of all weights if no zero of a matrix were stored, where that takes less.

    Of such a matrix the other weights are, and a bit for every place that says whether there is
    one: what `secateur pack` writes, and for quantised matrices what it would be.

    Args:
        plan: what was done with every block.
        source: the model.
        blocks: what was counted in its matrices.
    """
    total = weight_bytes(plan, source)
    scheme = None if plan.rounding is None else plan.rounding.scheme
    rounded = {name for name, _ in _chosen(plan, source)}
    counted = {matrix.name: matrix for block in blocks for matrix in block.matrices}
    for index, matrices in enumerate(find_all_matrices(source.blocks)):
        for matrix in matrices:
            prefix = source.blocks.prefix(index)
            known = counted[prefix + matrix.name]
            bits = 8 * source.storage_dtype(prefix + matrix.parameter).itemsize
            if scheme is not None and known.name in rounded:
                bits = scheme.bits
            mask = known.rows * ceil(known.columns / 8)
            total -= max(0, known.zeros * bits // 8 - mask)
    return total


def _experts(matrix: Matrix) -> int:
    """How many matrices there are in the parameter of one."""
    return 1 if matrix.expert is None else len(matrix.whole)


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


def _check_written(plan: Plan, chosen: dict[str, Matrix], source: BlockModel) -> None:
    """Raise `ModelError` unless every matrix that is quantised can be written so, and loaded."""
    where = type(source.model).__name__
    if not source.streamed:
        raise ModelError(
            "the files cannot be read block by block, and so are not written quantised", where=where
        )
    assert plan.rounding is not None
    scheme = plan.rounding.scheme
    together = Counter(_parameter_of(name, matrix) for name, matrix in chosen.items())
    for name, matrix in chosen.items():
        parameter = _parameter_of(name, matrix)
        parts, hint = source.stored_names(parameter), "a model in memory, or measuring alone"
        if matrix.transposed:
            what = "a layer that stores its weight as [in, out] is"
        elif not all(part.endswith(".weight") for part in parts) or len(parts) % _experts(matrix):
            what = "experts that lie in one tensor are"
        elif matrix.expert is not None and not scheme.symmetric:
            what, hint = "experts with zero points are", f"{scheme}".removesuffix(":asym")
        elif together[parameter] != _experts(matrix):
            what, hint = "some experts and not all are", "all of them, or none"
        else:
            continue
        raise ModelError(f"{what} not written quantised", where=name, hint=hint)
    fused = any(map(is_fused_experts, source.model.modules()))
    if fused and not scheme.floating and all(matrix.expert is None for matrix in chosen.values()):
        raise ModelError(
            f"experts of 16 bits beside layers in {scheme} are not loaded by transformers 5.23",
            where=where,
            hint="quantising the experts too, or fp8",
        )
