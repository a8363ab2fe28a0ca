"""Rotary frequencies in a GGUF file: a base, a factor that stretches them, or one for each pair.

transformers' `llama3` slows the slow pairs of channels down. The file has no key for that: it holds
by how much each pair is slowed, as the tensor `rope_freqs.weight` [d/2], and the settings that make
exactly these are looked for where it is read.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from secateur.errors import CheckpointError, ModelError
from secateur.gguf.kinds import FULL, SLIDING, head_width
from secateur.gguf.library import Metadata, Value

SLOWED = "rope_freqs.weight"
"""Name of the tensor."""
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""The settings of every Llama from 3.1 on but `factor`."""


def rotary_metadata(arch: str, config: Any) -> dict[str, Value]:
    """What a file states of the rotary frequencies.

    Raises:
        ModelError: they are of a kind that is not written.
    """
    told = config.rope_parameters
    main = told.get(FULL, told)
    kind = main.get("rope_type", "default")
    local = told.get(SLIDING, {}) if FULL in told else {}
    odd = [local.get("rope_type", "default") != "default",
           *(part.get("partial_rotary_factor", 1.0) != 1.0 for part in (main, local))]  # fmt: skip
    if kind not in ("default", "linear", "llama3") or any(odd):
        raise ModelError(
            f"rotary frequencies of the type {kind!r} are not written to GGUF",
            wanted="default, linear or llama3, for whole heads",
        )
    values: dict[str, Value] = {"rope.freq_base": float(main["rope_theta"])}
    if local:
        values["rope.freq_base_swa"] = float(local["rope_theta"])
    if kind == "linear":
        values["rope.scaling.type"] = "linear"
        values["rope.scaling.factor"] = float(main["factor"])
    return {f"{arch}.{key}": value for key, value in values.items()}


def slowed(config: Any) -> Tensor | None:
    """By how much each pair of channels is slowed, float32 [d/2]; None if by nothing of its own."""
    told = config.rope_parameters
    if told.get("rope_type") != "llama3":
        return None
    width = head_width(config)
    plain = 1.0 / told["rope_theta"] ** (torch.arange(0, width, 2).float() / width)  # [d/2]
    frequencies: Tensor
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    factors: Tensor = plain / frequencies  # [d/2]
    return factors


def rotary_parameters(arch: str, metadata: Metadata, config: Any, factors: Tensor | None) -> Any:
    """transformers' settings of the rotary frequencies that a file states.

    Args:
        arch: the architecture.
        metadata: of the file.
        config: with all other settings.
        factors: the tensor `rope_freqs.weight` of the file, if it has one.

    Raises:
        CheckpointError: the file states something that is not read.
    """
    main: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": metadata.get(f"{arch}.rope.freq_base", 10000.0),
    }
    scaling = metadata.get(f"{arch}.rope.scaling.type", "none")
    if scaling == "linear":
        factor = metadata.get(f"{arch}.rope.scaling.factor", 1.0)
        main = {**main, "rope_type": "linear", "factor": factor}
    elif scaling != "none":
        raise CheckpointError(
            f"rotary frequencies are scaled by {scaling!r}", wanted="none or linear"
        )
    if factors is not None:
        main = {**main, "rope_type": "llama3", "factor": float(factors.max()), **_LLAMA3}
        trial = deepcopy(config)
        trial.rope_parameters = main
        made = slowed(trial)
        if made is None or made.shape != factors.shape or not torch.allclose(made, factors):
            raise CheckpointError(
                f"the frequencies in {SLOWED} are none of Llama 3's", wanted="those of Llama 3"
            )
    if arch != "gemma3":
        return main
    local = metadata.get(f"{arch}.rope.freq_base_swa", 10000.0)
    return {FULL: main, SLIDING: {"rope_type": "default", "rope_theta": local}}
