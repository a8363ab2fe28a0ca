"""Families whose blocks are attention and a feed-forward of experts."""

from __future__ import annotations

from typing import Any

from families.sizes import (
    DENSE_AND_SPARSE,
    EXPERTS,
    GROUPED,
    LATENT,
    LOCAL_EXPERTS,
    ONE_OF_EACH,
    VOCABULARY,
)

_ROUTED: dict[str, Any] = {**EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1}
_ONE_GROUP: dict[str, Any] = {"n_group": 1, "topk_group": 1}
_DEEPSEEK: dict[str, Any] = {
    **_ROUTED,
    **LATENT,
    "n_group": 2,
    "topk_group": 2,
    "first_k_dense_replace": 1,
}
_WINDOWED: dict[str, Any] = {"head_dim": 8, "sliding_window": 12, "layer_types": ONE_OF_EACH}

EXPERT_FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {**LOCAL_EXPERTS, "sliding_window": 12},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 24},
    "qwen3_moe": {**EXPERTS, "head_dim": 8},
    "olmoe": {**EXPERTS, "intermediate_size": 24},
    "granitemoe": LOCAL_EXPERTS,
    "deepseek_v3": _DEEPSEEK,
    "gpt_oss": {
        **LOCAL_EXPERTS,
        **_WINDOWED,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "afmoe": {**EXPERTS, **_WINDOWED, "num_dense_layers": 1, "num_shared_experts": 1},
    "beam": {**EXPERTS, **_WINDOWED, **_ONE_GROUP, "mlp_layer_types": DENSE_AND_SPARSE},
    "deepseek_v2": {**_ROUTED, **LATENT, "first_k_dense_replace": 1},
    "deepseek_v32": {**_DEEPSEEK, "index_topk": 8, "index_head_dim": 16, "index_n_heads": 2},
    "axk2": {
        **_ROUTED,
        **LATENT,
        "mlp_layer_types": DENSE_AND_SPARSE,
        "index_topk": 8,
        "index_head_dim": 16,
        "index_n_heads": 2,
        "gated_norm_rank": 16,
    },
    "ernie4_5_moe": {
        **GROUPED,
        "moe_intermediate_size": 24,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1,
    },
    "flex_olmo": {**EXPERTS, "intermediate_size": 24},
    "gemma4-experts": {
        **EXPERTS,
        **_WINDOWED,
        "model_type": "gemma4_text",
        "global_head_dim": 8,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": VOCABULARY,
        "enable_moe_block": True,
        "top_k_experts": 2,
    },
    "glm4_moe": {**_ROUTED, **_ONE_GROUP, "first_k_dense_replace": 1, "use_qk_norm": True},
    "glm4_moe_lite": {**_ROUTED, **_ONE_GROUP, **LATENT, "mlp_layer_types": DENSE_AND_SPARSE},
    "granitemoeshared": {**LOCAL_EXPERTS, "shared_intermediate_size": 24},
    "minimax_m2": {**LOCAL_EXPERTS, "head_dim": 8, "rotary_dim": 4},
    "phimoe": LOCAL_EXPERTS,
}
"""Family -> the settings of its tiny model: every token goes to two of four fused experts."""
