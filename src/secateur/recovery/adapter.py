"""LoRA that can be merged without loss into a sparse weight.

    W_used = stored(W + scale * B A)   where W is not zero
             0                         where it is

    W      weight of the sparse model [out, in] (Conv1D: [in, out]), frozen
    B, A   low-rank factors [out, rank], [rank, in], float32, trained; B starts at zero
    scale  alpha / rank
    stored rounds to the dtype of the checkpoint; its gradient passes through

Every forward pass computes with `W_used`, and `W_used` is what the merge writes: nothing is lost at
the merge, and no zero is. Plain LoRA (arXiv 2106.09685), which fills every zero when it is merged,
is there for adapters that stay beside the model. Why not peft's own sparse adapters:
docs/decisions/0008.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name it is known by
from transformers.pytorch_utils import Conv1D

from secateur.errors import NumericalError
from secateur.machine.accelerator import seeded
from secateur.recovery.rounding import as_stored

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER = "default"


class MaskedLora(LoraLinear):  # type: ignore[misc]
    """A layer of peft whose update leaves every zero of the weight alone."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, **options: Any) -> None:
        super().__init__(base_layer, adapter_name, **options)
        self.fan_in_fan_out = isinstance(base_layer, Conv1D)
        self.stored_dtype: torch.dtype = base_layer.weight.dtype  # type: ignore[assignment]

    def used_weight(self) -> Tensor:
        """The weight that the layer multiplies by, as it will be stored, in float32."""
        weight = self.get_base_layer().weight
        with torch.autocast(weight.device.type, enabled=False):
            updated = weight.float() + self.get_delta_weight(ADAPTER)
            masked = torch.where(weight != 0, updated, 0)
            return as_stored(masked, self.stored_dtype)

    def forward(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """inputs [..., in] -> [..., out]."""
        layer = self.get_base_layer()
        if self.disable_adapters:
            result: Tensor = layer(inputs, *args, **kwargs)
            return result
        used = self.used_weight().to(inputs.dtype)
        return F.linear(inputs, used.T if self.fan_in_fan_out else used, layer.bias)


@dataclass(frozen=True)
class AdapterShape:
    """The adapters that a model gets.

    Attributes:
        modules: names of the layers that get one, from `find_targets`.
        rank: of the factors.
        alpha: the update is scaled by alpha / rank.
        masked: every zero stays one; otherwise plain LoRA.
    """

    modules: list[str]
    rank: int
    alpha: float
    masked: bool


class Adapters:
    """A model with adapters in it, to be trained.

    Args:
        model: the sparse model, whole; it is frozen, and changed in place.
        shape: of the adapters.
        stored_dtype: gives the dtype that a parameter has on disk.
        seed: of A.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        shape: AdapterShape,
        stored_dtype: Callable[[str], torch.dtype],
        seed: int,
    ) -> None:
        self.base = model
        self.model = _attached(model, shape, seed)
        for name, layer in masked_layers(model):
            layer.stored_dtype = stored_dtype(f"{name}.weight")
        self.factors = {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def __call__(self, **inputs: Any) -> Any:
        """Compute as the model does, with its adapters."""
        return self.model(**inputs)

    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(factor.numel() for factor in self.factors.values())

    @torch.no_grad()
    def stored(self) -> dict[str, Tensor]:
        """Every weight under a masked adapter by its parameter name, merged, as it is stored.

        Raises:
            NumericalError: a weight is not finite.
        """
        weights: dict[str, Tensor] = {}
        for name, layer in masked_layers(self.base):
            weight = layer.used_weight().to(layer.stored_dtype).cpu()
            if not bool(torch.isfinite(weight).all()):
                raise NumericalError("a merged weight is not finite", where=name)
            weights[f"{name}.weight"] = weight
        return weights


def _attached(model: PreTrainedModel, shape: AdapterShape, seed: int) -> PeftModel:
    config = LoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,
        target_modules=shape.modules,
        task_type="CAUSAL_LM",
    )
    if shape.masked:
        config._register_custom_module({nn.Linear: MaskedLora, Conv1D: MaskedLora})
    else:
        kinds = {type(model.get_submodule(name)) for name in shape.modules}
        config.fan_in_fan_out = Conv1D in kinds
    with seeded(seed, model.device), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        return get_peft_model(model, config)


def masked_layers(model: PreTrainedModel) -> list[tuple[str, MaskedLora]]:
    """Name within the model and layer, of every layer with a masked adapter."""
    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, MaskedLora)]
