"""Numbers that tell what pruning cost: perplexity, and divergence from the dense model."""

from secateur.evaluate.following import Following
from secateur.evaluate.perplexity import Evaluation, evaluate, pass_through

__all__ = ["Evaluation", "Following", "evaluate", "pass_through"]
