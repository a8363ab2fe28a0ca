"""Packs groups of four 16-bit weights as what they are to a processor: one 64-bit word each.

Where its kept weights stand in a word is a matter of shifts, which a table gives for the group's
four bits of the mask. So 2:4 and 1:4 in bfloat16 or float16 pack and unpack in a few passes over
contiguous memory, some times faster than by an index for every weight. Words are little-endian, as
they are in memory; what is kept of a group is one word of 16 or 32 bits.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

GROUPS_AT_ONCE = 2**15
"""Groups that are packed at once: 256 KiB of words, which fit with what is made of them into a
processor's own cache."""
KEPT = {1: torch.int16, 2: torch.int32}
"""dtype of the word that the kept weights of a group make, by their number."""


def codes_of(mask: Tensor, groups: int) -> Tensor:
    """The four bits of each group, from a mask uint8 [out, bytes]: uint8 [out * groups]."""
    pair = mask.to(torch.int16)
    codes = ((pair | pair << 4) & 0x0F0F).view(torch.uint8)  # the lower half first
    return codes[:, :groups].flatten()


def squeeze(dense: Tensor, codes: Tensor, n: int) -> Tensor:
    """The kept weights: int16 [groups * 4] -> int16 [groups * n].

    Args:
        dense: the weights, as their bits.
        codes: uint8 [groups], n bits set in each.
        n: 1 or 2.
    """
    words, shifts = dense.view(torch.int64), _shifts(n, dense.device)
    kept = torch.empty(len(codes), dtype=KEPT[n], device=dense.device)
    for start in range(0, len(codes), GROUPS_AT_ONCE):
        some = slice(start, start + GROUPS_AT_ONCE)
        index = codes[some].int()
        both = words[some] >> shifts[0].index_select(0, index)
        if n == 2:
            second = words[some] >> shifts[1].index_select(0, index)
            both.bitwise_and_(0xFFFF).bitwise_or_(second.bitwise_left_shift_(16))
        kept[some] = both  # its lower bits
    return kept.view(torch.int16)


def spread(values: Tensor, codes: Tensor, n: int) -> Tensor:
    """The weights again, dropped ones 0: int16 [groups * n] -> int16 [groups * 4]."""
    kept, shifts = values.view(KEPT[n]), _shifts(n, values.device)
    words = torch.empty(len(codes), dtype=torch.int64, device=values.device)
    for start in range(0, len(codes), GROUPS_AT_ONCE):
        some = slice(start, start + GROUPS_AT_ONCE)
        index = codes[some].int()
        both, word = kept[some].long(), words[some]
        torch.bitwise_and(both, 0xFFFF, out=word)
        word.bitwise_left_shift_(shifts[0].index_select(0, index))
        if n == 2:
            both.bitwise_right_shift_(16).bitwise_and_(0xFFFF)
            word.bitwise_or_(both.bitwise_left_shift_(shifts[1].index_select(0, index)))
    return words.view(torch.int16)


@cache
def _shifts(n: int, device: torch.device) -> tuple[Tensor, ...]:
    """Shifts in bits of a group's first and second kept weight, by its mask: int64 [16] each."""
    places = [[bit for bit in range(4) if code >> bit & 1] for code in range(16)]
    full = [each if len(each) == n else [0] * n for each in places]
    return tuple(
        torch.tensor([16 * each[place] for each in full], device=device) for place in range(n)
    )
