"""One image file -> pixel values, by Pillow and the image processor that lies beside a model.

Only formats that are named here are opened, and sizes are looked at before anything is made of
them: those in the file, and those that the processor asks for.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from secateur.errors import DataError, reason, unreadable
from secateur.machine.limits import MOST_IMAGE_EDGE, MOST_IMAGE_PIXELS, MOST_JSON_BYTES, at_most

PROCESSOR_FILE = "preprocessor_config.json"
"""File beside a model that says how it reads images."""
FORMATS = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".gif": "GIF", ".webp": "WEBP",
    ".tif": "TIFF", ".tiff": "TIFF", ".ppm": "PPM",
}  # fmt: skip
"""Ending of an image file -> Pillow's name of its format. Whatever its ending is, a file of another
format is none (PostScript would start a program); files with other endings are left alone."""


def load_processor(model: Path) -> Any:
    """The image processor beside a model.

    Raises:
        DataError: Pillow is missing, there is no processor that can be read, or it asks for images
            larger than any model reads.
    """
    try:
        import PIL  # noqa: F401 - an extra, that text needs none of
    except ImportError as fault:
        raise DataError("images need Pillow", hint="pip install 'secateur[vision]'") from fault
    from transformers import AutoImageProcessor

    path = model / PROCESSOR_FILE
    if path.is_file():
        at_most(MOST_JSON_BYTES, path.stat().st_size, "bytes", where=path, fault=DataError)
    try:
        processor = AutoImageProcessor.from_pretrained(model, backend="pil", local_files_only=True)
    except Exception as fault:  # damage shows in every reader's own exceptions
        raise DataError(
            f"there is no image processor that can be read ({reason(fault)})",
            where=model,
            wanted=f"its {PROCESSOR_FILE}",
        ) from fault
    for name in ("size", "crop_size", "pad_size"):
        for key, value in _members(getattr(processor, name, None)):
            most = MOST_IMAGE_PIXELS if key.endswith("_pixels") else MOST_IMAGE_EDGE
            at_most(most, value, f"as {key} of {name}", where=path, fault=DataError)
    return processor


def _members(size: Any) -> Iterator[tuple[str, float]]:
    """Every number of a size and what it is called, however the processor keeps it."""
    if isinstance(size, int | float):
        size = {"edge": size}
    for key, value in (
        size if isinstance(size, Mapping) else getattr(size, "__dict__", {})
    ).items():
        if isinstance(value, int | float):
            yield key, value


def read_pixels(path: Path, processor: Any, mode: str) -> Tensor:
    """The pixel values of one file, float32 [channels, height, width].

    Args:
        path: the file.
        processor: of the model.
        mode: of the image, "L" or "RGB", as Pillow calls it.

    Raises:
        DataError: it is damaged, too large or of another format, or the processor fails.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our bound is lower
            opened = Image.open(path, formats=sorted(set(FORMATS.values())))
        with opened:
            _check_pixels(opened.size, processor, path)
            image = opened.convert(mode)
    except DataError:
        raise
    except PermissionError as fault:
        raise unreadable(path, fault, DataError) from fault
    except Exception as fault:  # every format has its own
        raise DataError(
            f"a damaged image ({reason(fault)})",
            where=path,
            wanted=f"one of {', '.join(sorted(set(FORMATS.values())))}",
        ) from fault
    try:
        values: Tensor = processor(images=image, return_tensors="pt")["pixel_values"]
        return values[0].float()
    except Exception as fault:  # the processor's settings can make any of its steps fail
        raise DataError(
            f"the model's image processor fails ({reason(fault)})",
            where=path,
            wanted=f"a {PROCESSOR_FILE} that fits the model",
        ) from fault


def _check_pixels(size: tuple[int, int], processor: Any, path: Path) -> None:
    """Prove that neither an image [width, height] nor what is made of it is too large to hold."""
    at_most(MOST_IMAGE_PIXELS, size[0] * size[1], "pixels", where=path, fault=DataError)
    shortest = dict(_members(processor.size)).get("shortest_edge", 0)
    at_most(
        MOST_IMAGE_PIXELS,
        shortest**2 * max(size) / max(1, min(size)),
        "pixels once it is resized",
        where=path,
        fault=DataError,
    )
