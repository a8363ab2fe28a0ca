"""Top-1 of a classifier's folder on a folder of images: `secateur evaluate --images`."""

from __future__ import annotations

from secateur.blocks.batching import batch_size, tokens_in_each
from secateur.checkpoint.model_facts import reads_images
from secateur.data import load_images
from secateur.errors import DataError, RecipeError
from secateur.evaluation import Classification, classify
from secateur.evaluation.settings import EvaluationSettings
from secateur.evaluation.text import open_both
from secateur.machine import processes
from secateur.machine.waiting import doing
from secateur.progress import Progress, Quiet


def evaluate_images(
    settings: EvaluationSettings, progress: Progress | None = None
) -> Classification:
    """Top-1 of a model folder, and how often it agrees with another.

    Args:
        settings: which model, on what, and how. Images without class folders tell the agreement
            alone; `limit` draws so many at most, at random with seed 0.
        progress: told what happens; silent by default.

    Raises:
        SecateurError: something cannot be read, or does not fit.
    """
    processes.alone("evaluate --images")
    if settings.images is None:
        raise RecipeError("no images to measure on", hint="--images FOLDER")
    folder, source, dense = open_both(settings)
    for model in (source, dense):
        if model is not None and not reads_images(model):
            name = type(model.model).__name__
            raise RecipeError(f"{name} reads text, not images", hint="--text")
    config = source.model.config
    if dense is not None and dense.model.config.num_labels != config.num_labels:
        raise RecipeError(
            f"the models tell {config.num_labels} and {dense.model.config.num_labels} classes",
            where="--against",
            wanted="the dense model that this one was made from",
        )
    batch = load_images(settings.images, folder, config, settings.limit, seed=0)
    if batch.labels is None and dense is None:
        raise DataError(
            "the images have no labels",
            where=settings.images,
            wanted="a folder for every class",
            hint="--against DENSE, to count how often the models agree",
        )
    with doing(f"measuring {settings.model}"), progress or Quiet() as told:
        for line in (line for model in (source, dense) if model for line in model.notices):
            told.notice(line)
        size = batch_size(settings.batch_size, tokens_in_each(batch, source), source)
        return classify(source, batch, size, dense, told.tick)
