"""What the tiny configurations of all families have in common."""

from __future__ import annotations

from typing import Any

BLOCKS, WIDTH, VOCABULARY, POSITIONS = 3, 32, 128, 64

SPREAD = 0.2
"""Standard deviation of the weights: large enough for blocks to matter."""

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

BARE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "initializer_range": SPREAD,
    "tie_word_embeddings": False,
    **SPECIAL,
}
PLAIN: dict[str, Any] = {**BARE, "num_attention_heads": 4, "max_position_embeddings": POSITIONS}
GROUPED: dict[str, Any] = {**PLAIN, "intermediate_size": 64, "num_key_value_heads": 2}
EXPERTS: dict[str, Any] = {
    **GROUPED,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
LOCAL_EXPERTS: dict[str, Any] = {
    **GROUPED,
    "intermediate_size": 24,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
"""Experts of families that call their width `intermediate_size` and have no dense layers."""

GPT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": WIDTH,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": POSITIONS,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "initializer_range": SPREAD,
    **SPECIAL,
}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
"""Latent attention: queries, keys and values pass through 16 numbers."""

ONE_OF_EACH = ["sliding_attention", "full_attention"]
LINEAR_AND_FULL = ["linear_attention", "full_attention"]
DENSE_AND_SPARSE = ["dense", "sparse"]
