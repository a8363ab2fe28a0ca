"""The sequences that a recipe asks for, made to fit a model: to calibrate with, to measure on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from secateur.checkpoint import BlockModel
from secateur.data import SELF, TokenBatch, load_calibration, load_heldout, self_written
from secateur.recipe import Recipe


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside a model, or None if there is none that can be read."""
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError, KeyError, TypeError):
        return None


def read_calibration(
    recipe: Recipe,
    source: BlockModel,
    tokenizer: PreTrainedTokenizerBase | None,
    dense: Callable[[], PreTrainedModel],
    tokens: Tensor | None = None,
) -> TokenBatch | None:
    """The calibration sequences, no longer than the model allows; None if there are to be none.

    Args:
        recipe: names the source and the sizes.
        source: the model.
        tokenizer: for sources that are text.
        dense: gives the whole dense model, if it is to write the text itself.
        tokens: int64 [sequences, tokens] in place of the recipe's source.

    Raises:
        DataError: the source cannot be read or is too short.
    """
    asked: str | Tensor | None = recipe.calibration if tokens is None else tokens
    if asked is None:
        return None
    length, notices = clip(recipe.sequence_length, source)
    if isinstance(asked, str) and asked == SELF:
        batch = self_written(
            dense(), samples=recipe.samples, sequence_length=length, seed=recipe.seed
        )
    else:
        batch = load_calibration(
            asked,
            tokenizer=tokenizer,
            samples=recipe.samples,
            sequence_length=length,
            seed=recipe.seed,
            vocabulary=vocabulary(source),
        )
    return replace(batch, notices=(*notices, *batch.notices))


def read_heldout(
    recipe: Recipe, source: BlockModel, tokenizer: PreTrainedTokenizerBase | None
) -> TokenBatch | None:
    """The windows to measure on, no longer than the model allows; None if there are to be none.

    Raises:
        DataError: the source cannot be read or is too short.
    """
    if recipe.text is None:
        return None
    length, notices = clip(recipe.sequence_length, source)
    batch = load_heldout(
        recipe.text,
        tokenizer=tokenizer,
        sequence_length=length,
        windows=recipe.windows,
        vocabulary=vocabulary(source),
    )
    return replace(batch, notices=(*notices, *batch.notices))


def vocabulary(source: BlockModel) -> int:
    """How many tokens the model can read."""
    size: int = source.model.get_input_embeddings().weight.shape[0]
    return size


def clip(length: int, source: BlockModel) -> tuple[int, tuple[str, ...]]:
    """`length`, or the longest that the model allows and a notice that says so."""
    config = source.model.config.get_text_config(decoder=True)
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None or length <= limit:
        return length, ()
    return limit, (f"sequences are {limit} tokens, the most this model allows, not {length}",)
