"""Builds a model without its weights, as large as its files and no larger; says its dtypes.

Parameters are on the meta device and never real, so that a configuration can ask for any width and
costs nothing until it is compared with the files. What a model computes for itself (rotary
frequencies, say) is made real by transformers' own functions, as `from_pretrained` does it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM
from transformers.initialization import meta_device_safe_creation_ops

from secateur.checkpoint.configuration import auto_class, check_generation
from secateur.checkpoint.in_memory import refuse_pairs, sees_ahead
from secateur.checkpoint.read import Checkpoint
from secateur.errors import CheckpointError, ModelError, reason
from secateur.machine.limits import MOST_BUFFER_BYTES, MOST_CALLS_PER_TENSOR, at_most

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_ONE_AT_A_TIME = threading.RLock()
"""Held while a model is built: transformers sets torch's default dtype meanwhile, which is one for
all threads of the process."""


class _Counted(TorchFunctionMode):
    """Refuses to go on building what makes far more tensors than the files hold."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self._left = MOST_CALLS_PER_TENSOR * (len(checkpoint.files) + 100)
        self._checkpoint = checkpoint

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._left -= 1
        if self._left < 0:
            raise _too_large(self._checkpoint)
        return func(*args, **(kwargs or {}))


@contextmanager
def building(checkpoint: Checkpoint | None = None) -> Iterator[None]:
    """Inside, one thread builds a model; of a checkpoint not more of it than the files can fill."""
    with _ONE_AT_A_TIME:
        if checkpoint is None:
            yield
            return
        with _Counted(checkpoint):
            yield


def empty_model(
    config: PreTrainedConfig, checkpoint: Checkpoint, dtype: torch.dtype
) -> PreTrainedModel:
    """The model on the meta device, what it computes for itself real.

    Args:
        config: see `read_config`.
        checkpoint: the files that are to fill it.
        dtype: which `from_pretrained` would be given.

    Raises:
        ModelError: no model can be built whose blocks are pruned, or not one that these files fill.
        CheckpointError: it is larger than the files.
    """
    trust = checkpoint.trust_remote_code
    own_code = trust and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    kind = AutoModelForCausalLM if own_code else auto_class(config)
    if kind is None:
        raise ModelError(
            f"{config.model_type!r} is no causal language model of transformers",
            where=checkpoint.folder,
            wanted="a decoder, such as Llama or GPT-2, or a classifier of images, such as ViT",
        )
    try:
        with building(checkpoint), torch.device("meta"), meta_device_safe_creation_ops():
            model: PreTrainedModel = kind.from_config(
                deepcopy(config), dtype=dtype, trust_remote_code=trust
            )
        _check_weights(model, checkpoint)
        compute_buffers(model, checkpoint.folder)
    except (ModelError, CheckpointError):
        raise
    except Exception as fault:  # every family fails in its own way on sizes that make no model
        raise ModelError(
            f"no model can be built from config.json ({reason(fault)})",
            where=checkpoint.folder,
            hint="the config.json that belongs to the weights",
        ) from fault
    _refuse_encoders(config, model, checkpoint)
    if model.can_generate():
        check_generation(checkpoint)
    return model.eval().requires_grad_(False)


def compute_buffers(model: PreTrainedModel, where: object) -> None:
    """Make real what a model on the meta device computes for itself.

    Raises:
        ModelError: that is too large, or the model's own code computes it in a way that
            transformers does not know: `from_pretrained` would leave it undefined.
    """
    stored = model.state_dict(keep_vars=True)
    computed = {name: buffer for name, buffer in model.named_buffers() if name not in stored}
    taken = sum(buffer.nbytes for buffer in computed.values())
    at_most(MOST_BUFFER_BYTES, taken, "bytes of tables", where=where, fault=ModelError)
    for tensor in stored.values():
        tensor._is_hf_initialized = True  # it comes from a file: nothing to draw
    for name, buffer in computed.items():
        owner, _, leaf = name.rpartition(".")
        unset = _unset(torch.empty_like(buffer, device="cpu"))
        model.get_submodule(owner)._buffers[leaf] = unset
    with building(), torch.random.fork_rng(devices=[]):
        model.initialize_weights()
    for name, buffer in model.named_buffers():
        known = name not in computed or buffer.dtype == torch.bool or not buffer.numel()
        if not known and torch.equal(buffer, _unset(buffer.clone())):
            raise ModelError(
                f"transformers does not compute {name!r} of this model",
                where=where,
                wanted="code whose _init_weights sets what its files do not hold",
            )


