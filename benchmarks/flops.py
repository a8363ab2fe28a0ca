"""The arithmetic that each method needs, in matrix products, for a decoder of Llama's shapes.

    python benchmarks/gpu.py --estimate         by phase, for a Llama 7B, 8B and 70B

A product of [a, b] and [b, c] is 2abc. For one block, T = N * L tokens in N sequences of L:

    linear      2 * T * (sum over matrices of out * in)
    attention   4 * heads * head_dim * (pairs of tokens): N * L * (L + 1) / 2 of them, causally
    forward     linear + attention

    to weights  linear: the gradients of all matrices, of each sequence by itself or of a batch
    to inputs   2 * T * (sum of out * in): of o, gate, up and down. What a gradient within the
                block needs; q, k, v too where the gradient goes on to the block below
    backward    to weights + to inputs + 2 * attention

    observe     forward: the dense block on what the pruned blocks below give it; without the last
                matrix where only statistics are wanted, for those need what it reads
    aim         forward: the dense block on what the dense blocks below give it, but for the first
    propagate   forward: the pruned block; but for the last block, whose output nothing reads
    Hessian     2 * T * in**2 for every distinct input: q, k, v share one; gate and up share one.
                Counted in full, as torch's product would be. A half of it would do, and Secateur
                computes 9/16: so the floor of a method with Hessians is not the lowest there is
    solve       of SparseGPT: 1/3 * in**3 for each of them (Cholesky), and rows * in**2 for what the
                change of a column does to those on its right
                of ALPS: in**3 for every penalty (Cholesky, inverse), and 2 * rows * in**2 for every
                product of its conjugate gradients
    fit         2 * rows * in**2 for every iteration of ALPS. How many it takes depends on the
                matrix: counted as on SmolLM2's
    optimise    forward + backward over rounds * samples sequences, and forward over those that
                judge, before the first round and after each

    judge       forward over the sequences that judge, for every alpha that is tried

    method          per block
    magnitude       nothing
    wanda           observe + propagate; with `schedule` matrix, one forward alone
    sparsegpt       the same + Hessian + solve
    alps            the same, with its own solve + fit
    gblm            the same as wanda + forward + forward again + backward to below, and the
                    head's forward and backward to its inputs, once. A block is run again
                    in the backward pass because one block at a time is in memory
    wanda++-rgs     observe + backward + judge + propagate
    wanda++-ro      observe + aim + optimise + propagate
    wanda++         observe + backward + judge + aim + optimise + propagate
    alps-ro         alps + aim + optimise

With target `block` there is no aim, and observe is the whole forward of all blocks.

Scores, masks, norms and the optimiser's own steps are no matrix products; they count as nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from secateur.blocks.judge import judging
from secateur.methods.wandapp import FACTORS

Parts = dict[str, float]
"""What a method does -> its operations in the whole model."""

ALPS_PENALTIES, ALPS_ITERATIONS, ALPS_REFINEMENT = 15, 44, 6
"""Of a matrix of SmolLM2 at 2:4, in the mean of three blocks; products of conjugate gradients."""
MATRIX = "matrix"
"""The schedule in which nothing runs twice."""
PHASES = {
    "observe": ("observe", "aim", "Hessian"),
    "gradients": ("forward", "to weights", "to inputs"),
    "solve": ("solve", "fit"),
    "optimise": ("judge", "optimise"),
    "propagate": ("propagate",),
}
"""Phase -> the parts that it takes; gradients of a block are made while it is observed, those of
the whole model before the first block."""
STATISTICS = frozenset({"Hessian", "to weights"})
"""Parts that float32 statistics take; they may be computed at another precision than the rest."""


@dataclass(frozen=True)
class Shapes:
    """A decoder.

    Attributes:
        matrices: name -> (out, in), of one block.
        inputs: the matrices that read the same input, together.
        attention: heads * head_dim.
        blocks: how many.
        head: operations per token of the output head's forward pass.
    """

    matrices: Mapping[str, tuple[int, int]]
    inputs: tuple[tuple[str, ...], ...]
    attention: int
    blocks: int
    head: float

    @classmethod
    def of(cls, config: Any) -> Self:
        """Those of a Llama configuration."""
        width, wide = config.hidden_size, config.intermediate_size
        dim = getattr(config, "head_dim", None) or width // config.num_attention_heads
        heads, shared = config.num_attention_heads * dim, config.num_key_value_heads * dim
        return cls(
            matrices={
                "q": (heads, width),
                "k": (shared, width),
                "v": (shared, width),
                "o": (width, heads),
                "gate": (wide, width),
                "up": (wide, width),
                "down": (width, wide),
            },
            inputs=(("q", "k", "v"), ("o",), ("gate", "up"), ("down",)),
            attention=heads,
            blocks=config.num_hidden_layers,
            head=2.0 * width * config.vocab_size,
        )

    @property
    def weights(self) -> int:
        """Prunable weights of one block."""
        return sum(out * width for out, width in self.matrices.values())


@dataclass(frozen=True)
class Count:
    """The operations of the pieces, for one block.

    Args:
        shapes: the decoder.
        sequences, length: of the calibration.
        causal: whether a token attends to those before it only; if not, to all.
    """

    shapes: Shapes
    sequences: float
    length: int
    causal: bool = True

    @property
    def tokens(self) -> float:
        return self.sequences * self.length

    @property
    def linear(self) -> float:
        return 2.0 * self.tokens * self.shapes.weights

    @property
    def attention(self) -> float:
        seen = (self.length + 1) / 2 if self.causal else self.length
        return 4.0 * self.shapes.attention * self.tokens * seen

    @property
    def forward(self) -> float:
        return self.linear + self.attention

    @property
    def last(self) -> float:
        """Of the matrix that a block reaches last."""
        return 2.0 * self.tokens * _size(self.shapes, self.shapes.inputs[-1][-1])

    @property
    def to_inputs(self) -> float:
        """Within the block: not those of q, k and v."""
        return self.linear - self.to_first_input

    @property
    def to_first_input(self) -> float:
        first = self.shapes.inputs[0]
        return 2.0 * self.tokens * sum(_size(self.shapes, name) for name in first)

    @property
    def hessian(self) -> float:
        return 2.0 * self.tokens * sum(width**2 for _, width in self._systems)

    def solve(self, method: str) -> float:
        """Of SparseGPT or ALPS, without the iterations of the latter."""
        total = 0.0
        for rows, width in self._systems:
            if method == "sparsegpt":
                total += width**3 / 3 + rows * width**2
            else:
                products = 1 + ALPS_REFINEMENT
                total += ALPS_PENALTIES * width**3 + products * 2.0 * rows * width**2
        return total

    @property
    def fit(self) -> float:
        """Of ALPS's iterations."""
        return ALPS_ITERATIONS * sum(2.0 * rows * width**2 for rows, width in self._systems)

    @property
    def _systems(self) -> list[tuple[int, int]]:
        """(rows of all matrices that read an input, its width)."""
        matrices = self.shapes.matrices
        return [
            (sum(matrices[name][0] for name in group), matrices[group[0]][1])
            for group in self.shapes.inputs
        ]


