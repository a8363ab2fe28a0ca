"""What is done to a model whose blocks are narrower, by the dense model that has all of the width.

    prove      a narrower block computes what the dense one does once its missing channels or heads
               are silenced, on some tokens: zeros stand where the matrix behind them reads them
    correct    what reads the channels or heads that are left makes up for those that are gone
    advance    the dense model's stream goes through the dense block, so that the narrower one may
               learn to do what that does

Of layouts that are possible the proof chooses the one that is meant. A missing expert cannot be
silenced from outside, for the router would still choose it: in its place the dense block's own
tensors are put into an empty block with fewer experts (`fewer_experts.py`), which is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from secateur.blocks.fewer_experts import FewerExperts, narrowed
from secateur.blocks.new_weights import OpenBlock
from secateur.blocks.observe import observe
from secateur.blocks.observer import ToGather
from secateur.blocks.store import write
from secateur.blocks.stream import Batch, Stream, Tick
from secateur.checkpoint import BlockModel, Matrix, find_matrices
from secateur.checkpoint.narrower import KEEP_WIDTHS, Kept, Widths
from secateur.errors import ModelError
from secateur.machine import processes
from secateur.machine.accelerator import as_float64
from secateur.methods.sparsegpt import DAMPING
from secateur.sparsity import IN_FULL, Dense
from secateur.statistics import Need

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Relative difference of outputs that rounding explains, by precision; 0.05 for shorter ones."""


class Narrowed:
    """The blocks of a model that have lost some of their width.

    Args:
        dense: the model with all of its width.
        narrow: the model without some.
        widths: how the structures lie.
        kept: those that stay, by block.
        tokens: int64 [1, tokens], to prove by that blocks are what they should be.
    """

    def __init__(
        self, dense: BlockModel, narrow: BlockModel, widths: Widths, kept: Kept, tokens: Tensor
    ) -> None:
        self._dense, self._widths, self._kept = dense, widths, kept
        for_each = tokens.expand(processes.count(), -1)  # every process proves for itself
        self._before = Stream(dense, for_each, 1).batches[0]
        self._now = Stream(narrow, for_each, 1).batches[0]
        self._fewer = FewerExperts(dense.model)

    def prove(self, module: nn.Module, index: int) -> None:
        """Raise unless an open block does what the dense one does without what is missing.

        Args:
            module: of the narrower model, with the weights that it had.
            index: its number.

        Raises:
            ModelError: its output is another.
        """
        if not self.holds(module, index):
            lost = IN_FULL[self._widths.unit]
            raise ModelError(
                f"block {index} is not what it was without some of its {lost}",
                where=type(self._dense.model).__name__,
                hint=KEEP_WIDTHS,
            )

    @torch.no_grad()
    def holds(self, module: nn.Module, index: int) -> bool:
        """Whether an open block does so."""
        with self._dense.open_block(index) as whole:
            silent, stay = self._silent(whole, index), self._kept[index]
            if self._widths.unit == "experts" and stay:
                fewer = narrowed(whole, self._fewer.make(index)(len(stay)), stay)
                before = self._before.run(fewer, index)
            elif silent:
                before = _run(self._before, whole, index, silent)
            else:
                return True
        now = self._now.run(module, index)
        dtype, before, now = now.dtype, as_float64(before), as_float64(now)
        error = (before - now).norm() / before.norm()
        return float(error) <= TOLERANCE.get(dtype, 0.05)

    def correct(self, block: OpenBlock, stream: Stream, narrow: BlockModel) -> dict[str, Tensor]:
        """Let what is left of a block make up for what is gone, by least squares.

        Args:
            block: of the narrower model, open; the matrices that read its structures are changed.
            stream: of the narrower model, before the block.
            narrow: the narrower model.

        Returns:
            by parameter name in the model what is to be stored.
        """
        new = self.corrected(block.module, block.index, stream)
        part = replace(block, patterns=dict.fromkeys(new, Dense()))
        return write(part, {matrix.name: weight for matrix, weight in new.items()}, narrow)

    @torch.no_grad()
    def corrected(self, module: nn.Module, index: int, stream: Stream) -> dict[Matrix, Tensor]:
        """The matrices that read the structures, with what is left making up for what is gone.

            V = W_k + W_g H_gk inverse(H_kk + damping * mean diagonal of H_kk)

        W is the dense matrix with the columns k that stay and g that go, H the Hessian of its
        inputs as the narrower blocks below leave them.

        Args:
            module: the narrower block, open; it is not changed.
            index: its number.
            stream: of the narrower model, before the block.

        Returns:
            by matrix of `module` its new weights, float32 [out, left].
        """
        narrow = {matrix.parameter: matrix for matrix in find_matrices(module)}
        with self._dense.open_block(index) as whole:
            cuts = {cut.parameter: cut for cut in self._widths.within(whole) if cut.reads}
            reading = [one for one in find_matrices(whole) if one.parameter in cuts]
            if not reading:
                return {}
            to_gather = ToGather(frozenset({Need.HESSIAN}), all_outputs=False)
            observer = observe(whole, index, stream, reading, to_gather).observer
            new = {}
            for matrix in reading:
                hessian = observer.values(matrix)[Need.HESSIAN]
                k, g = (
                    cuts[matrix.parameter].places(some, self._widths.total).to(hessian.device)
                    for some in (self._kept[index], self._gone(index))
                )
                weight, own = matrix.read().float(), hessian[k][:, k]
                own.diagonal().add_(DAMPING * own.diagonal().mean())
                missing = weight[:, g] @ hessian[g][:, k]
                added = torch.linalg.solve(own, missing, left=False)
                new[narrow[matrix.parameter]] = weight[:, k] + added
        return new

    def advance(self, stream: Stream, module: nn.Module, index: int, tick: Tick) -> None:
        """Move the dense model's stream behind a block.

        Args:
            stream: of the dense model, as its block before left it.
            module: the narrower block; it is not run.
            index: its number.
            tick: told of progress.
        """
        with self._dense.open_block(index) as whole:
            stream.advance(whole, index, tick)

    def _gone(self, index: int) -> list[int]:
        """The numbers of the structures that a block has no longer, ascending."""
        kept = {*self._kept[index]}
        return [number for number in range(self._widths.total) if number not in kept]

    def _silent(self, block: nn.Module, index: int) -> dict[str, Tensor]:
        """The parameters of a dense block that read its structures, zero for those that are gone.

        They are none of experts, which nothing reads by itself.
        """
        held, total, gone = block.state_dict(), self._widths.total, self._gone(index)
        return {
            cut.parameter: held[cut.parameter].index_fill(
                cut.dim, cut.places(gone, total).to(held[cut.parameter].device), 0
            )
            for cut in self._widths.within(block)
            if cut.reads
        }


