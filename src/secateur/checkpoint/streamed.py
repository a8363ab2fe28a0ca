"""A model's structure without its weights; any one block can be made real, and let go again.

Peak memory is what is real at the moment: one block, or the surroundings of the blocks (embedding,
final norm, output head). transformers' own rules make the parameters of the model from the tensors
in the files (`naming.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from accelerate.utils import set_module_tensor_to_device
from torch import Tensor, nn

from secateur.checkpoint.background import ReadAhead
from secateur.checkpoint.block_model import BlockModel
from secateur.checkpoint.configuration import notices_of, read_config
from secateur.checkpoint.fewer_blocks import (
    KEEP_BLOCKS,
    check_alike,
    config_without,
    names_without,
)
from secateur.checkpoint.find_widths import widths_of
from secateur.checkpoint.fingerprint import SourceFiles
from secateur.checkpoint.naming import Naming, NotStreamableError
from secateur.checkpoint.narrower import KEEP_WIDTHS, Kept, Widths, smaller_tensors
from secateur.checkpoint.no_model import missing_weights
from secateur.checkpoint.read import Checkpoint
from secateur.checkpoint.resident import unrounded
from secateur.checkpoint.skeleton import dtypes_of, empty_model
from secateur.checkpoint.smaller import SmallerCheckpoint
from secateur.checkpoint.structure import find_blocks
from secateur.errors import CheckpointError, ModelError, first_reason, some
from secateur.machine.memory import give_back
from secateur.sparsity import IN_FULL

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class StreamedModel(BlockModel):
    """A language model or a classifier of images on disk, made real piece by piece.

    Attributes:
        model: the skeleton; parameters are on the meta device unless their piece is open.
        blocks: the decoder blocks.
        device: where open pieces are.
        dtype: their precision, but for what the family keeps in float32 (`skeleton.dtypes_of`).
        checkpoint: where the weights come from.
        naming: which tensors of the files make up each parameter.
    """

    streamed = True

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        """Build the skeleton.

        Raises:
            NotStreamableError: see `Naming`; or a block's weights are not its own.
            CheckpointError: weights are missing or misshapen.
            ModelError: the architecture is unknown or has no blocks that can be told.
        """
        self.model = empty_model(read_config(checkpoint), checkpoint, dtype)
        self._dtypes = dtypes_of(self.model, dtype)
        self.checkpoint = checkpoint
        self.notices = notices_of(checkpoint)
        self.quantised = bool(checkpoint.quantised)
        self.device = device
        self.dtype = dtype
        self.blocks = find_blocks(self.model)
        self.naming = Naming(self.model, checkpoint)
        self._widths: dict[str, list[Widths]] = {}
        self._missing = set(self.model.state_dict()) - set(self.naming.parameters)
        _check_complete(self.model, self._missing, self.naming, checkpoint)
        if any(name.startswith(self.blocks.path + ".") for name in self._missing):
            raise NotStreamableError("blocks share weights with each other, or with the rest")
        for name, buffer in self.model.named_buffers():
            if not buffer.is_meta:  # one that the model computes for itself
                set_module_tensor_to_device(self.model, name, device)
        self._ahead = ReadAhead(
            lambda index: checkpoint.load(self.block_tensors(index)),
            lambda index: sum(map(checkpoint.dense_bytes, self.block_tensors(index))),
            len(self.blocks),
        )

    @contextmanager
    def open_block(self, index: int) -> Iterator[nn.Module]:
        """One decoder block with its weights; they are let go at the end."""
        names = self.block_parameters(index)
        try:
            self._fill(names, self._ahead.take(index))
            yield self.blocks.modules[index]
        finally:
            self._empty(names)

    @contextmanager
    def open_surroundings(self) -> Iterator[PreTrainedModel]:
        """The model with everything real but its blocks."""
        prefix = self.blocks.path + "."
        names = [name for name in self.naming.parameters if not name.startswith(prefix)]
        try:
            self._fill(names, self.checkpoint.load(self._tensors_of(names)))
            self.model.tie_weights(missing_keys=set(self._missing), recompute_mapping=False)
            yield self.model
        finally:
            self._empty([*names, *(name for name in self._missing if not name.startswith(prefix))])

    def without_blocks(self, removed: Collection[int]) -> StreamedModel:
        """The same model without some of its blocks, read from the same files."""
        whole, name = self.checkpoint, type(self.model).__name__
        by_block = [self.block_tensors(index) for index in range(len(self.blocks))]
        kept = [index for index in range(len(self.blocks)) if index not in removed]
        config = config_without(whole.config, whole.make_config(), removed)
        fewer = SmallerCheckpoint(whole, config, names_without(whole.names, by_block, removed))
        try:
            smaller = StreamedModel(fewer, self.device, self.dtype)
        except (CheckpointError, ModelError, NotStreamableError) as fault:
            gone, why = some(map(str, sorted(removed))), getattr(fault, "what", fault)
            raise ModelError(
                f"no model can be made without blocks {gone} ({why})",
                where=name,
                hint=KEEP_BLOCKS,
            ) from fault
        check_alike(self.blocks, smaller.blocks, kept)
        return smaller

    def widths(self, unit: str) -> list[Widths]:
        """The ways in which structures of its blocks may lie: see `BlockModel`."""
        if unit not in self._widths:  # two skeletons are built for it
            self._widths[unit] = widths_of(self.checkpoint, self.model, unit)
        return self._widths[unit]

    def narrowed(self, widths: Widths, kept: Kept) -> StreamedModel:
        """The same model with fewer structures in its blocks, read from the same files."""
        whole = self.checkpoint
        count = max(map(len, kept))
        config = widths.config(whole.config, whole.make_config(), count)
        places, slices = smaller_tensors(self.blocks, self.naming, widths, kept)
        filled = {name: places.get(name, name) for name in whole.names}
        names = {new: old for new, old in filled.items() if old is not None}
        smaller = SmallerCheckpoint(whole, config, names, slices)
        try:
            return StreamedModel(smaller, self.device, self.dtype)
        except (CheckpointError, ModelError, NotStreamableError) as fault:
            raise ModelError(
                f"no model can be built with {count} of {widths.total} {IN_FULL[widths.unit]}"
                f" ({first_reason(fault)})",
                where=type(self.model).__name__,
                hint=KEEP_WIDTHS,
            ) from fault

    @property
    def new_config(self) -> str | None:
        """config.json of the result, if it is another than that of the files; None if not."""
        return self.checkpoint.new_config

    def block_parameters(self, index: int) -> list[str]:
        """Stored parameters and buffers of one block, in the model's own spelling."""
        prefix = self.blocks.prefix(index)
        return [name for name in self.naming.parameters if name.startswith(prefix)]

    def block_tensors(self, index: int) -> list[str]:
        """The names of the tensors of one block in the files."""
        return self._tensors_of(self.block_parameters(index))

    def count_weights(self) -> int:
        """The weights that the files hold of the model: of tied parameters they have one."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        held = (parameters[name] for name in self.naming.parameters if name in parameters)
        return sum(parameter.numel() for parameter in held)

    def count_bytes(self) -> int:
        """The bytes of all tensors of the files, of what is packed or quantised as it is opened."""
        return sum(map(self.checkpoint.dense_bytes, self.checkpoint.names))

    def storage_dtype(self, name: str) -> torch.dtype:
        """The dtype in which the files hold a parameter."""
        return self.checkpoint.dtype(self.naming.tensors_of(name)[0])

    def part(self, name: str, value: Tensor) -> dict[str, Tensor]:
        """The tensors that a parameter is made of, by their names in the files."""
        return self.naming.part(name, value)

    def stored_names(self, name: str) -> list[str]:
        """The names in the files of the tensors that a parameter is made of."""
        return self.naming.tensors_of(name)

    @property
    def unused(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors of the files that the model makes nothing of, by name there."""
        naming, checkpoint = self.naming, self.checkpoint
        used = {stored for name in naming.parameters for stored in naming.tensors_of(name)}
        return {name: checkpoint.shape(name) for name in checkpoint.names if name not in used}

    def fingerprint(self) -> str:
        """The fingerprint of the model: that of its files."""
        return self.checkpoint.fingerprint()

    def watch(self) -> SourceFiles:
        """The files, every byte of which is hashed from now on as it is read."""
        self.checkpoint.source.watch()
        return self.checkpoint.source

    def stored_block(self, index: int, changed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of one block as the files hold them, with new values: see `BlockModel`."""
        tensors = self.checkpoint.load(self.block_tensors(index))
        for name, value in changed.items():
            for stored, new in self.naming.part(name, value).items():
                old = tensors[stored]
                through = self._dtypes[name]
                tensors[stored] = unrounded(new.to("cpu", old.dtype), old, through).contiguous()
        return tensors

    def stored_surroundings(self) -> dict[str, Tensor]:
        """The tensors that are in no block, bit for bit as they are in the files."""
        inside = {
            stored for index in range(len(self.blocks)) for stored in self.block_tensors(index)
        }
        return self.checkpoint.load([name for name in self.checkpoint.names if name not in inside])

    def _tensors_of(self, names: list[str]) -> list[str]:
        return [stored for name in names for stored in self.naming.tensors_of(name)]

    def _fill(self, names: list[str], tensors: dict[str, Tensor]) -> None:
        """Make parameters real; `tensors` is emptied."""
        for name in names:
            stored = {tensor: tensors.pop(tensor) for tensor in self.naming.tensors_of(name)}
            dtype = self._dtypes[name]
            value = self.naming.join(name, stored).to(dtype)
            set_module_tensor_to_device(self.model, name, self.device, value=value, dtype=dtype)

    def _empty(self, names: list[str]) -> None:
        for name in names:
            set_module_tensor_to_device(self.model, name, "meta")
        give_back()


def _check_complete(
    model: PreTrainedModel, missing: set[str], naming: Naming, checkpoint: Checkpoint
) -> None:
    """Raise unless every missing parameter is tied to one that the files hold."""
    ties = model.all_tied_weights_keys.items()
    tied = {a for target, source in ties for a, b in ((target, source), (source, target))
            if b not in missing}  # fmt: skip
    absent = sorted(missing - tied)
    head = model.get_output_embeddings()
    of_head = [name for name, value in model.named_parameters(remove_duplicate=False)
               if head is not None and any(value is one for one in head.parameters())]  # fmt: skip
    claimed = model.config.architectures or []
    if absent and set(absent) <= set(of_head) and type(model).__name__ not in claimed:
        raise CheckpointError(
            f"the files hold no output head ({', '.join(claimed) or 'of no known class'})",
            where=checkpoint.folder,
            wanted=f"the weights of a {type(model).__name__}",
            hint="secateur.prune of the model in memory, by magnitude, wanda or sparsegpt",
        )
    if absent:
        used = {tensor for name in naming.parameters for tensor in naming.tensors_of(name)}
        raise missing_weights(absent, {*checkpoint.names} - used, checkpoint.folder)
