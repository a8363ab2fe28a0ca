"""What a model in memory must be to be pruned where it is: asked before the first block.

Its weights must be there, be plain numbers, and be what its layers multiply by. What wraps them,
makes them from others or adds to them is refused with the call that undoes it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from transformers.pytorch_utils import Conv1D

from secateur.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

PLAIN_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""The dtypes that a model is made in, computes with, and is cast between."""
_WITHIN = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What a part of a model that was wrapped by itself calls the part."""
_READ = ("input_ids", "pixel_values")
"""What a model that can be run here takes first."""
_WRAPPERS = {
    "PeftModel": "merge_and_unload() of it, or get_base_model() where it learned a prompt",
    "OptimizedModule": "its ._orig_mod, the model that torch.compile was given",
    "FullyShardedDataParallel": "the model's folder: the weights are split among processes",
    "DeepSpeedEngine": "the model's folder: the weights may be split among processes",
}
"""Classes that hold a model of transformers -> what to give instead."""


def is_in_memory(model: object) -> TypeGuard[PreTrainedModel]:
    """Whether what `secateur.prune` was given is a model in memory; else it is a location.

    Raises:
        ModelError: it wraps a model, or is a module of another kind.
    """
    if not isinstance(model, nn.Module):
        return False
    from transformers import PreTrainedModel

    if isinstance(model, PreTrainedModel):
        return True
    within = [name for name, part in model.named_children() if isinstance(part, PreTrainedModel)]
    for base in type(model).__mro__:
        if base.__name__ in _WRAPPERS:
            raise _wrapped(model, _WRAPPERS[base.__name__])
    if within:
        raise _wrapped(model, f"the model within, its .{within[0]}")
    raise ModelError(
        f"a {type(model).__name__} is no model of transformers",
        wanted="a PreTrainedModel, a folder, or a hub name",
    )


def check_in_memory(model: PreTrainedModel) -> None:
    """Raise unless a model in memory can be pruned where it is.

    Raises:
        ModelError: its weights are elsewhere, of no plain numbers, made from others or added to;
            or it is no decoder and no classifier of images. Nothing was done.
    """
    name = type(model).__name__
    refuse_pairs(model.config, name)
    if model.main_input_name not in _READ:
        raise ModelError(
            f"a model that reads {model.main_input_name}",
            where=name,
            wanted="a language model, or a classifier of images",
        )
    if getattr(model, "is_quantized", False):
        method = getattr(model.config, "quantization_config", None)
        raise _quantised(name, str(getattr(method, "quant_method", "a quantised format")))
    for path, module in model.named_modules():
        _check_module(path or name, module)
    for path, buffer in model.named_buffers():
        if buffer.is_meta:
            raise _offloaded(path)
    for path, parameter in model.named_parameters():
        if parameter.is_meta:
            raise _offloaded(path)
        if parameter.layout is not torch.strided:
            raise _quantised(path, str(parameter.layout).removeprefix("torch."))
        if parameter.dim() >= 2 and parameter.dtype not in PLAIN_DTYPES:
            raise _quantised(path, str(parameter.dtype).removeprefix("torch."))
        if any(parameter.stride(n) == 0 < length - 1 for n, length in enumerate(parameter.shape)):
            raise ModelError(
                "numbers that share their memory cannot be changed one by one", where=path,
                wanted="a parameter of its own", hint="its clone()",
            )  # fmt: skip
        if (kind := type(parameter.data)) is not torch.Tensor:
            if kind.__name__ == "DTensor":
                raise _wrapped(model, _WRAPPERS["FullyShardedDataParallel"])
            raise _quantised(path, kind.__name__)
        if not parameter.numel():
            raise ModelError("a matrix without weights", where=path)
        if parameter.is_inference():
            raise ModelError(
                "weights made within torch.inference_mode() cannot be changed",
                where=path,
                wanted="a model loaded outside of it",
            )


def refuse_pairs(config: PreTrainedConfig, where: object) -> None:
    """Raise `ModelError` for a model of which the decoder is only one half."""
    if getattr(config, "is_encoder_decoder", False):
        claimed = ", ".join(config.architectures or []) or config.model_type
        raise ModelError(
            f"an encoder-decoder ({claimed})",
            where=where,
            wanted="a decoder, or a classifier of images",
        )


def sees_ahead(model: PreTrainedModel) -> bool:
    """Whether a model is BERT or its kin, which transformers would run as a decoder if asked to."""
    claimed = model.config.architectures or []
    encodes = getattr(model.config, "is_decoder", None) is False  # GPT-NeoX says so, and is causal
    causal = any(getattr(module, "is_causal", None) is True for module in model.modules())
    return encodes and not causal and type(model).__name__ not in claimed


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside, modules and functions that were compiled run as they were written: observed."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled yet, and importing it takes long
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _check_module(path: str, module: nn.Module) -> None:
    """Raise if the weights of one module are not its own."""
    if type(module).__module__.startswith("peft.") or any(
        name.startswith(("lora_", "adapter_")) for name in module._parameters
    ):
        raise ModelError(
            f"an adapter in the model ({type(module).__name__})",
            where=path,
            wanted="the weights alone",
            hint="merge_and_unload() of its PeftModel, or loading the model without the adapter",
        )
    for name in _WITHIN:
        if name in module._modules:
            raise _wrapped(module, f"the part within, {path}.{name}, in its place")
    if getattr(getattr(module, "_hf_hook", None), "offload", False):
        raise _offloaded(path)
    undo = None
    if parametrize.is_parametrized(module):
        undo = "torch.nn.utils.parametrize.remove_parametrizations(module, name)"
    makers = {type(hook).__module__ for hook in module._forward_pre_hooks.values()}
    linear = isinstance(module, nn.Linear | Conv1D)
    if prune.__name__ in makers:
        undo = "torch.nn.utils.prune.remove(module, 'weight')"
    elif any(maker.startswith("torch.nn.utils.") for maker in makers) or (
        undo is None and linear and "weight" not in module._parameters
    ):
        undo = "torch.nn.utils.remove_weight_norm(module), or what else undoes it"
    if undo is not None:
        raise ModelError(
            "a weight that is made from others at every call", where=path,
            wanted="weights that are parameters", hint=undo,
        )  # fmt: skip
    if type(module).__module__.startswith("torch.ao.") or _is_packed(module):
        raise _quantised(path, f"a quantised {type(module).__name__}")


def _is_packed(module: nn.Module) -> bool:
    """Whether a module has a matrix of integers for its weight, as quantisers put in its place."""
    if module._modules or any(p is not None and p.dim() >= 2 for p in module._parameters.values()):
        return False
    return any(
        b is not None and b.dim() >= 2 and not b.is_floating_point() and b.dtype != torch.bool
        for b in module._buffers.values()
    )


def _wrapped(model: nn.Module, instead: str) -> ModelError:
    return ModelError(
        f"a {type(model).__name__} around the model", wanted="the model itself", hint=instead
    )


def _offloaded(path: str) -> ModelError:
    return ModelError(
        "weights that are offloaded, or were never loaded",
        where=path,
        wanted="all of the model in memory",
        hint="loading it without device_map, or giving its folder, which is read block by block",
    )


def _quantised(path: str, how: str) -> ModelError:
    return ModelError(
        f"weights stored as {how}",
        where=path,
        wanted="float64, float32, bfloat16 or float16",
        hint="loading the model without a quantization_config, or its dequantize()",
    )
