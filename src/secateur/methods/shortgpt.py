"""ShortGPT: blocks that turn the hidden states the least are removed.

    importance = mean over tokens t of  1 - cos(x_t, y_t)

    x_t [width]   a token's hidden state before the block
    y_t [width]   the same after it; of several blocks together, after the last of them

The authors call it block influence. One pass over the dense model scores all blocks, one in memory
at a time. With `contiguous`, blocks that follow each other are scored as one, as Gromov et al.
(arXiv 2403.17887) do by the angle.

Source: Men et al., arXiv 2403.03853.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name it is known by

from secateur.methods.base import remove
from secateur.methods.removal import States


@remove("shortgpt", "of_states", paper="https://arxiv.org/abs/2403.03853")
def shortgpt(states: States) -> Tensor:
    """One minus the cosine between a block's input and output."""
    return 1 - F.cosine_similarity(states.before.float(), states.after.float(), dim=-1)
