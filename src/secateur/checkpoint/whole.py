"""A checkpoint that cannot be read block by block: loaded whole, written as its files were.

Such are files whose blocks share weights, or where one parameter is made of tensors of several
dtypes. Every tensor that pruning does not change goes to the result bit for bit, whether the model
has a place for it or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from secateur.checkpoint.configuration import notices_of
from secateur.checkpoint.fingerprint import SourceFiles
from secateur.checkpoint.read import Checkpoint
from secateur.checkpoint.resident import ResidentModel, unrounded
from secateur.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class WholeModel(ResidentModel):
    """A model in memory that came from files, and goes back into such.

    Args:
        model: loaded in `widest_dtype` of the files, so that no weight was rounded.
        checkpoint: the files.
        device, dtype: where and in what precision pieces are opened.

    Raises:
        CheckpointError: a weight that may be pruned has no tensor of its own in the files.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(model, device, dtype)
        self._checkpoint = checkpoint
        self.notices = notices_of(checkpoint)
        self._exact: dict[str, Tensor] = {}  # new weights of more precision than was computed in
        self._check_names()

    def storage_dtype(self, name: str) -> torch.dtype:
        """The dtype of a parameter in the files; the widest, if its tensors have several."""
        stored = self._stored({name: self.model.get_parameter(name).detach().to("meta")})
        return widest_dtype(self._checkpoint, stored or self._checkpoint.names)

    def fingerprint(self) -> str:
        """The fingerprint of the files."""
        return self._checkpoint.fingerprint()

    @property
    def unused(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors of the files that the model has no place for."""
        empty = {name: value.to("meta") for name, value in self.model.state_dict().items()}
        filled = self._stored(empty)
        names = [name for name in self._checkpoint.names if name not in filled]
        return {name: self._checkpoint.shape(name) for name in names}

    def watch(self) -> SourceFiles:
        """The files that it came from, read once more to be hashed."""
        source = self._checkpoint.source
        source.read_all()
        source.check()  # what was hashed is what was loaded
        return source

    def stored_block(self, index: int, changed: Mapping[str, Tensor]) -> None:
        """None: the model is written as a whole. What memory holds rounded is remembered."""
        for name, value in changed.items():
            opened = self._dtypes.get(self.model.get_parameter(name), self.dtype)
            if torch.promote_types(opened, value.dtype) != opened:
                self._exact[name] = value.cpu()

    def stored_surroundings(self) -> dict[str, Tensor]:
        """All tensors of the files, with the new values of what was pruned."""
        tensors = self._checkpoint.load(self._checkpoint.names)
        for name, new in self._stored({**self.model.state_dict(), **self._exact}).items():
            old = tensors[name]
            if old.is_floating_point():
                new = new.detach().to("cpu", old.dtype)
                tensors[name] = unrounded(new, old, self.dtype).contiguous()
        return tensors

    def _stored(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters by the names that the files know them by; what these do not have, left out."""
        from transformers.core_model_loading import revert_weight_conversion

        prefix = f"{self.model.base_model_prefix}."
        found = {}
        for name, value in revert_weight_conversion(self.model, dict(parameters)).items():
            for stored in (name, name.removeprefix(prefix), prefix + name):
                if stored in self._checkpoint.files:
                    found[stored] = value
                    break
        return found

    def _check_names(self) -> None:
        """Raise unless every weight of a block goes back to the tensor that it came from."""
        prefix = self.blocks.path + "."
        inside = {
            name: value for name, value in self.model.state_dict(keep_vars=True).items()
            if name.startswith(prefix)
        }  # fmt: skip
        empty = {name: value.detach().to("meta") for name, value in inside.items()}
        lost = {name for name in inside if not self._fits({name: empty[name]})}
        there = {id(inside[name]) for name in inside.keys() - lost}  # blocks may share weights
        lost = {name for name in lost if id(inside[name]) not in there}
        if lost and not self._fits(empty):  # several may make up one tensor
            raise CheckpointError(
                f"{len(lost)} weights cannot be put back where they were, such as {min(lost)!r}",
                where=self._checkpoint.folder,
                wanted="files that can be read block by block",
                hint="loading the model in transformers, then save_pretrained into a new folder",
            )

    def _fits(self, empty: dict[str, Tensor]) -> bool:
        stored, shape = self._stored(empty), self._checkpoint.shape
        sizes = (sum(value.numel() for value in of.values()) for of in (stored, empty))
        return len(set(sizes)) == 1 and all(v.shape == shape(n) for n, v in stored.items())


def widest_dtype(checkpoint: Checkpoint, names: Iterable[str]) -> torch.dtype:
    """The dtype that holds every number of some tensors; float32 if none is floating."""
    dtypes = {checkpoint.dtype(name) for name in names}
    floating = [dtype for dtype in dtypes if dtype.is_floating_point] or [torch.float32]
    return reduce(torch.promote_types, floating)
