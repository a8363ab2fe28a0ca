"""Frequency: experts that the router sends the fewest tokens are removed.

    importance = number of calibration tokens that the expert is sent

What an expert does with its tokens, and how much it counts there, is not asked. A router that was
trained to balance its load makes all experts alike by this score.

Source: Muzio et al., arXiv 2404.05089, who count the same ("actual activation"); a baseline of the
two others.
"""

from __future__ import annotations

from torch import Tensor

from secateur.methods.base import remove
from secateur.methods.removal import Routing


@remove("frequency", "of_routing", paper="https://arxiv.org/abs/2404.05089")
def frequency(routing: Routing) -> Tensor:
    """How many calibration tokens the router sends to an expert."""
    return routing.tokens
