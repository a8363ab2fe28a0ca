"""The kinds of model that are written to GGUF and read from it: one table, for both ways.

A GGUF file names its architecture and states sizes under keys; all else that makes up the model is
what llama.cpp does for that architecture. A kind therefore says three things:

    stated     key -> attribute of transformers' configuration, with the same value
    implied    attributes that the file cannot state, and the values that llama.cpp takes for
               granted: a model with others is refused, a configuration that is read gets them
    layout     how tensors differ from transformers': the rows of Q and K, the norms

Rows of Q and K. transformers turns the first half of a head's rows against the second, llama.cpp
for `llama` turns neighbours: row (h, half, j) of [heads, 2, d/2] lies at (h, j, half) of [heads,
d/2, 2]. Norms of Gemma multiply by 1 + weight; the file holds 1 + weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from secateur.errors import CheckpointError, ModelError, closest
from secateur.gguf.library import Metadata, Value, library

_SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
"""What every kind states."""
_WINDOW = {"attention.sliding_window": "sliding_window"}
_CAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_PATTERN = "attention.sliding_window_pattern"
"""Key of a list, true for every block that sees no further than the window."""
FULL, SLIDING = "full_attention", "sliding_attention"
"""transformers' names of the two types of blocks."""


@dataclass(frozen=True)
class GgufKind:
    """One architecture of GGUF.

    Attributes:
        arch: its name in the file.
        model_types: transformers' families that are written to it; the first is read from it.
        stated: key without the architecture in front -> attribute of the configuration.
        implied: attributes of a configuration that llama.cpp takes for granted.
        turns_neighbours: whether the rows of Q and K are reordered.
        one_more: whether norms hold 1 + weight.
        every: of so many blocks the last sees everything and the rest a window; 0 if all do.
    """

    arch: str
    model_types: tuple[str, ...]
    stated: Mapping[str, str]
    implied: Callable[[Any], dict[str, Any]]
    turns_neighbours: bool = False
    one_more: bool = False
    every: int = 0

    def metadata(self, config: Any) -> dict[str, Value]:
        """What a file states of a model, but for its rotary frequencies (`rotary.py`).

        Args:
            config: transformers' configuration.

        Raises:
            ModelError: llama.cpp would compute another model.
        """
        for name, wanted in self.implied(config).items():
            there = getattr(config, name, wanted)
            if there != wanted and (there or wanted):  # None, False and 0 say the same
                raise ModelError(
                    f"{name} is {there} in config.json, which no GGUF of {self.arch!r} can say",
                    wanted=f"{wanted}",
                )
        values: dict[str, Value] = {}
        for key, name in self.stated.items():
            value = getattr(config, name, None)
            if value is None:
                raise ModelError(
                    f"{name} is not set in config.json, and a GGUF of {self.arch!r} must state it"
                )
            values[key] = value
        width = head_width(config)
        for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
            values[key] = width
        values["vocab_size"] = config.vocab_size
        if self.every and config.layer_types != self._types(config.num_hidden_layers):
            values[_PATTERN] = [type_ == SLIDING for type_ in config.layer_types]
        return {f"{self.arch}.{key}": value for key, value in values.items()}

    def attributes(self, config: Any, metadata: Metadata) -> dict[str, Any]:
        """What transformers' configuration must say of a model that a file holds.

        Args:
            config: with the sizes that transformers' reader found.
            metadata: of the file.

        Raises:
            CheckpointError: the file states something that is not read.
        """
        values: dict[str, Any] = {}
        for key, name in self.stated.items():
            value = metadata.get(f"{self.arch}.{key}")
            if isinstance(value, list | str):
                raise CheckpointError(
                    f"{self.arch}.{key} is {str(value)[:40]}", wanted="one number for all blocks"
                )
            if value is not None:
                values[name] = value
        heads = values["num_attention_heads"]
        values.setdefault("num_key_value_heads", heads)
        width = metadata.get(f"{self.arch}.attention.key_length")
        values["head_dim"] = width or values["hidden_size"] // heads
        for name, value in values.items():
            setattr(config, name, value)
        values.update(
            (name, value) for name, value in self.implied(config).items() if hasattr(config, name)
        )
        if self.every:
            values["layer_types"] = self._read_types(metadata, values["num_hidden_layers"])
        return values

    def names(self, blocks: int) -> Callable[[str], str | None]:
        """Says the name of a parameter of transformers in the file; None if it has none."""
        gguf = library()
        arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == self.arch)
        table = gguf.get_tensor_name_map(arch, blocks)
        return lambda name: table.get_name(name, try_suffixes=(".weight", ".bias"))

    def stored(self, name: str, weight: Tensor, config: Any) -> Tensor:
        """A parameter as it lies in the file.

        Args:
            name: its name there.
            weight: [out, in] or [out], as transformers has it.
            config: of the model.
        """
        if self.one_more and name.endswith("norm.weight"):
            return weight.float() + 1
        for part, heads in (("attn_q", "num_attention_heads"), ("attn_k", "num_key_value_heads")):
            if self.turns_neighbours and f".{part}." in name:
                shape = (getattr(config, heads), 2, -1, *weight.shape[1:])  # [heads, 2, d/2, ..]
                return weight.reshape(shape).transpose(1, 2).reshape(weight.shape)
        return weight

    def _types(self, blocks: int) -> list[str]:
        return [FULL if (i + 1) % self.every == 0 else SLIDING for i in range(blocks)]

    def _read_types(self, metadata: Metadata, blocks: int) -> list[str]:
        said = metadata.get(f"{self.arch}.{_PATTERN}")
        if said is None or said == self.every:
            return self._types(blocks)
        if not isinstance(said, list) or len(said) != blocks:
            raise CheckpointError(
                f"{self.arch}.{_PATTERN} is {str(said)[:40]}", wanted=f"{blocks} of true and false"
            )
        return [SLIDING if sliding else FULL for sliding in said]


