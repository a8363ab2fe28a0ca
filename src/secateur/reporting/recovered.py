"""A run whose model was trained after it was pruned, as the report compares it with others.

Its record tells of the pruning, and within it of the recovery. Side by side with other runs it is
what came out in the end that counts: the recovered model's perplexity, and the time of both. Output
errors are those of the pruned model, and so are left to the pruned model's own record.
"""

from __future__ import annotations

from secateur.evaluation import Evaluation
from secateur.record import RunRecord


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
    (*before, last) = record.stages
    blocks = tuple(
        block.model_copy(
            update={
                "output_error": None,
                "matrices": tuple(
                    matrix.model_copy(update={"output_error": None}) for matrix in block.matrices
                ),
            }
        )
        for block in record.blocks
    )
    return record.model_copy(
        update={
            "created": recovery.created,
            "evaluations": evaluations,
            "stages": (*before, last.model_copy(update={"blocks": blocks})),
            "seconds": record.seconds + recovery.seconds,
        }
    )
