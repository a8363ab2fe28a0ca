"""Activation: channels and heads that give the least are removed.

    importance = sum over all tokens t of  x_t**2

    x_t  what the matrix behind it reads of a channel; of a head all of its channels together

Neither the weights nor what becomes of the channel count: a baseline beside Wanda's score, which
weighs the same norm by the weights that read it.

Source: Muralidharan et al. (Minitron), arXiv 2407.14679, who take the norm over sequences and the
mean over tokens of what a layer gives.
"""

from __future__ import annotations

from torch import Tensor

from secateur.methods.base import remove


@remove("activation", "of_inputs", paper="https://arxiv.org/abs/2407.14679")
def activation(norms: Tensor) -> Tensor:
    """The sum of the squares of what a channel or head gives."""
    return norms.square()
