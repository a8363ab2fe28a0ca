"""What a recipe asks for, made to fit a model: text or images to calibrate or to measure with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from secateur.blocks.models_fault import models_fault
from secateur.checkpoint import BlockModel
from secateur.checkpoint.model_facts import clip, reads_images, vocabulary
from secateur.data import (
    SELF,
    Beginning,
    Draw,
    ImageBatch,
    TokenBatch,
    Tokenizer,
    images_in_memory,
    load_calibration,
    load_heldout,
    load_images,
    read_mixture,
    self_written,
    with_more,
)
from secateur.errors import DataError, RecipeError
from secateur.recipe import Bos, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROVING = 64
"""Tokens that blocks are proved on where there is no calibration."""
TOKENS = 4096
"""Calibration tokens that are searched with at most, but one sequence at least: their hidden states
are held once for everything that is tried."""


def to_search_with(calibration: TokenBatch, tokens: int | None = None) -> Tensor:
    """The last sequences of a calibration, int64 [sequences, length], of so many tokens at most.

    If none are said they are `TOKENS`.

    What the model wrote itself comes first, and so is left out while there is enough else.
    """
    few = max(1, (TOKENS if tokens is None else tokens) // calibration.inputs.shape[1])
    return calibration.inputs[-few:]


def to_prove_with(source: BlockModel, calibration: TokenBatch | ImageBatch | None) -> Tensor:
    """Tokens that blocks are proved on, int64 [1, tokens]: of the calibration, or any.

    Args:
        source: the model.
        calibration: of the run; None for a method that needs none.
    """
    if isinstance(calibration, TokenBatch):
        return calibration.inputs[:1]
    return torch.arange(PROVING)[None] % vocabulary(source)


def read_calibration(
    recipe: Recipe,
    source: BlockModel,
    tokenizer: Tokenizer,
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
    asked: tuple[str | Tensor, ...] = recipe.sources if tokens is None else (tokens,)
    if not asked:
        return None
    length, notices = clip(recipe.sequence_length, source)
    draw = Draw(recipe.samples, length, recipe.seed, column=recipe.column, bos=recipe.bos)
    batch = read_texts(asked, recipe.shares, draw, source, tokenizer, dense)
    if recipe.chosen_written:
        beginning = _beginning(tokenizer, recipe.bos)
        batch = with_more(dense(), batch, recipe.chosen_written, recipe.seed, beginning)
    return replace(batch, notices=(*notices, *batch.notices))


def read_texts(
    texts: Sequence[str | Tensor],
    shares: Sequence[float] | None,
    draw: Draw,
    source: BlockModel,
    tokenizer: Tokenizer,
    dense: Callable[[], PreTrainedModel],
) -> TokenBatch:
    """Sequences of one text, of several, or of what the dense model writes, with their protocol.

    Args:
        texts: where they are read; of several each gives a part.
        shares: of the sequences, one for each of several texts; None: all give as many.
        draw: how many sequences of how many tokens, and how they are chosen.
        source: the model that they are for.
        tokenizer: for texts that are no tokens yet.
        dense: gives the whole dense model, if it is to write text itself.

    Raises:
        DataError: a text cannot be read or is too short.
    """

    def read(text: str | Tensor, part: Draw) -> TokenBatch:
        if isinstance(text, Tensor) or text != SELF:
            return load_calibration(text, part, tokenizer=tokenizer, vocabulary=vocabulary(source))
        model = dense()
        with models_fault(type(model).__name__):
            return self_written(
                model,
                samples=part.samples,
                sequence_length=part.sequence_length,
                seed=part.seed,
                beginning=_beginning(tokenizer, part.bos),
            )

    if len(texts) == 1:
        return read(texts[0], draw)
    return read_mixture([str(text) for text in texts], shares, draw, read)


def _beginning(tokenizer: Tokenizer, bos: Bos) -> Beginning | None:
    """What text of the model's own begins with; None where there is no tokenizer."""
    return None if isinstance(tokenizer, DataError | None) else Beginning.of(tokenizer, bos)


def read_heldout(
    recipe: Recipe, source: BlockModel, tokenizer: Tokenizer
) -> tuple[TokenBatch, ...]:
    """The windows of every text to measure on, no longer than the model allows.

    Raises:
        DataError: the source cannot be read or is too short.
    """
    length, notices = clip(recipe.sequence_length, source)
    batches = [
        load_heldout(
            text,
            tokenizer=tokenizer,
            sequence_length=length,
            windows=recipe.windows,
            vocabulary=vocabulary(source),
            bos=recipe.bos,
        )
        for text in recipe.texts
    ]
    return tuple(replace(batch, notices=(*notices, *batch.notices)) for batch in batches)


def read_images(
    recipe: Recipe, source: BlockModel, folder: Path, given: Tensor | None = None
) -> ImageBatch | None:
    """The calibration images of a classifier; None if there are to be none.

    Args:
        recipe: names the folder of images, and how many.
        source: the model.
        folder: of the model, where its image processor lies.
        given: float [images, channels, height, width] in place of the recipe's folder.

    Raises:
        DataError: an image cannot be read, or does not fit.
    """
    config = source.model.config
    if given is not None:
        return images_in_memory(given, config)
    if recipe.images is None:
        return None
    return load_images(recipe.images, folder, config, recipe.samples, recipe.seed)


def check_kind(recipe: Recipe, source: BlockModel) -> None:
    """Prove that a recipe has no text for a classifier, and no images for a language model.

    Raises:
        RecipeError: it has.
    """
    name = type(source.model).__name__
    if reads_images(source):
        for option in ("calibration", "text"):
            if getattr(recipe, option) is not None:
                raise RecipeError(
                    f"{name} reads images, not text",
                    where=f"--{option}",
                    hint="--images FOLDER" if option == "calibration" else "evaluate --images",
                )
        if recipe.allocation != "uniform":
            raise RecipeError(
                f"{name} reads images, and allocation {recipe.allocation} is measured on text",
                where="--allocation",
                wanted="uniform",
            )
    elif recipe.images is not None:
        raise RecipeError(
            f"{name} reads text, not images", where="--images", hint="--calibration SOURCE"
        )