def head_width(config: Any) -> int:
    """Channels of one head of attention."""
    width = getattr(config, "head_dim", None)
    return int(width or config.hidden_size // config.num_attention_heads)


def kind_of(model_type: str, where: object) -> GgufKind:
    """The kind that a family of transformers is written to.

    Raises:
        ModelError: there is none.
    """
    for kind in KINDS:
        if model_type in kind.model_types:
            return kind
    known = [name for kind in KINDS for name in kind.model_types]
    raise ModelError(
        f"{model_type!r} is not written to GGUF", where=where, wanted=closest(model_type, known)
    )


def _llama(config: Any) -> dict[str, Any]:
    return {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
            "sliding_window": None}  # fmt: skip


def _qwen(config: Any) -> dict[str, Any]:
    return {"hidden_act": "silu", "use_sliding_window": False,
            "layer_types": [FULL] * config.num_hidden_layers}  # fmt: skip


def _qwen3(config: Any) -> dict[str, Any]:
    return {**_qwen(config), "attention_bias": False}


def _gemma(largest: int) -> Callable[[Any], dict[str, Any]]:
    """llama.cpp knows the largest model by its number of blocks, and scales its attention apart."""

    def implied(config: Any) -> dict[str, Any]:
        scale = head_width(config)
        if config.num_hidden_layers == largest:
            scale = config.hidden_size // config.num_attention_heads
        return {
            "hidden_activation": "gelu_pytorch_tanh",
            "attention_bias": False,
            "query_pre_attn_scalar": scale,
        }

    return implied


def _gemma3(config: Any) -> dict[str, Any]:
    return {
        **_gemma(62)(config),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "use_bidirectional_attention": False,
    }


KINDS = (
    GgufKind("llama", ("llama", "mistral"), _SIZES, _llama, turns_neighbours=True),
    GgufKind("qwen2", ("qwen2",), _SIZES, _qwen),
    GgufKind("qwen3", ("qwen3",), _SIZES, _qwen3),
    GgufKind("gemma2", ("gemma2",), _SIZES | _WINDOW | _CAPS, _gemma(46), one_more=True, every=2),
    GgufKind("gemma3", ("gemma3_text",), _SIZES | _WINDOW, _gemma3, one_more=True, every=6),
)
"""Every kind. Facts of llama.cpp's models/*.cpp and of transformers' reader; the round trip through
the latter proves them (tests/gguf_files)."""