def _run(batch: Batch, block: nn.Module, index: int, weights: dict[str, Tensor]) -> Tensor:
    """What a block makes of a batch with some other weights."""
    return batch.calls[index](
        lambda *args, **kwargs: functional_call(block, weights, args, kwargs), batch.hidden
    )


def narrower_weights(whole: nn.Module, widths: Widths, kept: Sequence[int]) -> dict[str, Tensor]:
    """The tensors of a narrower block, made of those of the dense one, by name.

    Args:
        whole: the dense block, open.
        widths: how its structures lie.
        kept: those that stay, ascending.
    """
    held = whole.state_dict()
    for cut in widths.within(whole):
        places = cut.places(kept, widths.total).to(held[cut.parameter].device)
        held[cut.parameter] = held[cut.parameter].index_select(cut.dim, places)
    return held


def layout_of(source: BlockModel, unit: str, kept: int, tokens: Tensor) -> Widths:
    """How the structures of a model lie in its parameters: the layout that its first block proves.

    Args:
        source: the model.
        unit: "ffn", "heads" or "experts".
        kept: how many are to stay in every block.
        tokens: int64 [1, tokens], to prove by.

    Raises:
        ModelError: the model's structures cannot be removed, or no layout holds.
    """
    layouts = source.widths(unit)
    for widths in layouts:
        stay = _spread(kept, widths.total)
        everywhere = [stay if widths.within(one) else [] for one in source.blocks.modules]
        first = next(number for number, some in enumerate(everywhere) if some)
        narrow = source.narrowed(widths, everywhere)
        narrowed = Narrowed(source, narrow, widths, everywhere, tokens)
        with suppress(ModelError), narrow.open_block(first) as module:
            if narrowed.holds(module, first):
                return widths
    raise ModelError(
        f"a block without some of its {IN_FULL[unit]} is not what it was",
        where=type(source.model).__name__,
        hint=KEEP_WIDTHS,
    )


def _spread(kept: int, total: int) -> list[int]:
    """So many of the numbers below `total`, at distances that differ, ascending."""
    generator = torch.Generator().manual_seed(0)
    return sorted(torch.randperm(total, generator=generator)[:kept].tolist())
