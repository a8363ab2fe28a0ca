"""Tiny random configurations of real decoder families, all of one size.

Two blocks suffice: the second gets what the first, pruned, gives it. `FAMILIES`, which most tests
use, have three, so that a test can look at a block that is neither first nor last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import (
    BloomConfig,
    CohereConfig,
    DeepseekV3Config,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    GraniteMoeConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OlmoeConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
    StableLmConfig,
)

BLOCKS, WIDTH, VOCABULARY, POSITIONS = 3, 32, 128, 64

_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SPREAD = 0.2  # standard deviation of the weights: large enough for blocks to matter
_PLAIN: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "initializer_range": _SPREAD,
    "tie_word_embeddings": False,
    **_SPECIAL,
}
_GROUPED: dict[str, Any] = {**_PLAIN, "intermediate_size": 64, "num_key_value_heads": 2}
_THREE: dict[str, Any] = {**_GROUPED, "num_hidden_layers": BLOCKS}
_EXPERTS: dict[str, Any] = {
    **_GROUPED,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
_ONE_OF_EACH = ["sliding_attention", "full_attention"]

FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_THREE),
    "mistral": lambda: MistralConfig(**_THREE, sliding_window=12),
    "qwen2": lambda: Qwen2Config(**_THREE),
    "qwen3": lambda: Qwen3Config(**_THREE, head_dim=8),
    "opt": lambda: OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        word_embed_proj_dim=WIDTH,
        ffn_dim=64,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        dropout=0.0,
        attention_dropout=0.0,
        layerdrop=0.0,
        init_std=_SPREAD,
        **_SPECIAL,
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_inner=64,
        n_layer=BLOCKS,
        n_head=4,
        n_positions=POSITIONS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=_SPREAD,
        **_SPECIAL,
    ),
}
"""Family -> the configuration of its tiny model: the few that most tests use."""

PLAIN_FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "gemma": lambda: GemmaConfig(**_GROUPED, head_dim=8),
    "gemma2": lambda: Gemma2Config(
        **_GROUPED, head_dim=8, sliding_window=12, layer_types=_ONE_OF_EACH
    ),
    "gemma3": lambda: Gemma3TextConfig(
        **_GROUPED, head_dim=8, sliding_window=12, layer_types=_ONE_OF_EACH
    ),
    "phi3": lambda: Phi3Config(**_GROUPED),
    "gpt_neox": lambda: GPTNeoXConfig(**_PLAIN, intermediate_size=64),
    "bloom": lambda: BloomConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        n_layer=2,
        n_head=4,
        initializer_range=_SPREAD,
        **_SPECIAL,
    ),
    "falcon": lambda: FalconConfig(**_PLAIN, ffn_hidden_size=64),
    "olmo2": lambda: Olmo2Config(**_GROUPED),
    "stablelm": lambda: StableLmConfig(**_GROUPED),
    "cohere": lambda: CohereConfig(**_GROUPED),
    "granite": lambda: GraniteConfig(**_GROUPED),
    "smollm3": lambda: SmolLM3Config(**_GROUPED, no_rope_layers=[1, 0]),
}
"""More families without experts."""

EXPERT_FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "mixtral": lambda: MixtralConfig(
        **{**_EXPERTS, "intermediate_size": 24}, num_local_experts=4, sliding_window=12
    ),
    "qwen2_moe": lambda: Qwen2MoeConfig(**_EXPERTS, shared_expert_intermediate_size=24),
    "qwen3_moe": lambda: Qwen3MoeConfig(**_EXPERTS, head_dim=8),
    "olmoe": lambda: OlmoeConfig(**{**_EXPERTS, "intermediate_size": 24}),
    "granitemoe": lambda: GraniteMoeConfig(
        **{**_EXPERTS, "intermediate_size": 24}, num_local_experts=4
    ),
    "deepseek_v3": lambda: DeepseekV3Config(
        **{**_EXPERTS, "num_key_value_heads": 4},
        n_routed_experts=4,
        n_shared_experts=1,
        n_group=2,
        topk_group=2,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
    ),
    "gpt_oss": lambda: GptOssConfig(
        **{**_EXPERTS, "intermediate_size": 24},
        num_local_experts=4,
        head_dim=8,
        sliding_window=12,
        layer_types=_ONE_OF_EACH,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
}
"""Families whose blocks route tokens to fused experts."""

EVERY_FAMILY = {**FAMILIES, **PLAIN_FAMILIES, **EXPERT_FAMILIES}

KINDS = {
    "llama": "plain",
    "gpt2": "matrices stored [in, out]",
    "mistral": "a sliding window",
    "gpt_neox": "attention beside the feed-forward, one matrix for queries, keys and values",
    "mixtral": "fused experts",
    "gpt_oss": "fused experts stored [in, out], with biases",
    "deepseek_v3": "latent attention, shared experts, a first block without experts",
}
"""One family for each kind of block -> what is particular about it."""
