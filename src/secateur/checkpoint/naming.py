"""How the parameters of a model lie in its files, by transformers' own rules for the family.

renamed    one tensor, under another name or the same
converted  one parameter of several tensors: the experts of a block, each in tensors of its own,
           stacked to one parameter [experts, ...], gate above up

Both directions are transformers': what its loading does to the tensors of one parameter, and what
its saving does to that parameter. Whether the second undoes the first is tried on empty tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from secateur.checkpoint.read import Checkpoint
from secateur.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.core_model_loading import WeightConverter


class NotStreamableError(Exception):
    """The files cannot be read block by block: the model has to be loaded whole."""


@dataclass
class _Conversion:
    """A conversion and its tensors: (transformers' name for its group, tensor name) in order."""

    converter: WeightConverter
    sources: list[tuple[str, str]] = field(default_factory=list)


class Naming:
    """Knows which tensors of the files make up each parameter of a model.

    Args:
        model: the skeleton, on the meta device.
        checkpoint: the files.

    Raises:
        NotStreamableError: a conversion makes more than one parameter, mixes dtypes, or cannot be
            undone.
        CheckpointError: tensors do not have the shapes that the configuration implies, or a
            parameter is stored under two names.
    """

    def __init__(self, model: PreTrainedModel, checkpoint: Checkpoint) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        self._model = model
        self._renamed: dict[str, str] = {}
        self._converted: dict[str, _Conversion] = {}
        rules = get_model_conversion_mapping(model)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in rules if not isinstance(rule, WeightRenaming)]
        by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
        parameters = model.state_dict()
        for stored in sorted(checkpoint.names, key=dot_natural_key):
            name, group = rename_source_key(
                stored, renamings, converters, model.base_model_prefix, parameters
            )
            if name not in parameters and stored in parameters:  # a rule meant for other names
                name, group = stored, None
            if name not in parameters:
                continue  # not part of the model (an old buffer, an extra head): copied, not used
            if group is None:
                self._rename(name, stored, tuple(parameters[name].shape), checkpoint)
            else:
                conversion = self._converted.setdefault(name, _Conversion(by_pattern[group]))
                conversion.sources.append((group, stored))
        model._weight_conversions = [rule for rule in rules if rule.was_used()]  # saving's rules
        for name in self._converted:
            self._try(name, tuple(parameters[name].shape), checkpoint)

    @property
    def parameters(self) -> list[str]:
        """Every parameter and buffer that the files hold."""
        return [*self._renamed, *self._converted]

    def tensors_of(self, name: str) -> list[str]:
        """The names of the tensors that a parameter is made of."""
        if name in self._renamed:
            return [self._renamed[name]]
        return [stored for _, stored in self._converted[name].sources]

    def stacks_of(self, name: str) -> list[list[str]]:
        """The same by the part of the parameter that they make up together, in their order there:
        the gates of all experts, then their up-projections.
        """
        if name in self._renamed:
            return [[self._renamed[name]]]
        stacks: dict[str, list[str]] = {}
        for group, stored in self._converted[name].sources:
            stacks.setdefault(group, []).append(stored)
        return list(stacks.values())

    def join(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """A parameter, from the tensors that it is made of, by their names in the files."""
        if name in self._renamed:
            return tensors[self._renamed[name]]
        made = self._convert(name, tensors)
        value = made[name]
        return value[0] if isinstance(value, list) else value

    def part(self, name: str, value: Tensor) -> dict[str, Tensor]:
        """The tensors that a parameter is made of, by their names in the files."""
        if name in self._renamed:
            return {self._renamed[name]: value}
        from transformers.core_model_loading import revert_weight_conversion

        parted: dict[str, Tensor] = revert_weight_conversion(self._model, {name: value})
        return parted

    def _convert(
        self, name: str, tensors: Mapping[str, Tensor]
    ) -> dict[str, Tensor | list[Tensor]]:
        conversion = self._converted[name]
        converter = deepcopy(conversion.converter)
        for group, stored in conversion.sources:
            converter.add_tensor(name, stored, group, tensors[stored])
        made: dict[str, Tensor | list[Tensor]] = converter.convert(
            name, model=self._model, config=self._model.config
        )
        return made

    def _rename(
        self, name: str, stored: str, shape: tuple[int, ...], checkpoint: Checkpoint
    ) -> None:
        if shape != checkpoint.shape(stored):
            raise CheckpointError(
                f"tensor {stored!r} has shape {list(checkpoint.shape(stored))}",
                where=checkpoint.files[stored],
                wanted=f"{list(shape)}, as config.json says",
            )
        if name in self._renamed:
            raise _both(self._renamed[name], stored, name, checkpoint)
        self._renamed[name] = stored

    def _try(self, name: str, shape: tuple[int, ...], checkpoint: Checkpoint) -> None:
        """Join and part on empty tensors."""
        if name in self._renamed:
            part = self._converted[name].sources[0][1]
            raise _both(self._renamed[name], part, name, checkpoint)
        stored = self.tensors_of(name)
        if len({checkpoint.dtype(one) for one in stored}) > 1:
            raise NotStreamableError(f"{name} is stored in two dtypes")
        empty = {one: torch.empty(checkpoint.shape(one), device="meta") for one in stored}
        try:
            made = self._convert(name, empty)
        except Exception as fault:  # every conversion fails in its own way on odd shapes
            raise CheckpointError(
                f"the {len(stored)} tensors of {name!r} do not fit together",
                where=checkpoint.files[stored[0]],
                wanted="one shape, as config.json says",
            ) from fault
        if list(made) != [name]:
            raise NotStreamableError(f"{stored[0]} becomes more than {name}")
        whole = self.join(name, empty)
        if tuple(whole.shape) != shape:
            raise CheckpointError(
                f"the {len(stored)} tensors of {name!r} make up shape {list(whole.shape)}",
                where=checkpoint.files[stored[0]],
                wanted=f"{list(shape)}, as config.json says",
            )
        parted = self.part(name, whole)
        if {one: tuple(parted[one].shape) for one in parted} != {
            one: checkpoint.shape(one) for one in stored
        }:
            raise NotStreamableError(f"what {name} is made of cannot be had back")


def _both(one: str, other: str, name: str, checkpoint: Checkpoint) -> CheckpointError:
    return CheckpointError(
        f"tensors {one!r} and {other!r} are both {name!r}",
        where=checkpoint.folder,
        wanted="every weight once",
    )
