"""A block with fewer experts, made by its own family's code, and what it gives in their absence.

    make        an empty block of the family with so many experts: transformers' class, built from
                the model's configuration with another number of experts in it
    narrowed    the same with the dense block's tensors; along every axis that is E long in the
                dense block and shorter in the empty one, those of the experts that are left

So the router's rows and biases and the experts' matrices go, whatever a family calls them and
wherever it keeps them, and the router that is left chooses and weighs as the family does. Nothing
here knows a family.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from secateur.checkpoint import find_blocks
from secateur.checkpoint.matrices import is_fused_experts
from secateur.checkpoint.narrower import keys_of_experts
from secateur.checkpoint.skeleton import building
from secateur.errors import ModelError, reason

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Make = Callable[[int], nn.Module]
"""Number of experts -> an empty module of the family that has so many, on the meta device."""

KEEP_EXPERTS = "a pattern that removes no experts, such as 2:4"
"""What to try where a model cannot lose experts."""


def find_experts(block: nn.Module) -> str | None:
    """The name of the fused experts within a block; None if it has none.

    Raises:
        ModelError: it has them more than once.
    """
    names = [name for name, module in block.named_modules() if is_fused_experts(module)]
    if len(names) > 1:
        raise ModelError(
            f"a block has {len(names)} mixtures of experts ({', '.join(names[:3])})",
            where=type(block).__name__,
            wanted="one, with one router",
            hint=KEEP_EXPERTS,
        )
    return names[0] if names else None


class FewerExperts:
    """Empty blocks of a model's family with another number of experts.

    Args:
        model: its weights are not read; they may be on the meta device.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._built: dict[int, tuple[nn.Module, ...]] = {}

    def make(self, index: int, within: str = "") -> Make:
        """What makes block `index`, or the module called `within` in it.

        Raises, when it is called:
            ModelError: no model of the family can be made with so many experts.
        """

        def empty(experts: int) -> nn.Module:
            if experts not in self._built:
                self._built = {experts: self._build(experts)}  # one number is asked for at a time
            return deepcopy(self._built[experts][index].get_submodule(within))

        return empty

    def _build(self, experts: int) -> tuple[nn.Module, ...]:
        """The blocks of a model with so many experts in each."""
        total, why = _most_experts(find_blocks(self._model).modules), "it has another number still"
        try:
            blocks = find_blocks(_empty_model(self._model, total, experts)).modules
            if _most_experts(blocks) == experts:
                return blocks
        except Exception as fault:  # every family fails in its own way
            why = reason(fault)
        raise ModelError(
            f"no model can be made with {experts} in place of {total} experts ({why})",
            where=type(self._model).__name__,
            hint=KEEP_EXPERTS,
        )


def narrowed(dense: nn.Module, empty: nn.Module, keep: Sequence[int]) -> nn.Module:
    """A block, or a part of it, without some of its experts.

    Args:
        dense: with its weights.
        empty: the same module of the family with fewer experts (`FewerExperts`); it is filled, in
            evaluation mode, without gradient.
        keep: the numbers of the experts that are left, in the order that they have afterwards.

    Returns:
        `empty`. What is not of the experts is the dense module's own, not a copy.

    Raises:
        ModelError: the two differ in more than the number of their experts.
    """
    return _fill(dense, empty, keep)


def narrowed_router(dense: nn.Module, empty: nn.Module, keep: Sequence[int]) -> nn.Module:
    """The same, but for the tensors of the fused experts, which stay empty."""
    experts = find_experts(dense)
    return _fill(dense, empty, keep, () if experts is None else _tensors(dense, experts))


def _fill(
    dense: nn.Module, empty: nn.Module, keep: Sequence[int], left_out: Collection[str] = ()
) -> nn.Module:
    total, left = _most_experts([dense]), _most_experts([empty])
    if left != len(keep):
        raise ValueError(f"{len(keep)} experts for a block of {left}")
    values, shapes = _named(dense), _named(empty)
    if values.keys() != shapes.keys():
        name = min(values.keys() ^ shapes.keys())
        raise _another(dense, f"{name} is in one of them only")
    for name, wanted in shapes.items():
        if name in left_out:
            continue
        value = values[name]
        if not wanted.is_floating_point():
            raise _another(dense, f"{name} may tell experts by their numbers")
        if value.dim() != wanted.dim():
            raise _another(dense, f"{name} has another number of dimensions")
        chosen = torch.tensor(keep, device=value.device)
        for axis, (before, now) in enumerate(zip(value.shape, wanted.shape, strict=True)):
            if before != now:
                if (before, now) != (total, left):
                    raise _another(dense, f"{name} has {now} for {before} along axis {axis}")
                value = value.index_select(axis, chosen)
        owner_name, _, leaf = name.rpartition(".")
        owner = empty.get_submodule(owner_name)
        if leaf in owner._buffers:
            owner._buffers[leaf] = value
        else:
            owner._parameters[leaf] = (
                value
                if isinstance(value, nn.Parameter)
                else nn.Parameter(value, requires_grad=False)
            )
    return empty.eval()


def _named(module: nn.Module) -> Mapping[str, Tensor]:
    """Parameters and buffers by name, shared ones under each of theirs."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def _tensors(module: nn.Module, within: str) -> set[str]:
    return {f"{within}.{name}" for name in _named(module.get_submodule(within))}


def _most_experts(blocks: Sequence[nn.Module]) -> int:
    """How many experts the mixtures of some blocks have at most; 0 if there is none."""
    counts = (
        int(module.num_experts)  # type: ignore[arg-type]
        for block in blocks
        for module in block.modules()
        if is_fused_experts(module)
    )
    return max(counts, default=0)


def _empty_model(model: PreTrainedModel, total: int, experts: int) -> PreTrainedModel:
    """The same model on the meta device, with another number of experts than it has in all."""
    config = deepcopy(model.config)
    text = config.get_text_config(decoder=True)
    for key in keys_of_experts(text, total):
        setattr(text, key, experts)
    with building(), torch.device("meta"):
        made: PreTrainedModel = type(model)._from_config(config, dtype=model.dtype)
    return made


def _another(dense: nn.Module, what: str) -> ModelError:
    return ModelError(
        f"with fewer experts it would be another module ({what})",
        where=type(dense).__name__,
        hint=KEEP_EXPERTS,
    )
