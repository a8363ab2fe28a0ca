"""Families that see images: the decoder of each is pruned, what sees is left as it is."""

from __future__ import annotations

from typing import Any

from families.dense import PLAIN_FAMILIES
from families.mixers import MIXER_FAMILIES

_IMAGE: dict[str, Any] = {"image_token_id": 120, "boi_token_id": 121, "eoi_token_id": 122}
_TIED = {"tie_word_embeddings": False}

MULTIMODAL_FAMILIES: dict[str, dict[str, Any]] = {
    "gemma3-images": {
        **_TIED,
        "model_type": "gemma3",
        "text_config": PLAIN_FAMILIES["gemma3"],
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
        },
        "mm_tokens_per_image": 4,
        "image_token_index": 120,
        "boi_token_index": 121,
        "eoi_token_index": 122,
    },
    "gemma4-images": {
        **_TIED,
        "model_type": "gemma4",
        "text_config": PLAIN_FAMILIES["gemma4"],
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 8,
            "patch_size": 4,
            "position_embedding_size": 64,
        },
        **_IMAGE,
    },
    "qwen3_5-images": {
        **_TIED,
        "model_type": "qwen3_5",
        "text_config": MIXER_FAMILIES["qwen3_5"],
        "vision_config": {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "patch_size": 4,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
        },
        "image_token_id": 120,
        "video_token_id": 121,
        "vision_start_token_id": 122,
        "vision_end_token_id": 123,
    },
}
"""Family -> the settings of its tiny model."""
