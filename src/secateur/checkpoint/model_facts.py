"""Says what a model can read: its vocabulary, the longest sequence, its tokenizer, images."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from secateur.checkpoint.block_model import BlockModel
from secateur.errors import DataError, ModelError

PAPERS_LENGTH = 2048
"""Tokens per sequence in the papers, and unless one asks for another: what may be too long."""


def load_tokenizer(
    folder: Path, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside a model, or None if there is none that can be read."""
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception:  # damage shows in every reader's own exceptions
        return None


def reads_images(source: BlockModel) -> bool:
    """Whether the model is a classifier of images; else it is a language model."""
    name: str = source.model.main_input_name
    return name == "pixel_values"


def vocabulary(source: BlockModel) -> int:
    """How many tokens the model can read.

    Raises:
        ModelError: it reads images.
    """
    if reads_images(source):
        raise ModelError(f"{type(source.model).__name__} reads images", wanted="a language model")
    size: int = source.model.get_input_embeddings().weight.shape[0]
    return size


def clip(length: int, source: BlockModel) -> tuple[int, tuple[str, ...]]:
    """`length`, or, if it is the papers', the longest that the model allows and a notice.

    Raises:
        DataError: the model does not allow so many tokens.
    """
    config = source.model.config.get_text_config(decoder=True)
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None or limit < 1 or length <= limit:  # some write -1 for no limit
        return length, ()
    if length != PAPERS_LENGTH:
        raise DataError(
            f"sequences of {length} tokens",
            wanted=f"at most {limit}, as the model allows",
            hint=f"--sequence-length {limit}",
        )
    return limit, (f"sequences are {limit} tokens, the most this model allows, not {length}",)
