"""One fingerprint of a model: what tells it from another, without reading all of it.

    SHA-256 of  the configuration, as bytes
                of every tensor its name, shape and dtype
                        and `SAMPLED` stretches of its bytes, evenly spaced

A model that was trained further, or of which one matrix is another, differs. One changed weight of
a large matrix may go unnoticed. Resuming, kept gradients and recovery all compare by this.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

SAMPLED = 16
"""Stretches of each tensor that are hashed: enough to meet every part of a matrix that was changed
as a whole, few enough for a model of 70 billion weights to take seconds."""
STRETCH = 4096
"""Bytes in each stretch: a page of memory, which is what the disk is read by."""


def fingerprint(config: bytes, tensors: Iterable[tuple[str, Sequence[Tensor]]]) -> str:
    """The fingerprint of a model, hexadecimal.

    Args:
        config: its configuration.
        tensors: name and parts of every tensor, in an order that is always the same. A tensor that
            is packed has several parts, any other is its own. They may lie on any device.
    """
    digest = hashlib.sha256(config)
    for name, parts in tensors:
        heads: list[Any] = [(tuple(part.shape), part.dtype) for part in parts]
        digest.update(f"{name} {heads}".encode())
        for part in parts:
            digest.update(_sample(part).numpy().tobytes())
    return digest.hexdigest()


def _sample(tensor: Tensor) -> Tensor:
    """The stretches of one tensor, end to end: uint8 [bytes], on the CPU."""
    stored = tensor.detach().contiguous().flatten().view(torch.uint8)  # [bytes]
    step = max(STRETCH, len(stored) // SAMPLED)
    stretches = [stored[start : start + STRETCH] for start in range(0, len(stored), step)]
    return torch.cat(stretches).cpu() if stretches else stored.cpu()
