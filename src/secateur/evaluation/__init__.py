"""What pruning cost, in numbers: perplexity, divergence from the dense model, zero-shot tasks,
the classes of images."""

from secateur.evaluation.classification import Classification, classify
from secateur.evaluation.perplexity import Evaluation, pass_through, perplexity_of
from secateur.evaluation.running import Following
from secateur.evaluation.scores import TaskEvaluation, TaskScore
from secateur.evaluation.settings import EvaluationSettings

__all__ = [
    "Classification",
    "Evaluation",
    "EvaluationSettings",
    "Following",
    "TaskEvaluation",
    "TaskScore",
    "classify",
    "pass_through",
    "perplexity_of",
]
