"""Families that mix tokens by recurrence or convolution, in some of their blocks or in all."""

from __future__ import annotations

from typing import Any

from families.sizes import BARE, DENSE_AND_SPARSE, EXPERTS, GROUPED, LATENT, LOCAL_EXPERTS

_MAMBA: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}
_LINEAR_FIRST: dict[str, Any] = {"layer_types": ["linear_attention", "full_attention"]}
_CONVOLUTION_FIRST: dict[str, Any] = {"layer_types": ["conv", "full_attention"]}
DELTA: dict[str, Any] = {
    **_LINEAR_FIRST,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
"""Linear attention by the delta rule, then full attention."""

MIXER_FAMILIES: dict[str, dict[str, Any]] = {
    "mamba2": {
        **BARE,
        "num_heads": 4,
        "head_dim": 16,
        "state_size": 8,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "bamba": {**GROUPED, **_MAMBA, "attn_layer_indices": [1]},
    "falcon_h1": {**GROUPED, **_MAMBA, "mamba_d_ssm": 64},
    "granitemoehybrid": {
        **GROUPED,
        **_MAMBA,
        **_LINEAR_FIRST,
        "num_local_experts": 0,
        "shared_intermediate_size": 64,
    },
    "granitemoehybrid-experts": {
        **LOCAL_EXPERTS,
        **_MAMBA,
        **_LINEAR_FIRST,
        "model_type": "granitemoehybrid",
        "shared_intermediate_size": 24,
    },
    "nemotron_h": {
        **GROUPED,
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
        "head_dim": 8,
        "ssm_state_size": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "n_groups": 1,
        "chunk_size": 8,
        "n_routed_experts": 4,
        "moe_intermediate_size": 24,
        "moe_shared_expert_intermediate_size": 24,
    },
    "kimi_linear": {
        **EXPERTS,
        **LATENT,
        **_LINEAR_FIRST,
        "q_lora_rank": None,
        "num_local_experts": 4,
        "n_shared_experts": 1,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "mlp_layer_types": DENSE_AND_SPARSE,
    },
    "minimax": {**LOCAL_EXPERTS, **_LINEAR_FIRST, "head_dim": 8, "block_size": 8},
    "olmo_hybrid": {**GROUPED, **DELTA},
    "qwen3_5": {**GROUPED, **DELTA, "model_type": "qwen3_5_text", "head_dim": 8},
    "qwen3_next": {**EXPERTS, **DELTA, "head_dim": 8, "shared_expert_intermediate_size": 24},
    "lfm2": {**GROUPED, **_CONVOLUTION_FIRST, "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {**EXPERTS, **_CONVOLUTION_FIRST, "num_dense_layers": 1},
}
"""Family -> the settings of its tiny model."""
