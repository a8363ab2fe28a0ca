"""Top-1 of a classifier's folder on a folder of images: `secateur evaluate --images`."""

from __future__ import annotations

from secateur.blocks.batching import batch_size, tokens_in_each
from secateur.checkpoint import BlockModel, locate, open_model
from secateur.checkpoint.model_facts import reads_images
from secateur.data import load_images
from secateur.errors import DataError, RecipeError
from secateur.evaluation import Classification, classify
from secateur.machine.device import choose_device, choose_dtype
from secateur.progress import Progress, Quiet


def evaluate_images(
    model: str,
    images: str,
    *,
    against: str | None = None,
    limit: int | None = None,
    together: int | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Classification:
    """Top-1 of a model folder, and how often it agrees with another.

    Args:
        model: folder or hub name.
        images: folder of images; without class folders only the agreement can be told.
        against: folder or hub name of the dense model.
        limit: so many images at most, drawn at random with seed 0.
        together: images per batch.
        dtype, device, trust_remote_code, progress: as for `prune`.

    Raises:
        SecateurError: something cannot be read, or does not fit.
    """
    where = choose_device(device)

    def opened(name: str) -> BlockModel:
        folder = locate(name, trust_remote_code=trust_remote_code)
        precision = choose_dtype(dtype, where)
        found = open_model(folder, where, precision, trust_remote_code=trust_remote_code)
        if not reads_images(found):
            raise RecipeError(
                f"{type(found.model).__name__} reads text, not images", where=name, hint="--text"
            )
        return found

    source = opened(model)
    dense = None if against is None else opened(against)
    config = source.model.config
    if dense is not None and dense.model.config.num_labels != config.num_labels:
        raise RecipeError(
            f"the models tell {config.num_labels} and {dense.model.config.num_labels} classes",
            where="--against",
            wanted="the dense model that this one was made from",
        )
    folder = locate(model, trust_remote_code=trust_remote_code)
    batch = load_images(images, folder, config, limit, seed=0)
    if batch.labels is None and dense is None:
        raise DataError(
            "the images have no labels",
            where=images,
            wanted="a folder for every class",
            hint="--against DENSE, to count how often the models agree",
        )
    with progress or Quiet() as shown:
        size = batch_size(together, tokens_in_each(batch, source), source)
        return classify(source, batch, size, dense, shown.tick)
