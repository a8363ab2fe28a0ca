"""Families whose blocks are attention and feed-forward alone."""

from __future__ import annotations

from typing import Any

from families.sizes import (
    BLOCKS,
    GPT,
    GROUPED,
    ONE_OF_EACH,
    PLAIN,
    POSITIONS,
    SPECIAL,
    SPREAD,
    VOCABULARY,
    WIDTH,
)

_THREE: dict[str, Any] = {**GROUPED, "num_hidden_layers": BLOCKS}
_OPT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "word_embed_proj_dim": WIDTH,
    "ffn_dim": 64,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "layerdrop": 0.0,
    "init_std": SPREAD,
    **SPECIAL,
}
_GEMMA: dict[str, Any] = {
    **GROUPED,
    "head_dim": 8,
    "sliding_window": 12,
    "layer_types": ONE_OF_EACH,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _THREE,
    "mistral": {**_THREE, "sliding_window": 12},
    "qwen2": _THREE,
    "qwen3": {**_THREE, "head_dim": 8},
    "opt": _OPT,
    "gpt2": {**GPT, "n_inner": 64, "n_layer": BLOCKS},
}
"""Family -> the settings of its tiny model: the few that most tests use."""

PLAIN_FAMILIES: dict[str, dict[str, Any]] = {
    "gemma": {**GROUPED, "head_dim": 8},
    "gemma2": _GEMMA,
    "gemma3": {**_GEMMA, "model_type": "gemma3_text"},
    "phi3": GROUPED,
    "gpt_neox": {**PLAIN, "intermediate_size": 64},
    "bloom": {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "n_layer": 2,
        "n_head": 4,
        "initializer_range": SPREAD,
        **SPECIAL,
    },
    "falcon": {**PLAIN, "ffn_hidden_size": 64},
    "olmo2": GROUPED,
    "stablelm": GROUPED,
    "cohere": GROUPED,
    "granite": GROUPED,
    "smollm3": {**GROUPED, "no_rope_layers": [1, 0]},
    "gemma4": {
        **_GEMMA,
        "model_type": "gemma4_text",
        "global_head_dim": 16,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": VOCABULARY,
    },
    "cohere2": {**GROUPED, "sliding_window": 12, "layer_types": ONE_OF_EACH},
    "opt-projected": {
        **_OPT,
        "model_type": "opt",
        "num_hidden_layers": 2,
        "word_embed_proj_dim": 16,
        "do_layer_norm_before": False,
    },
    "apertus": {**GROUPED, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "arcee": GROUPED,
    "bitnet": GROUPED,
    "nemotron": GROUPED,
    "phi": GROUPED,
    "starcoder2": {**GROUPED, "sliding_window": 12},
    "gptj": {**GPT, "rotary_dim": 4},
    "codegen": {**GPT, "n_ctx": POSITIONS, "rotary_dim": 4},
    "gpt_bigcode": GPT,
    "openai-gpt": GPT,
    "gpt_neo": {
        **PLAIN,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 12,
        "resid_dropout": 0.0,
        "embed_dropout": 0.0,
    },
    "mpt": {
        "vocab_size": VOCABULARY,
        "d_model": WIDTH,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": POSITIONS,
        "initializer_range": SPREAD,
        **SPECIAL,
    },
    "biogpt": {
        **PLAIN,
        "intermediate_size": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    "xglm": {
        "vocab_size": VOCABULARY,
        "d_model": WIDTH,
        "ffn_dim": 64,
        "num_layers": 2,
        "attention_heads": 4,
        "max_position_embeddings": POSITIONS,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "init_std": SPREAD,
        **SPECIAL,
    },
}
"""More families without experts."""
