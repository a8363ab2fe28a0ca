"""Greedy: the structure without which predictions change least goes, then the next is sought.

    importance = mean over tokens of  KL(p_dense || p)     in nats, the structure left out

    p_dense   what the whole dense model predicts
    p         what is predicted without this structure, and without those that went before it

Two blocks that each can be spared alone may not be spared together: each does what the other does.
A choice by scores of single blocks takes both; this one sees what has gone already. So it costs one
search for each structure. Divergence is read in place of the loss, as it does not ask which token
came by chance.

Source: this project, docs/decisions/0030; the search is that of Kim et al., arXiv 2402.02834.
"""

from __future__ import annotations

from secateur.methods.base import remove
from secateur.methods.removal import Effect


@remove("greedy", "of_effect", paper="https://arxiv.org/abs/2402.02834", again=True)
def greedy(effect: Effect) -> float:
    """The divergence from the dense model without the structure, anew after each that went."""
    return effect.divergence
