"""Hooks that feed statistics while a block runs, always removed.

One set of accumulators per distinct input: q, k and v read the same tensor object, so they share
one norm and one Hessian; gate and up likewise. Which matrices share is seen in the first batch.

A gradient is that of whatever loss the caller sends back through the block. The sequences of a
batch do not mix, so that one backward pass gives every sequence's own gradient (see
`GradientNorm`).

Fused experts run one at a time while they are watched (`experts.py`); the statistics of each are of
the tokens that the router sends it. An expert that saw too few of them is starved.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.blocks.experts import See, run_one_by_one
from secateur.blocks.products import multiplies
from secateur.checkpoint import Matrix
from secateur.errors import ModelError, NumericalError
from secateur.machine import processes
from secateur.statistics import (
    GRADIENTS,
    GradientNorm,
    Hessian,
    InputNorm,
    Need,
    Order,
    uninformed,
)

PROBE_TOKENS = 256
"""Inputs of a matrix that are held, to measure later what pruning does to its output: so many
take little memory beside its weights."""


@dataclass(frozen=True)
class ToGather:
    """What an observation of a block is asked for.

    Attributes:
        needs: the statistics. Either gradient is that of whatever loss is sent back through the
            block while it is watched.
        order: how the gradients of the sequences are combined.
        probe_tokens: how many inputs of every matrix are kept for `Observer.output_error`.
        route_all: norms and Hessians of an expert are of all tokens, not only of those sent to it.
        expert_tokens: an expert that saw fewer is starved.
        all_outputs: the block's outputs of all batches are gathered, not only those of the first.
    """

    needs: frozenset[Need]
    order: Order = "l2"
    probe_tokens: int = PROBE_TOKENS
    route_all: bool = False
    expert_tokens: int = 0
    all_outputs: bool = True


class _SeenAllError(BaseException):
    """Ends a forward pass at the last matrix; no block's code takes it for a fault of its own."""