def dtypes_of(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The dtype that `from_pretrained(dtype=dtype)` gives each tensor that files hold, by name.

    A family keeps some in float32: in both halves (`_keep_in_fp32_modules_strict`), in float16
    alone (`_keep_in_fp32_modules`), or because its code makes them so.

    Args:
        model: built in `dtype`.
        dtype: as `from_pretrained` takes it.
    """
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    plan: dict[str, torch.dtype] = model._get_dtype_plan(dtype)
    if plan:
        from transformers.core_model_loading import build_glob_alternation

        pattern, pattern_by_group, _ = build_glob_alternation(list(plan))
        for name in dtypes:
            if match := pattern.search(name):
                dtypes[name] = plan[pattern_by_group[match.lastgroup]]
    return dtypes


def as_loaded(
    model: PreTrainedModel, dtype: torch.dtype
) -> tuple[dict[str, torch.dtype], dict[str, torch.Tensor]]:
    """What a model in memory would be, had `from_pretrained(dtype=dtype)` loaded it.

    Args:
        model: in memory.
        dtype: as `from_pretrained` takes it.

    Returns:
        the dtype of every tensor that files hold, by name; and what the model computes for itself,
        where what it has in memory is that in another precision. Both are empty for a class that
        cannot be built anew from its configuration.
    """
    config = deepcopy(model.config)
    config._attn_implementation = config._experts_implementation = None
    try:
        with building(), torch.device("meta"), meta_device_safe_creation_ops():
            loaded: PreTrainedModel = type(model)._from_config(config, dtype=dtype)
        compute_buffers(loaded, type(model).__name__)
    except Exception:  # a class of the caller's own, made in a way of its own
        return {}, {}
    buffers, stored = dict(model.named_buffers()), loaded.state_dict()
    computed = {}
    for name, value in loaded.named_buffers():
        if name in stored or name not in buffers or buffers[name].dtype == value.dtype:
            continue
        there = buffers[name].cpu()
        if torch.equal(there, value.to(there.dtype)) or torch.equal(there.to(value.dtype), value):
            computed[name] = value
    return dtypes_of(loaded, dtype), computed


def _check_weights(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """Raise if a model has far more weights than its files, or a matrix without any."""
    for name, parameter in model.named_parameters():
        if not parameter.numel():
            raise CheckpointError(
                f"config.json makes {name!r} {list(parameter.shape)}: it has no weights",
                where=checkpoint.folder,
                wanted="sizes above 0",
            )
    held = sum(checkpoint.elements(name) for name in checkpoint.files)
    if sum(parameter.numel() for parameter in model.parameters()) > 2 * held + 2**20:
        raise _too_large(checkpoint)


def _too_large(checkpoint: Checkpoint) -> CheckpointError:
    return CheckpointError(
        "config.json asks for a far larger model than the files hold",
        where=checkpoint.folder,
        wanted="a configuration and weights of the same model",
    )


def _unset(buffer: torch.Tensor) -> torch.Tensor:
    """Fill a tensor with what no model computes."""
    if buffer.dtype == torch.bool:
        return buffer.zero_()
    lowest: Callable[[torch.dtype], Any] = (
        torch.finfo if buffer.is_floating_point() else torch.iinfo
    )
    return buffer.fill_(lowest(buffer.dtype).min)


def _refuse_encoders(
    config: PreTrainedConfig, model: PreTrainedModel, checkpoint: Checkpoint
) -> None:
    """Raise for BERT and its kin, and for a model of which the decoder is only one half."""
    claimed = ", ".join(config.architectures or []) or config.model_type
    refuse_pairs(config, checkpoint.folder)
    if sees_ahead(model):
        raise ModelError(
            f"an encoder that sees ahead ({claimed})",
            where=checkpoint.folder,
            wanted="a decoder, whose config.json has is_decoder or architectures"
            f" [{type(model).__name__}]",
        )
