"""Replacement: the expert goes that the others replace best, then the next is sought.

    importance = norm2(y - y')**2 / norm2(y)**2      over some calibration tokens

    y  [tokens, width]   what the block's mixture of experts gives
    y' [tokens, width]   the same without this expert, and without those that went before it

The other scores ask what an expert adds. Once it is gone its tokens do not go without: the
router's next choice takes its place, and the weights are those that the family makes for the
experts left. So the router is asked, by its own code, and what the block gives then is compared.
Two experts that replace each other are not both removed: after each that goes the others are
scored anew.

Source: this project; the error of a block without experts is that of Lu et al., arXiv 2402.14800,
who try every set of them.
"""

from __future__ import annotations

from secateur.methods.base import remove
from secateur.methods.removal import Absence


@remove("replacement", "of_absence", paper="https://arxiv.org/abs/2402.14800", again=True)
def replacement(absence: Absence) -> float:
    """The error of the block's output with others in the expert's place, anew after each."""
    return absence.error
