"""Images for a classifier: a folder of files, or pixel values in memory, with their protocol.

    FOLDER/<class>/*.png    labelled: a class folder is called what the model calls the class
    FOLDER/*.png            not labelled: the model's own predictions stand in for labels

Where the model has no names for its classes (LABEL_0, LABEL_1, ...), folders called 0, 1, ... are
the classes of these numbers, and other folders, as many as there are classes, stand in the order of
their names. Every file is made into pixel values by the model's own image processor (pixels.py).
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from transformers import PreTrainedConfig

from secateur.data.pixels import FORMATS, PROCESSOR_FILE, load_processor, read_pixels
from secateur.errors import DataError, some, unreadable
from secateur.machine.paths import as_path
from secateur.machine.waiting import doing


class ImageProtocol(BaseModel):
    """How a batch of images came about: recorded beside every number measured on it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(description="the folder as it was asked for")
    kind: Literal["images"] = "images"
    images: int
    found: int = Field(description="images in the folder, of which the batch is a part")
    channels: int
    height: int
    width: int
    labelled: bool = Field(description="by class folders; else the model's predictions are used")
    seed: int | None = Field(description="of the random choice, if there was one")
    processor: str | None = Field(description="class of the image processor")
    pixel_sha256: str = Field(description="of the pixel values as little-endian float32")
    label_sha256: str | None = Field(description="of the labels as little-endian int32")

    @property
    def sha256(self) -> str:
        """Tells whether two runs saw the same, labels included."""
        both = f"{self.pixel_sha256} {self.label_sha256}"
        return hashlib.sha256(both.encode()).hexdigest() if self.labelled else self.pixel_sha256


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Images for a classifier.

    Args:
        pixel_values: float32 [images, channels, height, width], on the CPU.
        labels: int64 [images], or None if they are not known.
        protocol: how they were made.
        notices: what a person should be told, one line each; usually none.
    """

    pixel_values: Tensor
    labels: Tensor | None
    protocol: ImageProtocol
    notices: tuple[str, ...] = ()

    @property
    def inputs(self) -> Tensor:
        """What the model reads."""
        return self.pixel_values


@doing("reading the images")
def load_images(
    source: str, model: Path, config: PreTrainedConfig, most: int | None, seed: int
) -> ImageBatch:
    """Images of a folder, drawn at random.

    Args:
        source: the folder.
        model: folder of the model, where its image processor lies.
        config: of the model; knows the classes and the size of an image.
        most: so many images at most; None takes all, in the order of their names.
        seed: of the choice.

    Raises:
        DataError: there are none, one is damaged or does not fit, or a class is unknown.
    """
    files, labels = _find(source, config)
    chosen = list(range(len(files)))
    if most is not None:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(files), generator=generator).tolist()[:most]
    processor = load_processor(model)
    mode = "L" if getattr(config, "num_channels", 3) == 1 else "RGB"
    pixels = [read_pixels(files[number], processor, mode) for number in chosen]
    short = most is not None and len(files) < most
    notice = f"{source} holds {len(files)} images, fewer than the {most} asked for"
    return _batch(
        pixels,
        None if labels is None else [labels[number] for number in chosen],
        config,
        _Origin(source, len(files), None if most is None else seed, type(processor).__name__),
        notices=(notice,) if short else (),
    )


def images_in_memory(pixel_values: Tensor, config: PreTrainedConfig) -> ImageBatch:
    """Pixel values [images, channels, height, width] as they are; they have no labels.

    Raises:
        DataError: they are none, or not of the size that the model reads.
    """
    where = "images in memory"
    if pixel_values.dim() != 4 or not len(pixel_values) or not pixel_values.is_floating_point():
        raise DataError(
            f"{pixel_values.dtype} {list(pixel_values.shape)}",
            where=where,
            wanted="pixel values, float [images, channels, height, width], not empty",
        )
    pixels = list(pixel_values.detach().to("cpu", torch.float32, copy=True))
    return _batch(pixels, None, config, _Origin(where, len(pixels), None, None))


@dataclass(frozen=True)
class _Origin:
    """Where images come from; what it means stands on the fields of `ImageProtocol`."""

    source: str
    found: int
    seed: int | None
    processor: str | None


def _batch(
    pixels: Sequence[Tensor],
    labels: Sequence[int] | None,
    config: PreTrainedConfig,
    origin: _Origin,
    notices: tuple[str, ...] = (),
) -> ImageBatch:
    """Images [channels, height, width] as a batch, once they are known to fit the model."""
    size = getattr(config, "image_size", None) or pixels[0].shape[-1]
    height, width = (size, size) if isinstance(size, int) else size
    shape = (getattr(config, "num_channels", 3), height, width)
    for number, image in enumerate(pixels):
        if image.shape != shape:
            raise DataError(
                f"image {number} is {list(image.shape)} (channels, height, width)",
                where=origin.source,
                wanted=f"{list(shape)}, as the model reads",
                hint=None if origin.processor is None else f"the model's own {PROCESSOR_FILE}",
            )
        if not bool(torch.isfinite(image).all()):
            raise DataError(f"image {number} has pixels that are not finite", where=origin.source)
    pixel_values = torch.stack(list(pixels)).contiguous()  # [images, channels, height, width]
    known = None if labels is None else torch.tensor(labels)
    protocol = ImageProtocol(
        source=origin.source,
        images=len(pixels),
        found=origin.found,
        channels=shape[0],
        height=height,
        width=width,
        labelled=known is not None,
        seed=origin.seed,
        processor=origin.processor,
        pixel_sha256=_sha256(pixel_values, "<f4"),
        label_sha256=None if known is None else _sha256(known, "<i4"),
    )
    return ImageBatch(pixel_values, known, protocol, notices)


def _sha256(values: Tensor, dtype: str) -> str:
    return hashlib.sha256(values.numpy().astype(dtype).tobytes()).hexdigest()


def _find(source: str, config: PreTrainedConfig) -> tuple[list[Path], list[int] | None]:
    """The image files of a folder in the order of their names, and the label of each."""
    folder = as_path(source, fault=DataError)
    if not folder.is_dir():
        raise DataError(f"there is no folder {source!r}", wanted="a folder of images")
    try:
        loose = _images(folder.iterdir())
        inside = {path.name: _images(path.rglob("*")) for path in sorted(folder.iterdir())
                  if path.is_dir() and not path.name.startswith(".")}  # fmt: skip
    except OSError as fault:
        raise unreadable(source, fault, DataError) from fault
    classes = {name: files for name, files in inside.items() if files}
    if loose and classes:
        raise DataError(
            f"images lie beside the class folder {next(iter(classes))!r}",
            where=source,
            wanted="all of them in class folders, or none",
        )
    if not loose and not classes:
        raise DataError("no images", where=source, wanted=f"files in {', '.join(sorted(FORMATS))}")
    if loose:
        return loose, None
    numbers = _numbers(list(classes), config, source)
    files = [path for inside in classes.values() for path in inside]
    return files, [numbers[name] for name, inside in classes.items() for _ in inside]


def _images(paths: Any) -> list[Path]:
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in FORMATS and not path.name.startswith(".") and path.is_file()
    )


def _numbers(names: Sequence[str], config: PreTrainedConfig, source: str) -> dict[str, int]:
    """The class that each folder stands for, by its name."""
    known = {str(label): int(number) for label, number in config.label2id.items()}
    if all(label == f"LABEL_{number}" for label, number in known.items()):
        if all(name.isdecimal() and int(name) < len(known) for name in names):
            return {name: int(name) for name in names}
        if not set(names) <= set(known) and len(names) == len(known):
            return {name: number for number, name in enumerate(sorted(names))}
    strange = [name for name in names if name not in known]
    if strange:
        near = difflib.get_close_matches(strange[0], known, n=1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        raise DataError(
            f"class folder {strange[0]!r} is no label of the model",
            where=source,
            wanted=f"one of its {len(known)} labels: {some(known)}{meant}",
        )
    return {name: known[name] for name in names}
