"""Scikit-learn's handwritten digits as image files, and a tiny ViT that has learnt to tell them."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name it is known by
from transformers import (
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

SIZE = 16
"""Pixels of a side, twice those of the data set."""
HELD_OUT = 597
"""Images that are not trained on: the last of the 1797, which other people wrote."""
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 64, "image_size": SIZE, "patch_size": 4, "num_channels": 3,
         "num_labels": 10, "initializer_range": 0.1}  # fmt: skip
RATE = 3e-3
"""Of the optimiser, at its highest."""


def images() -> tuple[Tensor, Tensor]:
    """All 1797 digits: uint8 [images, height, width], and their labels int64 [images]."""
    digits = load_digits()
    small = torch.from_numpy(digits.images).float()[:, None]  # [images, 1, 8, 8], 0 to 16
    large = F.interpolate(small, size=(SIZE, SIZE), mode="bilinear")[:, 0]
    return (large * 255 / 16).round().to(torch.uint8), torch.from_numpy(digits.target)


def pixel_values(grey: Tensor) -> Tensor:
    """What the processor makes of uint8 [images, height, width]: float32, three channels."""
    return (grey.float() / 255 * 2 - 1)[:, None].expand(-1, 3, -1, -1).contiguous()


def train(seed: int = 0, steps: int = 200, **changes: object) -> PreTrainedModel:
    """A ViT that tells over 85 % of the held-out digits, the same for the same arguments."""
    grey, labels = images()
    pixels, labels = pixel_values(grey[:-HELD_OUT]), labels[:-HELD_OUT]
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = ViTForImageClassification(ViTConfig(**{**SHAPE, **changes}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    model.train()
    for _ in range(steps):
        drawn = torch.randint(len(pixels), (64,))
        loss = F.cross_entropy(model(pixel_values=pixels[drawn]).logits, labels[drawn])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    torch.random.set_rng_state(state)
    return model.eval().requires_grad_(False)


def random_model(family: str, **shape: object) -> PreTrainedModel:
    """A classifier that has learnt nothing, of a family called as transformers calls it."""
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **shape})
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    model: PreTrainedModel = getattr(transformers, f"{family}ForImageClassification")(config)
    torch.random.set_rng_state(state)
    return model.eval().requires_grad_(False)


def save(model: PreTrainedModel, folder: Path) -> Path:
    """Write a model and the image processor of its size into `folder`."""
    model.save_pretrained(folder)
    size = {"height": SIZE, "width": SIZE}
    ViTImageProcessorPil(size=size).save_pretrained(folder)
    return folder


def write_images(folder: Path, rows: slice, *, in_classes: bool = True) -> Path:
    """Write some of the digits as .png files, in a folder for each class or side by side."""
    grey, labels = images()
    for number in range(*rows.indices(len(grey))):
        place = folder / str(int(labels[number])) if in_classes else folder
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey[number].numpy()).save(place / f"{number:04d}.png")
    return folder
