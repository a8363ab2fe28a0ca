"""What pruning cost, in numbers: perplexity, divergence from the dense model, zero-shot tasks."""

from secateur.evaluate.following import Following
from secateur.evaluate.perplexity import Evaluation, evaluate, pass_through
from secateur.evaluate.scores import TaskEvaluation, TaskScore

__all__ = [
    "Evaluation",
    "Following",
    "TaskEvaluation",
    "TaskScore",
    "evaluate",
    "pass_through",
]
