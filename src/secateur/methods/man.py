"""MAN: experts whose outputs are shortest are removed, whatever the router makes of them.

    importance = mean over the tokens t sent to the expert of  norm2(y_t)

    y_t [width]   what the expert makes of the token, before the router weighs it

Mean activation norm. It reads neither the router's weights nor how many tokens there are, so that
it does not depend on how often the task at hand calls an expert: for no task in mind.

Source: Jaiswal et al., arXiv 2504.05586, whose expert activation norm is the sum of which this is
the mean.
"""

from __future__ import annotations

from torch import Tensor

from secateur.methods.base import remove
from secateur.methods.removal import Routing


@remove("man", "of_routing", paper="https://arxiv.org/abs/2504.05586")
def mean_activation_norm(routing: Routing) -> Tensor:
    """The mean L2 norm of an expert's output over the tokens that it is sent."""
    return routing.mean(routing.norms)
