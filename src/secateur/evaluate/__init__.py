"""What pruning cost, in numbers: perplexity, divergence from the dense model, zero-shot tasks."""

from secateur.evaluate.perplexity import Evaluation, evaluate
from secateur.evaluate.scores import TaskEvaluation, TaskScore

__all__ = ["Evaluation", "TaskEvaluation", "TaskScore", "evaluate"]
