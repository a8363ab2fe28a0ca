"""Whether the matrices that a run quantised lie on their grids, for `secateur check`.

The levels in the files are whole numbers of so many bits, or float8, by their dtype and packing;
what is looked at here is that every matrix which the record says was quantised is stored so, with
the scheme that the record names, and that every scale is a positive number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from secateur.checkpoint import BlockModel, Checkpoint, find_all_matrices
from secateur.checkpoint.compressed import CompressedMatrix
from secateur.errors import RecipeError, some
from secateur.machine.waiting import each
from secateur.quantization import Scheme, fitted, parse_scheme
from secateur.record.record import RunRecord
from secateur.sparsity import read_selection


@dataclass(frozen=True)
class GridProof:
    """What was found of quantised matrices in the files.

    Attributes:
        kinds: how many matrices are stored in which way, such as "4 bits, a scale for 64 inputs".
        off: names of matrices that are to lie on a grid and do not, or have a scale that is none.
    """

    kinds: dict[str, int]
    off: tuple[str, ...]

    @property
    def complaints(self) -> list[str]:
        """What does not hold, in a phrase; none if all does."""
        if not self.off:
            return []
        return [f"not quantised as they are to be: {some(self.off)}"]


def prove_grids(checkpoint: Checkpoint, source: BlockModel, record: RunRecord | None) -> GridProof:
    """Look at every quantised matrix of a folder.

    Args:
        checkpoint: its files.
        source: the model in them.
        record: of the run that wrote it, if there is one.
    """
    stored = checkpoint.quantised
    kinds = Counter(matrix.title for matrix in stored.values())
    off = [
        name
        for name in each("looking at scales", stored)
        if not bool((scale := checkpoint.scales(name)).isfinite().all() and (scale > 0).all())
    ]
    for name, scheme in _asked(source, record):
        if (there := stored.get(name)) is None or not _is(there, scheme):
            off.append(name)
    return GridProof(dict(kinds), tuple(dict.fromkeys(off)))


def _asked(source: BlockModel, record: RunRecord | None) -> Collection[tuple[str, Scheme | None]]:
    """The tensors that a record says are quantised, with their scheme; None if it is not known."""
    if record is None or record.quantize is None:
        return ()
    selection = read_selection(record.pruning[-1].settings)
    chosen = {
        stored: matrix.shape[1]
        for index, matrices in enumerate(find_all_matrices(source.blocks))
        for matrix in matrices
        if selection.pattern_of(index, source.blocks.prefix(index) + matrix.name) is not None
        for stored in source.stored_names(source.blocks.prefix(index) + matrix.parameter)
    }
    try:
        scheme = fitted(parse_scheme(record.quantize), chosen.values())
    except RecipeError:  # of another version
        return [(name, None) for name in chosen]
    return [(name, scheme) for name in chosen]


def _is(there: CompressedMatrix, scheme: Scheme | None) -> bool:
    """Whether a matrix is stored by a scheme."""
    if scheme is None:
        return False
    weights = there.scheme.weights
    return bool(
        weights.num_bits == scheme.bits
        and (weights.type == "float") == scheme.floating
        and weights.group_size == scheme.group
        and weights.strategy == ("channel" if scheme.group is None else "group")
        and weights.symmetric == scheme.symmetric
    )