class Observer:
    """Gathers the statistics of a block's matrices while batches run through it.

    Args:
        matrices: the matrices to observe.
        to_gather: what to gather of them; outputs of the block are no matter of the observer.
    """

    def __init__(self, matrices: Sequence[Matrix], to_gather: ToGather) -> None:
        self._matrices = matrices
        self._needs = to_gather.needs
        self._order: Order = to_gather.order
        self._route_all = to_gather.route_all
        self._expert_tokens = to_gather.expert_tokens
        self._leader: dict[str, str] = {}  # matrix -> the first that reads the same input
        self._norms: dict[str, InputNorm] = {}  # by leader
        self._hessians: dict[str, Hessian] = {}  # by leader
        self._gradients: dict[str, GradientNorm] = {}
        self._probe_tokens = to_gather.probe_tokens
        self._probes: dict[str, Tensor] = {}  # by leader, [up to probe_tokens, in]
        self._current: dict[str, Tensor] = {}  # inputs seen in the pass that is running
        self._seen: dict[str, int] = {}  # tokens, by leader
        self._used: list[Matrix] = []  # in the last pass, in order

    @property
    def groups(self) -> list[list[Matrix]]:
        """The matrices that read the same input, together; without those in `uncalled`."""
        return [
            [m for m in self._matrices if self._leader.get(m.name) == leader]
            for leader in dict.fromkeys(self._leader.values())
        ]

    @contextmanager
    def watch(self, sequences: int, whole: bool = True) -> Iterator[None]:
        """Feed the statistics from whatever the block runs inside, a batch of `sequences`.

        What runs inside ends once the last matrix has its input, if not the `whole` is to run. The
        last is that of the pass before; none is if a matrix, or an expert's, is not used once.
        """
        once = sorted(m.name for m in self._used) == sorted(m.name for m in self._matrices)
        last = self._used[-1] if once and not whole else None
        self._used = []
        with ExitStack() as watched:
            watched.enter_context(suppress(_SeenAllError))
            experts: dict[nn.Module, dict[tuple[str, int], Matrix]] = {}
            for matrix in self._matrices:
                owner, hook = matrix.owner, self._hook(matrix, sequences)
                if matrix is last:
                    watched.callback(owner.register_forward_pre_hook(hook).remove)
                elif matrix.expert is None:
                    watched.callback(owner.register_forward_hook(hook).remove)
                else:
                    leaf = matrix.parameter.rpartition(".")[2]
                    experts.setdefault(owner, {})[leaf, matrix.expert] = matrix
            for owner, of_owner in experts.items():
                see, see_all = self._see(of_owner)
                watched.enter_context(run_one_by_one(owner, sequences, see, see_all))
            watched.callback(self._current.clear)
            yield

    def join(self) -> None:
        """Count in what the other processes saw of the same block; each has seen its matrices."""
        if processes.count() == 1:
            return
        for gathered in (self._norms, self._hessians, self._gradients):
            for name in sorted(gathered):
                gathered[name].join()
        names = sorted(self._seen)
        seen = processes.totals(*(self._seen[name] for name in names))
        self._seen = {name: int(tokens) for name, tokens in zip(names, seen, strict=True)}

    def let_go(self) -> None:
        """Forget the statistics, but not what `output_error` reads."""
        for gathered in (self._norms, self._hessians, self._gradients):
            gathered.clear()

    def count(self, matrices: Sequence[Matrix], inputs: Tensor, sequences: int) -> None:
        """Count what some matrices all read, [..., in], for a batch of `sequences`."""
        x = inputs.detach().reshape(-1, inputs.shape[-1])  # [batch * tokens, in]
        self._leader.update(dict.fromkeys((m.name for m in matrices), matrices[0].name))
        self._count(matrices[0], x, self._sizes(matrices[0], x, sequences))

    @property
    def uncalled(self) -> tuple[Matrix, ...]:
        """The matrices that nothing is known of: the block never multiplies by them as one does.

        Raises:
            ModelError: they are all that there are.
        """
        uncalled = tuple(m for m in self._matrices if m.name not in self._leader)
        if uncalled and len(uncalled) == len(self._matrices):
            raise ModelError(
                f"the block is never seen to call a matrix, such as {uncalled[0].name}",
                wanted="blocks that call their linear layers, and are not compiled",
                hint="--method magnitude",
            )
        return uncalled

    @property
    def starved(self) -> tuple[Matrix, ...]:
        """The matrices of experts that saw fewer than `expert_tokens` tokens."""
        return tuple(
            matrix
            for matrix in self._matrices
            if matrix.expert is not None and self._seen.get(matrix.name, 0) < self._expert_tokens
        )

    def values(self, matrix: Matrix) -> dict[Need, Tensor]:
        """The finished statistics of one matrix, by need.

        Of one in `uncalled` they say nothing. A gradient that no token ever had is zero.
        """
        if (leader := self._leader.get(matrix.name)) is None:
            return uninformed(self._needs, matrix.shape, matrix.read().device)
        values: dict[Need, Tensor] = {}
        if Need.INPUT_NORM in self._needs:
            values[Need.INPUT_NORM] = self._norms[leader].norm
        if Need.HESSIAN in self._needs:
            values[Need.HESSIAN] = self._hessians[leader].mean
        if Need.REGIONAL_GRADIENT in self._needs:
            values[Need.REGIONAL_GRADIENT] = self._gradients[matrix.name].mean
        if Need.FULL_GRADIENT in self._needs:
            values[Need.FULL_GRADIENT] = self._gradients[matrix.name].total
        return values

    @torch.no_grad()
    def output_error(self, matrix: Matrix, weight: Tensor) -> float | None:
        """What `weight` [out, in] in place of W does to the output of the matrix alone.

        norm2(X (W - weight)') / norm2(X W') over some inputs X [up to probe_tokens, in] of the
        first batch that the matrix saw; None if it saw none.

        Raises:
            NumericalError: an output is not finite.
        """
        leader = self._leader.get(matrix.name)
        if leader is None or (inputs := self._probes.get(leader)) is None:
            return None
        dense = matrix.read()
        output = (inputs @ dense.T).float().norm()
        lost = (inputs @ (dense - weight.to(dense.dtype)).T).float().norm()
        share, *norms = torch.stack([lost / output, lost, output]).tolist()  # one look
        if not all(map(math.isfinite, norms)):
            raise NumericalError("the output is not finite", where=matrix.name)
        return float(share) if norms[1] > 0 else 0.0

    def _hook(self, matrix: Matrix, sequences: int) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor | None = None) -> None:
            if output is not None and not multiplies(matrix, args, output):
                return
            self._used.append(matrix)
            # Some families flatten [batch, tokens] before their linear layers.
            x = args[0].detach().reshape(-1, args[0].shape[-1])  # [batch * tokens, in]
            sizes = self._sizes(matrix, x, sequences)
            if self._leads(matrix, args[0]):
                self._count(matrix, x, sizes)
            if output is None:
                raise _SeenAllError
            self._follow(matrix, x, sizes, output)

        return hook

    @staticmethod
    def _sizes(matrix: Matrix, x: Tensor, sequences: int) -> list[int]:
        """How many rows of x each sequence has."""
        if len(x) % sequences:
            raise ModelError(f"{matrix.name} reads {len(x)} rows of {sequences} sequences")
        return [len(x) // sequences] * sequences

    def _see(self, matrices: dict[tuple[str, int], Matrix]) -> tuple[See, See | None]:
        """What is done with the inputs and outputs of one module's experts."""

        def count(parameter: str, expert: int, x: Tensor, sizes: list[int], y: Tensor) -> None:
            if (matrix := matrices.get((parameter, expert))) is not None:
                self._leader[matrix.name] = matrix.name
                self._count(matrix, x.detach(), sizes)

        def follow(parameter: str, expert: int, x: Tensor, sizes: list[int], y: Tensor) -> None:
            if (matrix := matrices.get((parameter, expert))) is not None:
                self._follow(matrix, x.detach(), sizes, y)

        def count_and_follow(*seen: Any) -> None:
            count(*seen)
            follow(*seen)

        return (follow, count) if self._route_all else (count_and_follow, None)

    def _leads(self, matrix: Matrix, inputs: Tensor) -> bool:
        """Whether this matrix is the first that reads this very tensor."""
        same = (name for name, seen in self._current.items() if seen is inputs)
        leader = self._leader.setdefault(matrix.name, next(same, matrix.name))
        self._current[matrix.name] = inputs
        if leader != matrix.name and self._current.get(leader) is not inputs:
            raise ModelError(f"{matrix.name} and {leader} share their input in some batches only")
        return leader == matrix.name

    def _count(self, matrix: Matrix, x: Tensor, sizes: list[int]) -> None:
        """Count x [rows, in] in, so many rows of each sequence."""
        name, width, device = matrix.name, x.shape[-1], x.device
        self._seen[name] = self._seen.get(name, 0) + len(x)
        if Need.INPUT_NORM in self._needs:
            if name not in self._norms:
                self._norms[name] = InputNorm(width, device)
            self._norms[name].add(x)
        if Need.HESSIAN in self._needs:
            if name not in self._hessians:
                self._hessians[name] = Hessian(width, device)
            self._hessians[name].add(torch.split(x, sizes))
        if self._probe_tokens and len(x) and name not in self._probes:
            step = max(1, len(x) // self._probe_tokens)  # from all over the first batch
            self._probes[name] = x[::step][: self._probe_tokens].clone()

    def _follow(self, matrix: Matrix, x: Tensor, sizes: list[int], output: Tensor) -> None:
        """Count the gradient in, once that of the output is known."""
        if not self._needs & GRADIENTS:
            return
        if matrix.name not in self._gradients:
            self._gradients[matrix.name] = GradientNorm(matrix.shape, self._order, x.device)
        norm = self._gradients[matrix.name]

        def add(gradient: Tensor) -> None:
            rows = gradient.reshape(-1, gradient.shape[-1])  # [rows, out]
            norm.add(torch.split(x, sizes), torch.split(rows, sizes))

        if not output.requires_grad:  # computed without: it stays zero
            return
        output.register_hook(add)  # type: ignore[no-untyped-call]
