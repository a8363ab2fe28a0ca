"""Finds the layers of a model that can run sparse, by shape, and puts others in their place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from secateur.errors import ModelError
from secateur.inference.forms import Form, convert
from secateur.inference.packed_linear import TWO_OF_FOUR, PackedLinear
from secateur.inference.tile import Tile
from secateur.sparsity import audit

Shape = tuple[int, int, torch.dtype, torch.device]
"""Outputs, inputs, dtype and device of a matrix."""


def two_of_four(model: nn.Module) -> dict[Shape, dict[str, nn.Linear]]:
    """The linear layers whose matrix is exactly 2:4, by shape and name.

    Layers that share their matrix, are more than `nn.Linear`, or have hooks, are left alone.

    Raises:
        ModelError: there is none.
    """
    found: dict[Shape, dict[str, nn.Linear]] = {}
    fullest = 0.0
    for name, linear in _plain_layers(model):
        weight = linear.weight.detach()
        counted = audit(weight, TWO_OF_FOUR)
        fullest = max(fullest, counted.sparsity)
        if counted.holds:
            shape = (*weight.shape, weight.dtype, weight.device)
            found.setdefault(shape, {})[name] = linear
    if not found:
        raise ModelError(
            f"no linear layer has a 2:4 matrix (the sparsest has {fullest:.0%} zeros)",
            where=type(model).__name__,
            wanted="a model pruned to 2:4",
            hint="secateur prune --pattern 2:4",
        )
    return found


def _plain_layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    owners = Counter(
        id(weight) for module in model.modules() for weight in module.parameters(recurse=False)
    )
    for name, module in model.named_modules():
        hooked = module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook")
        if (
            name
            and type(module) is nn.Linear
            and type(module.weight) is nn.Parameter
            and not hooked
            and not module.weight.is_meta
            and module.weight.is_floating_point()
            and owners[id(module.weight)] == 1
        ):
            yield name, module


def replace(
    model: nn.Module, layers: Mapping[str, nn.Linear], form: Form, tiles: Mapping[int, Tile]
) -> int:
    """Give layers another form, one at a time so that memory holds one of them twice.

    Returns:
        bytes of their matrices in that form.

    Raises:
        UnfitError: they cannot take it; none of them was replaced.
    """
    taken = 0
    for name, linear in layers.items():
        made = convert(linear, form)
        if isinstance(made, PackedLinear):
            made.tiles = dict(tiles)
        if made is not linear:
            model.set_submodule(name, made)
        taken += matrix_bytes(made)
    return taken


def matrix_bytes(layer: nn.Module) -> int:
    """Memory of a layer's matrix, in whatever form."""
    if isinstance(layer, PackedLinear):
        return layer.values.nbytes + layer.mask.nbytes
    weight = layer.weight
    parts = [getattr(weight, name, None) for name in ("packed", "meta")]
    sparse = [part.nbytes for part in parts if isinstance(part, torch.Tensor)]
    return sum(sparse) if sparse else int(weight.nbytes)  # type: ignore[arg-type]
