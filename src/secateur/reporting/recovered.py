"""A run whose model was trained after it was pruned, as the report compares it with others.

Its record tells of the pruning, and within it of the recovery. Side by side with other runs it is
what came out in the end that counts: the recovered model's perplexity, and the time of both. Output
errors are those of the pruned model, and so are left to the pruned model's own record.
"""

from __future__ import annotations

from secateur.evaluation import Evaluation
from secateur.record import BlockRecord, RunRecord


def as_measured(record: RunRecord) -> RunRecord:
    """The record with what the recovered model scored; as it is, if there was no recovery."""
    recovery = record.recovery
    if recovery is None:
        return record
    evaluations: tuple[Evaluation, ...] = ()
    if (recovered := recovery.recovered) is not None:
        dense = {e.protocol.token_sha256: e.dense_perplexity for e in record.evaluations}
        if recovery.dense is not None:
            dense[recovered.protocol.token_sha256] = recovery.dense.perplexity
        evaluations = tuple(
            one.model_copy(update={"dense_perplexity": dense.get(one.protocol.token_sha256)})
            for one in (recovered, *recovery.also)
        )
    stages = (
        stage.model_copy(update={"blocks": tuple(map(_without_errors, stage.blocks))})
        for stage in record.stages
    )
    return record.model_copy(
        update={
            "created": recovery.created,
            "evaluations": evaluations,
            "stages": tuple(stages),
            "seconds": record.seconds + recovery.seconds,
        }
    )


def _without_errors(block: BlockRecord) -> BlockRecord:
    matrices = (m.model_copy(update={"output_error": None}) for m in block.matrices)
    return block.model_copy(update={"output_error": None, "matrices": tuple(matrices)})
