"""Tiny random configurations of real decoder families, all of one size.

Two blocks suffice: the second gets what the first, pruned, gives it. `FAMILIES`, which most tests
use, have three, so that a test can look at a block that is neither first nor last. A family's
settings name its `model_type` where it is not the family's own name.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from families.dense import FAMILIES, PLAIN_FAMILIES
from families.experts import EXPERT_FAMILIES
from families.mixers import MIXER_FAMILIES
from families.multimodal import MULTIMODAL_FAMILIES
from families.sizes import BLOCKS, POSITIONS, VOCABULARY, WIDTH

__all__ = [
    "BLOCKS",
    "BY_EVERY_METHOD",
    "EVERY_FAMILY",
    "EXPERT_FAMILIES",
    "FAMILIES",
    "KINDS",
    "MIXER_FAMILIES",
    "MULTIMODAL_FAMILIES",
    "PLAIN_FAMILIES",
    "POSITIONS",
    "VOCABULARY",
    "WIDTH",
    "configuration",
    "has_experts",
]

EVERY_FAMILY: dict[str, dict[str, Any]] = {
    **FAMILIES,
    **PLAIN_FAMILIES,
    **EXPERT_FAMILIES,
    **MIXER_FAMILIES,
    **MULTIMODAL_FAMILIES,
}

KINDS = {
    "llama": "plain",
    "gpt2": "matrices stored [in, out]",
    "mistral": "a sliding window",
    "gpt_neox": "attention beside the feed-forward, one matrix for queries, keys and values",
    "gemma4": "windowed and full attention of different widths, keys that are values",
    "opt-projected": "blocks wider than the embeddings, as in OPT-350m",
    "gpt_neo": "local and global attention",
    "mpt": "one matrix for queries, keys and values, positions as a bias of attention",
    "gpt_bigcode": "one head for keys and values",
    "mixtral": "fused experts",
    "gpt_oss": "fused experts stored [in, out], with biases",
    "deepseek_v3": "latent attention, shared experts, a first block without experts",
    "deepseek_v32": "latent attention that sees what an indexer chooses, shared experts",
    "gemma4-experts": "experts beside a dense feed-forward",
    "mamba2": "a state space alone",
    "falcon_h1": "a state space beside attention",
    "granitemoehybrid": "a state space, then attention",
    "granitemoehybrid-experts": "a state space, then attention, experts, a shared one",
    "nemotron_h": "blocks of one layer each: a state space, experts, attention, a feed-forward",
    "kimi_linear": "linear attention with gates of low rank, then latent attention, experts",
    "minimax": "linear attention with decay, then full attention, experts",
    "qwen3_next": "linear attention by the delta rule, then full attention, experts, a shared one",
    "qwen3_5": "linear attention by the delta rule, then full attention",
    "lfm2": "a short convolution, then attention",
    "gemma3-images": "a decoder beside an encoder of images",
    "qwen3_5-images": "the decoder of qwen3_5 beside an encoder of images, read by two classes",
}
"""A family -> what is particular about its blocks."""

BY_EVERY_METHOD = [
    "llama", "gpt2", "mistral", "gpt_neox", "mixtral", "gpt_oss", "deepseek_v3", "qwen3_next",
]  # fmt: skip
"""Families that a run of all tests prunes by every method: between them all that a method sees."""


def configuration(family: str, **changes: Any) -> PreTrainedConfig:
    """The configuration of a family's tiny model, with some settings changed."""
    settings = {"model_type": family, **EVERY_FAMILY[family], **changes}
    config: PreTrainedConfig = AutoConfig.for_model(settings.pop("model_type"), **settings)
    return config


def has_experts(family: str) -> bool:
    """Whether some of a family's blocks route tokens to fused experts."""
    return any(name.endswith("_experts") and count for name, count in EVERY_FAMILY[family].items())
