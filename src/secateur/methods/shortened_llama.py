"""Shortened Llama: blocks without which the model still predicts the text are removed.

    importance = mean over tokens of  -log p(token | those before it),  the block left out

Every block is left out alone, once; the perplexity of the paper is exp of this mean, and orders
blocks alike. `greedy` scores the others anew after each block that goes, by the divergence.

Source: Kim et al., arXiv 2402.02834.
"""

from __future__ import annotations

from secateur.methods.base import remove
from secateur.methods.removal import Effect


@remove("shortened-llama", "of_effect", paper="https://arxiv.org/abs/2402.02834")
def shortened_llama(effect: Effect) -> float:
    """The loss of the model without the block, each left out alone."""
    return effect.loss
