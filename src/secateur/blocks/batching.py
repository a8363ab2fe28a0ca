"""How many sequences run through a block together."""

from __future__ import annotations

from secateur.checkpoint import BlockModel
from secateur.data import ImageBatch, TokenBatch
from secateur.machine.memory import free_bytes

TOKENS_PER_BATCH = 2048
"""Tokens of a batch at most on a CPU, where more at once are no faster and take more memory."""


TOKENS_PER_BATCH_ELSEWHERE = 16384
"""Tokens of a batch at most on an accelerator, which larger matrix products keep busy."""


MEMORY_PARTS = 4
"""A batch takes at most one part in so many of the free memory: blocks and statistics need room."""


COPIES = 4
"""How often a running block holds what its matrices read and write, gradients included."""


def batch_size(asked: int | None, length: int, source: BlockModel) -> int:
    """Sequences per batch: what was asked for, or as many as keep the device busy.

    Fewer where that would take more than a part of the free memory: half, a quarter and so on, so
    that the number, on which the last bits depend, is the same as long as memory is not short.

    Args:
        asked: by the user.
        length: tokens of a sequence.
        source: the model, its blocks closed.
    """
    if asked:
        return asked
    tokens = TOKENS_PER_BATCH if source.device.type == "cpu" else TOKENS_PER_BATCH_ELSEWHERE
    room = free_bytes(source.device) // MEMORY_PARTS // _bytes_of_token(source)
    while tokens > max(room, length):
        tokens //= 2
    return max(1, tokens // length)


def _bytes_of_token(source: BlockModel) -> int:
    """About what a block holds for a token while it runs; of fused experts, as if it met one."""
    features = max(
        sum(sum(p.shape[-2:]) for p in block.parameters() if p.dim() > 1)
        for block in source.blocks.modules
    )
    return COPIES * features * source.dtype.itemsize


def tokens_in_each(batch: TokenBatch | ImageBatch, source: BlockModel) -> int:
    """Tokens that the blocks see of each sequence; of an image its patches and the class token."""
    if isinstance(batch, TokenBatch):
        return batch.input_ids.shape[1]
    patch = getattr(source.model.config, "patch_size", 16)
    height, width = (patch, patch) if isinstance(patch, int) else patch
    return (batch.pixel_values.shape[2] // height) * (batch.pixel_values.shape[3] // width) + 1
