"""A model that is in memory as a whole: one the caller holds, or one that cannot be streamed.

It opens pieces as `StreamedModel` does: a block is cast to the computing precision while it is
open and cast back afterwards. What was written into it in the meantime stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from secateur.checkpoint.block_model import BlockModel
from secateur.checkpoint.fingerprint import SourceFiles, fingerprint
from secateur.checkpoint.read import Checkpoint
from secateur.checkpoint.structure import find_blocks


class ResidentModel(BlockModel):
    """A language model or classifier of images in memory, opened like a streamed one.

    Attributes:
        model: the whole model. It is in evaluation mode and takes no gradients while a piece is
            open, and is given back as it was.
        blocks: the decoder blocks.
        device, dtype: where and in what precision open pieces are.
    """

    streamed = False

    def __init__(
        self,
        model: PreTrainedModel,
        device: torch.device,
        dtype: torch.dtype,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """Open a model.

        Args:
            model: whole, in memory.
            device, dtype: where and in what precision pieces are opened.
            checkpoint: the files that it came from; None for a model that the caller holds.
        """
        self.model = model
        self.device = device
        self.dtype = dtype
        self.blocks = find_blocks(model)
        self._storage: dict[str, torch.dtype] = {
            name: value.dtype for name, value in model.named_parameters()
        }
        self._checkpoint = checkpoint

    @contextmanager
    def open_block(self, index: int) -> Iterator[nn.Module]:
        """One decoder block in the computing precision, on the computing device."""
        block = self.blocks.modules[index]
        with _cast([block], self.device, self.dtype):
            yield block

    @contextmanager
    def open_surroundings(self) -> Iterator[PreTrainedModel]:
        """The model, everything but its blocks in the computing precision and on the device."""
        inside = {id(module) for block in self.blocks.modules for module in block.modules()}
        outside = [module for module in self.model.modules() if id(module) not in inside]
        with _cast(outside, self.device, self.dtype, recurse=False):
            yield self.model

    def storage_dtype(self, name: str) -> torch.dtype:
        """The dtype of a parameter while no piece is open."""
        return self._storage[name]

    def fingerprint(self) -> str:
        """The fingerprint of the model: that of its files, if it came from any."""
        if self._checkpoint is not None:
            return self._checkpoint.fingerprint()
        tensors = self.model.state_dict().items()
        config = self.model.config.to_json_string().encode()
        return fingerprint(config, ((name, [value]) for name, value in tensors))

    def watch(self) -> SourceFiles | None:
        """The files that it came from, read once more to be hashed; None if it came from none."""
        if self._checkpoint is None:
            return None
        self._checkpoint.source.read_all()
        self._checkpoint.source.check()  # what was hashed is what was loaded
        return self._checkpoint.source

    def stored_block(self, index: int, changed: Mapping[str, Tensor]) -> None:
        """None: the model is written as a whole."""

    def stored_surroundings(self) -> None:
        """None: the model is written as a whole."""


@contextmanager
def _cast(
    modules: list[nn.Module], device: torch.device, dtype: torch.dtype, *, recurse: bool = True
) -> Iterator[None]:
    """Parameters and buffers of `modules` on `device` in `dtype`, as they were at the end.

    Buffers keep their dtype: rotary frequencies are float32 in every precision.
    """
    parameters = {p: (p.data, p.requires_grad) for m in modules for p in m.parameters(recurse)}
    buffers = {b: b.device for m in modules for b in m.buffers(recurse)}
    training = [(m, m.training) for root in modules
                for m in (root.modules() if recurse else [root])]  # fmt: skip
    try:
        for module, _ in training:
            module.training = False
        for parameter in parameters:
            floating = parameter.is_floating_point()
            parameter.data = parameter.data.to(device, dtype if floating else None)
            parameter.requires_grad_(False)
        for buffer in buffers:
            buffer.data = buffer.data.to(device)
        yield
    finally:
        for parameter, (old, old_requires_grad) in parameters.items():
            opened = parameter.data
            new = unrounded(opened.to(old.device, old.dtype), old, opened.dtype)
            if new.data_ptr() != old.data_ptr():
                old.copy_(new)  # in place: another parameter may share this memory
            parameter.data = old
            parameter.requires_grad_(old_requires_grad)
        for buffer, old_device in buffers.items():
            buffer.data = buffer.data.to(old_device)
        for module, was_training in training:
            module.training = was_training


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
