"""Numbers that tell what pruning cost: perplexity, and divergence from the dense model."""

from secateur.evaluate.perplexity import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
