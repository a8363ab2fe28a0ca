"""A model that is in memory as a whole, as the caller holds it.

It opens pieces as `StreamedModel` does: a block is cast to the computing precision while it is
open and cast back afterwards. What was written into it in the meantime stays.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from secateur.checkpoint.block_model import BlockModel
from secateur.checkpoint.fingerprint import SourceFiles, fingerprint
from secateur.checkpoint.in_memory import PLAIN_DTYPES
from secateur.checkpoint.narrower import Kept, Widths
from secateur.checkpoint.skeleton import as_loaded
from secateur.checkpoint.structure import find_blocks
from secateur.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ResidentModel(BlockModel):
    """A language model or classifier of images in memory, opened like a streamed one.

    Attributes:
        model: the whole model. It is in evaluation mode and takes no gradients while a piece is
            open, and is given back as it was.
        blocks: the decoder blocks.
        device: where open pieces are.
        dtype: their precision, but for what the family keeps in float32 (`skeleton.dtypes_of`).
    """

    streamed = False

    def __init__(
        self,
        model: PreTrainedModel,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Open a model.

        Args:
            model: whole, in memory.
            device, dtype: where and in what precision pieces are opened.
        """
        self.model = model
        self.device = device
        self.dtype = dtype
        self.blocks = find_blocks(model)
        self._storage: dict[str, torch.dtype] = {
            name: value.dtype for name, value in model.named_parameters()
        }
        dtypes, computed = as_loaded(model, dtype)
        self._dtypes = {
            tensor: dtypes.get(name, dtype)
            for named in (model.named_parameters(), model.named_buffers())
            for name, tensor in named
        }
        buffers = dict(model.named_buffers())
        self._computed = {buffers[name]: value for name, value in computed.items()}

    @contextmanager
    def open_block(self, index: int) -> Iterator[nn.Module]:
        """One decoder block in the computing precision, on the computing device."""
        block = self.blocks.modules[index]
        with self._cast([block]):
            yield block

    @contextmanager
    def open_surroundings(self) -> Iterator[PreTrainedModel]:
        """The model, everything but its blocks in the computing precision and on the device."""
        inside = {id(module) for block in self.blocks.modules for module in block.modules()}
        outside = [module for module in self.model.modules() if id(module) not in inside]
        with self._cast(outside, recurse=False):
            yield self.model

    def without_blocks(self, removed: Collection[int]) -> BlockModel:
        """No: the caller's model keeps its blocks, and shared weights have no numbers."""
        raise self._whole("blocks")

    def widths(self, unit: str) -> list[Widths]:
        """No, as little as its blocks."""
        raise self._whole(unit)

    def narrowed(self, widths: Widths, kept: Kept) -> BlockModel:
        """No, as little as its blocks."""
        raise self._whole(widths.unit)

    def _whole(self, unit: str) -> ModelError:
        return ModelError(
            f"{unit} are removed from a model that is read block by block, and this one is whole in"
            " memory",
            where=type(self.model).__name__,
            hint="save_pretrained into a folder, and that as the model",
        )

    def storage_dtype(self, name: str) -> torch.dtype:
        """The dtype of a parameter while no piece is open."""
        return self._storage[name]

    def fingerprint(self) -> str:
        """The fingerprint of the weights in memory."""
        tensors = self.model.state_dict().items()
        config = self.model.config.to_json_string().encode()
        return fingerprint(config, ((name, [value.to_dense()]) for name, value in tensors))

    def watch(self) -> SourceFiles | None:
        """None: no files are behind it."""
        return None

    def stored_block(self, index: int, changed: Mapping[str, Tensor]) -> None:
        """None: what is not read from files is not written block by block."""

    def stored_surroundings(self) -> dict[str, Tensor]:
        """Nothing: the model is the caller's, to be saved by its own save_pretrained."""
        return {}

    @contextmanager
    def _cast(self, modules: list[nn.Module], *, recurse: bool = True) -> Iterator[None]:
        """Have the tensors of `modules` as `from_pretrained` gives them, and as they were after."""
        stored = {t: (t.data, t.requires_grad) for t in _stored_tensors(modules, recurse)}
        computed = {b: b.data for m in modules for b in m.buffers(recurse) if b not in stored}
        training = [(m, m.training) for root in modules
                    for m in (root.modules() if recurse else [root])]  # fmt: skip
        try:
            for module, _ in training:
                module.training = False
            for tensor in stored:
                dtype = self._dtypes.get(tensor, self.dtype)
                floating = tensor.is_floating_point()
                tensor.data = tensor.data.to(self.device, dtype if floating else None)
                tensor.requires_grad_(False)
            for buffer in computed:
                buffer.data = self._computed.get(buffer, buffer.data).to(self.device)
            yield
        finally:
            for tensor, (old, old_requires_grad) in stored.items():
                opened = tensor.data
                new = unrounded(opened.to(old.device, old.dtype), old, opened.dtype)
                if new.data_ptr() != old.data_ptr():
                    old.copy_(new)  # in place: another parameter may share this memory
                tensor.data = old
                tensor.requires_grad_(old_requires_grad)
            for buffer, old in computed.items():
                buffer.data = old if buffer in self._computed else buffer.data.to(old.device)
            for module, was_training in training:
                module.training = was_training


def _stored_tensors(modules: list[nn.Module], recurse: bool) -> Iterator[Tensor]:
    """The parameters and buffers of some modules that files hold, and that can be cast."""
    for root in modules:
        for module in root.modules() if recurse else [root]:
            yield from (p for p in module._parameters.values() if p is not None)
            for name, buffer in module._buffers.items():
                if buffer is None or name in module._non_persistent_buffers_set:
                    continue
                if buffer.layout is torch.strided and (
                    buffer.dtype in PLAIN_DTYPES or not buffer.is_floating_point()
                ):
                    yield buffer


def unrounded(new: Tensor, old: Tensor, through: torch.dtype) -> Tensor:
    """The new values of a tensor that was computed with in a precision lower than its own.

    Args:
        new: of the dtype and on the device of `old`.
        old: the values before.
        through: the dtype that they were computed with.

    Returns:
        `old` where `new` is only `old` rounded, else `new`; a zero that was written stays one.
    """
    if torch.promote_types(old.dtype, through) == through:
        return new  # nothing was rounded
    rounded = old.to(through).to(old.dtype)
    if torch.equal(new, rounded):
        return old
    return torch.where((new == rounded) & (new != 0), old, new)
