"""Top-1 of a classifier of images, block by block, and how often it agrees with a dense one.

top-1           share of images whose largest logit is that of their label
standard error  sqrt(top-1 * (1 - top-1) / images)
agreement       share of images that both models put into the same class
"""

from __future__ import annotations

import math
import time

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from secateur.blocks.stream import Tick, silent
from secateur.checkpoint import BlockModel
from secateur.data import ImageBatch, ImageProtocol
from secateur.errors import NumericalError
from secateur.evaluation.perplexity import pass_through
from secateur.machine.waiting import each


class Classification(BaseModel):
    """What was measured, and on what."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    top1: float | None
    """Share of images in the right class; none without labels."""
    standard_error: float | None
    """Standard error of top-1, as of a share of independent images."""
    dense_top1: float | None
    """Top-1 of the dense model on the same images."""
    agreement: float | None
    """Share of images that the dense model puts into the same class."""
    protocol: ImageProtocol
    """The images, and their hash."""
    dtype: str
    """Precision of the computation."""
    seconds: float
    """Wall time."""


def classify(
    source: BlockModel,
    images: ImageBatch,
    batch_size: int,
    against: BlockModel | None = None,
    tick: Tick = silent,
) -> Classification:
    """Top-1 of a classifier, and its agreement with another.

    Args:
        source: the model.
        images: what it is to tell.
        batch_size: images that run through a block together.
        against: the dense model, with the same classes.
        tick: told of every block.

    Raises:
        NumericalError: a logit is not finite.
    """
    began = time.perf_counter()
    seen = predictions(source, images, batch_size, tick)
    dense = None if against is None else predictions(against, images, batch_size, tick, "dense")
    top1 = dense_top1 = error = None
    if images.labels is not None:
        top1 = _share(seen, images.labels)
        error = math.sqrt(top1 * (1 - top1) / len(seen))
        dense_top1 = None if dense is None else _share(dense, images.labels)
    return Classification(
        top1=top1,
        standard_error=error,
        dense_top1=dense_top1,
        agreement=None if dense is None else _share(seen, dense),
        protocol=images.protocol,
        dtype=str(source.dtype).removeprefix("torch."),
        seconds=time.perf_counter() - began,
    )


@torch.no_grad()
def predictions(
    source: BlockModel, images: ImageBatch, batch_size: int, tick: Tick = silent, name: str = "run"
) -> Tensor:
    """The class that a model sees in every image, int64 [images], on the CPU.

    Raises:
        NumericalError: a logit is not finite.
    """
    stream = pass_through(source, images.pixel_values, batch_size, tick, name)
    seen = []
    with source.open_surroundings() as model:
        for batch in each("classes of the images", stream.batches):
            logits = stream.logits(model, batch, slice(None))  # [batch, classes]
            if not bool(torch.isfinite(logits).all()):
                raise NumericalError("a logit is not finite", where=images.protocol.source)
            seen.append(logits.argmax(dim=-1).cpu())
    return torch.cat(seen)


def _share(seen: Tensor, right: Tensor) -> float:
    """Share of classes [images] that are the right ones."""
    return float((seen == right).double().mean())