def count(
    method: str,
    shapes: Shapes,
    sequences: int,
    length: int,
    schedule: str | None = None,
    regional: Mapping[str, Any] | None = None,
    causal: bool = True,
) -> Parts:
    """The operations of a method on a whole model.

    Args:
        method: its name.
        shapes: the model.
        sequences, length: of the calibration.
        schedule: of the run; in `matrix` a block runs once.
        regional: settings of the optimiser, for a method that has one: rounds, samples, judges,
            target, weigh.
        causal: as in `Count`.

    Raises:
        ValueError: the optimiser weighs errors by the loss, as effort `best` does.
    """
    if method == "magnitude":
        return {}
    one, settings = Count(shapes, sequences, length, causal), regional or {}
    parts: Parts = {"observe": one.forward}
    with_gradient = method in ("wanda++", "wanda++-rgs")
    refined = method in ("wanda++", "wanda++-ro", "alps-ro")
    if schedule != MATRIX:
        whole = 0.0  # share of the blocks that are observed to the end
        if with_gradient or (refined and settings["target"] == "block"):
            whole = 1.0
        elif refined:
            whole = 1 / shapes.blocks
        others = 1 - 1 / shapes.blocks
        parts["observe"] -= (1 - whole) * one.last
        parts["propagate"] = others * one.forward
        if refined and settings["target"] == "model":
            parts["aim"] = others * one.forward
    if method in ("sparsegpt", "alps", "alps-ro"):
        parts |= {"Hessian": one.hessian, "solve": one.solve(method.removesuffix("-ro"))}
    if method in ("alps", "alps-ro"):
        parts["fit"] = one.fit
    if with_gradient:
        parts |= {"to weights": one.linear, "to inputs": one.to_inputs + 2 * one.attention}
        parts["judge"] = len(FACTORS) * one.forward * judging(sequences) / sequences
    if refined:
        aside = min(settings["judges"], sequences // 4)
        drawn = settings["rounds"] * min(settings["samples"], sequences - aside)
        if settings["weigh"] == "loss":
            raise ValueError("effort best is not counted: the dense model writes text, too")
        aside = aside or (sequences if settings["judges"] else 0)
        some = Count(shapes, drawn, length, causal)
        parts["optimise"] = some.forward + some.linear + some.to_inputs + 2 * some.attention
        parts["optimise"] += one.forward / sequences * aside * (settings["rounds"] + 1)
    parts = {name: shapes.blocks * operations for name, operations in parts.items()}
    if method == "gblm":
        parts["forward"] = shapes.blocks * 2 * one.forward + shapes.head * one.tokens
        parts["to weights"] = shapes.blocks * one.linear
        parts["to inputs"] = (
            shapes.blocks * (one.to_inputs + 2 * one.attention)
            + (shapes.blocks - 1) * one.to_first_input
            + shapes.head * one.tokens
        )
    return parts


def by_phase(parts: Parts) -> Parts:
    """The same operations by phase: of `PHASES` those that the method has."""
    phases = {phase: sum(parts.get(name, 0.0) for name in names) for phase, names in PHASES.items()}
    return {phase: operations for phase, operations in phases.items() if operations}


def _size(shapes: Shapes, name: str) -> int:
    out, width = shapes.matrices[name]
    return out * width
