"""What pruning cost, in numbers: perplexity, divergence from the dense model, zero-shot tasks,
the classes of images."""

from secateur.evaluate.classification import Classification, classify
from secateur.evaluate.following import Following
from secateur.evaluate.perplexity import Evaluation, evaluate, pass_through
from secateur.evaluate.scores import TaskEvaluation, TaskScore

__all__ = [
    "Classification",
    "Evaluation",
    "Following",
    "TaskEvaluation",
    "TaskScore",
    "classify",
    "evaluate",
    "pass_through",
]
