"""Finds the decoder blocks of a model, whichever family it is of."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from secateur.errors import ModelError


@dataclass(frozen=True)
class Blocks:
    """The decoder blocks of a model, in order.

    Attributes:
        path: the name of their list within the model, such as "model.layers".
        modules: the blocks.
    """

    path: str
    modules: tuple[nn.Module, ...]

    def prefix(self, index: int) -> str:
        """The beginning of the parameter names of one block, with its dot."""
        return f"{self.path}.{index}."

    def __len__(self) -> int:
        return len(self.modules)


def find_blocks(model: nn.Module) -> Blocks:
    """The list of decoder blocks: as many members as the text configuration has hidden layers.

    Encoders of images or sound that a model may have beside its decoder are left alone.

    Raises:
        ModelError: there is no such list, or more than one on the same level.
    """
    config = getattr(model, "config", None)
    text_config = config.get_text_config(decoder=True) if config is not None else None
    depth = getattr(text_config, "num_hidden_layers", None)
    if not depth:
        raise ModelError(
            "the model's configuration does not say how many hidden layers it has",
            where=type(model).__name__,
            wanted="a decoder of transformers, with its config",
        )
    from transformers import PreTrainedModel

    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    # Inner lists (the experts of a block, say) lie deeper than the blocks themselves.
    shallowest = min((name.count(".") for name, _ in lists), default=0)
    outer = [(name, module) for name, module in lists if name.count(".") == shallowest]
    if len(outer) > 1 and isinstance(model, PreTrainedModel):
        decoder = {id(module) for module in model.get_decoder().modules()}  # not an image encoder
        outer = [(name, module) for name, module in outer if id(module) in decoder]
    if len(outer) != 1:
        names = ", ".join(name for name, _ in outer) or "none"
        raise ModelError(
            f"the decoder blocks cannot be told: lists of {depth} modules: {names}",
            where=type(model).__name__,
            wanted="exactly one",
        )
    name, modules = outer[0]
    return Blocks(name, tuple(modules))
