"""What is recorded of the training that takes back what pruning cost; a part of `run.json`."""

from __future__ import annotations

from typing import Any

from secateur.data import Protocol
from secateur.evaluation import Evaluation
from secateur.record.schema import Measured, RecordPart, WholeNumber


class RecoveryPoint(RecordPart):
    """One evaluation while a pruned model was trained."""

    step: WholeNumber
    """Steps that were done."""
    loss: float | None
    """Mean training loss per step since the evaluation before; none before the first step."""
    validation_loss: float
    """Mean negative log-likelihood per token of text that is not trained on, in nats."""
    learning_rate: float
    seconds: Measured
    """Wall time since the beginning, interruptions left out."""


class RecoveryRecord(RecordPart):
    """What was done to a pruned model to take back what pruning cost."""

    created: str
    """UTC, ISO 8601."""
    settings: dict[str, Any]
    """Every option, defaults included."""
    text: Protocol
    """What it was trained on, the validation sequences included."""
    trained_parameters: WholeNumber
    curve: tuple[RecoveryPoint, ...]
    """The first point is before training."""
    steps: WholeNumber
    """That were done; fewer than were asked for if it stopped early."""
    best_step: WholeNumber
    """The result is the state after this step, the best by its validation loss."""
    interruptions: WholeNumber
    """How often it went on from a checkpoint."""
    dense: Evaluation | None
    pruned: Evaluation | None
    """Before training."""
    adapted: Evaluation | None
    """After training, before the merge; None where the weights themselves were trained."""
    recovered: Evaluation | None
    """The result; with adapters beside the model, the same as `adapted`."""
    also: tuple[Evaluation, ...] = ()
    """The result on further texts."""
    zeros_before: WholeNumber
    """In all prunable matrices."""
    zeros_after: WholeNumber
    """In the result; every zero before is one."""
    seconds: Measured
    versions: dict[str, str]
    machine: dict[str, str]
    notices: tuple[str, ...]

    @property
    def damage_removed(self) -> float | None:
        """Share of what pruning cost in perplexity that was taken back; 1 is dense.

        None where that was not measured, or pruning cost nothing.
        """
        if self.dense is None or self.pruned is None or self.recovered is None:
            return None
        damage = self.pruned.perplexity - self.dense.perplexity
        return (self.pruned.perplexity - self.recovered.perplexity) / damage if damage > 0 else None
