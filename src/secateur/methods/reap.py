"""REAP: experts that add the least to their block's output are removed.

    importance = mean over the tokens t sent to the expert of  g_t * norm2(y_t)

    g_t           the weight that the router gives the expert for this token
    y_t [width]   what the expert makes of the token, before it is weighed

Router-weighted expert activation pruning. An expert that is never sent a token has importance 0.

Source: Lasby et al., arXiv 2510.13999.
"""

from __future__ import annotations

from torch import Tensor

from secateur.methods.base import remove
from secateur.methods.removal import Routing


@remove("reap", "of_routing", paper="https://arxiv.org/abs/2510.13999")
def reap(routing: Routing) -> Tensor:
    """The mean of router weight times output norm over the tokens that an expert is sent."""
    return routing.mean(routing.gated_norms)
