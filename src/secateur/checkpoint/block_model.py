"""An opened model, as everything outside of this room sees it: a few pieces real at a time.

`StreamedModel` reads a piece from its files and lets it go; `ResidentModel` has all of it in
memory, and `WholeModel` is one of those that came from files. Nobody asks which it is: what differs
is asked of the model itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from secateur.checkpoint.fingerprint import SourceFiles
from secateur.checkpoint.narrower import Kept, Widths, told_of
from secateur.checkpoint.structure import Blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class BlockModel(ABC):
    """A model whose blocks are opened one at a time; what `blocks/` and `evaluation/` work on.

    Attributes:
        streamed: whether its weights are read from the files piece by piece. What is written into
            an open block is let go then, and goes to the result by `stored_block`; of a model that
            is not streamed it stays in memory, and the model is written as a whole.
        model: the model itself; only what is open may be computed with.
        blocks: its decoder blocks.
        device: where open pieces are.
        dtype: the precision of open pieces.
        notices: what the user should know of the files that it was read from.
        quantised: whether matrices lie quantised in these files; their values are opened.
    """

    streamed: bool
    model: PreTrainedModel
    blocks: Blocks
    device: torch.device
    dtype: torch.dtype
    notices: tuple[str, ...] = ()
    quantised: bool = False

    @abstractmethod
    def open_block(self, index: int) -> AbstractContextManager[nn.Module]:
        """One decoder block, ready to compute with; what is written into it may be let go."""

    @abstractmethod
    def open_surroundings(self) -> AbstractContextManager[PreTrainedModel]:
        """Everything but the blocks, ready to compute with."""

    def count_weights(self) -> int:
        """The weights of the model; those of tied parameters count once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def count_bytes(self) -> int:
        """The bytes of those weights in the dtypes that they are stored in."""
        parameters = dict(self.model.named_parameters())
        return sum(p.numel() * self.storage_dtype(n).itemsize for n, p in parameters.items())

    @abstractmethod
    def without_blocks(self, removed: Collection[int]) -> BlockModel:
        """The same model without some of its blocks, read from the same files.

        Args:
            removed: the numbers of the blocks that go.

        Raises:
            ModelError: its blocks cannot be numbered anew, or its configuration cannot say so.
        """

    @abstractmethod
    def widths(self, unit: str) -> list[Widths]:
        """The ways in which structures of the blocks may lie in their parameters.

        Args:
            unit: "ffn", "heads" or "experts".

        Raises:
            ModelError: such structures cannot be removed from the model.
        """

    def how_many(self, unit: str) -> int:
        """How many structures of a kind the model has, or every block that has such.

        Args:
            unit: "blocks", "ffn", "heads" or "experts".

        Raises:
            ModelError: such structures cannot be removed from the model.
        """
        if unit == "blocks":
            return len(self.blocks)
        told = told_of(self.model.config.get_text_config(decoder=True), unit)
        return self.widths(unit)[0].total if told is None else told

    @abstractmethod
    def narrowed(self, widths: Widths, kept: Kept) -> BlockModel:
        """The same model with fewer structures in its blocks, read from the same files.

        Args:
            widths: how the structures lie.
            kept: the numbers of those that stay, by block.

        Raises:
            ModelError: no such model can be made.
        """

    @property
    def new_config(self) -> str | None:
        """config.json of the result, if it is another than that of the files; None if not."""
        return None

    @abstractmethod
    def storage_dtype(self, name: str) -> torch.dtype:
        """The dtype in which a parameter is kept when its piece is closed."""

    def part(self, name: str, value: Tensor) -> dict[str, Tensor]:
        """The tensors that a parameter is made of, by their names in the files.

        Args:
            name: of the parameter.
            value: of its shape but for the last dimension, which is that of every part.
        """
        return {name: value}

    def stored_names(self, name: str) -> list[str]:
        """The names in the files of the tensors that a parameter is made of."""
        return [name]

    @property
    def unused(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the tensors of the files that the model makes nothing of, by name there."""
        return {}

    @abstractmethod
    def fingerprint(self) -> str:
        """The fingerprint of the model, hexadecimal: see `fingerprint.py`.

        Of a model in memory it is taken of the weights as they are now.
        """

    @abstractmethod
    def watch(self) -> SourceFiles | None:
        """The files of the model, every byte of which is hashed from now on as it is read.

        Returns:
            None for a model that the caller holds.

        Raises:
            CheckpointError: a file was changed since the model was opened.
        """

    @abstractmethod
    def stored_block(self, index: int, changed: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The tensors of one block as a file of the result holds them, by their names there.

        Args:
            index: of the block.
            changed: parameter name in the model -> new value as stored. What is not named keeps
                its bytes.

        Returns:
            None if the model is not streamed.
        """

    @abstractmethod
    def stored_surroundings(self) -> dict[str, Tensor]:
        """The tensors that `stored_block` does not give, bit for bit as they were.

        Of a model that is not streamed these are all, with what was changed.
        """
