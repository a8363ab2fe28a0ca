"""What a recovered model scores on further texts, measured as those of the pruned model were."""

from __future__ import annotations

from pathlib import Path

from secateur.evaluation import EvaluationSettings
from secateur.evaluation.text import evaluate_text
from secateur.progress import Progress
from secateur.recipe import Recipe
from secateur.record import RunRecord, write_record


def measure_further(
    folder: Path, record: RunRecord, recipe: Recipe, progress: Progress | None
) -> RunRecord:
    """The record of a recovered model with what it scores on further texts; it is written too.

    Args:
        folder: of the recovered model.
        record: of it, as it lies there.
        recipe: of its pruning, which names the texts.
        progress: told what happens.

    Raises:
        SecateurError: a text cannot be read, or the record not be written.
    """
    recovery = record.recovery
    assert recovery is not None
    if [evaluation.protocol.source for evaluation in recovery.also] == recipe.also_text:
        return record
    also = tuple(
        evaluate_text(
            EvaluationSettings(
                model=str(folder),
                text=text,
                sequence_length=recipe.sequence_length,
                windows=recipe.windows,
                bos=recipe.bos,
                batch_size=recipe.batch_size,
                dtype="float32",  # as `recover` measures
                device=recipe.device,
                trust_remote_code=recipe.trust_remote_code,
            ),
            progress,
        )
        for text in recipe.also_text
    )
    record = record.model_copy(update={"recovery": recovery.model_copy(update={"also": also})})
    write_record(folder, record)
    return record
