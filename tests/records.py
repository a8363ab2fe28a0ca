"""Records of runs that never ran: round numbers, so that a report can be checked by hand."""

from __future__ import annotations

from typing import Any

from secateur.data import Protocol
from secateur.evaluation import Evaluation, TaskEvaluation, TaskScore
from secateur.record import BlockRecord, MatrixRecord, RecoveryRecord, RunRecord
from secateur.record.record import Sample

KINDS = ("self_attn.q_proj", "mlp.down_proj")


HOSTILE = """<script>alert("x")</script>'"><img src=x onerror=alert(1)>{{ 7 * 7 }}"""
"""What may stand in a record that a stranger made."""


def make_protocol(source: str = "texts/heldout", token_sha256: str = "a" * 64) -> Protocol:
    """24 windows of 128 tokens."""
    return Protocol(
        source=source,
        kind="folder",
        origin={"path": source},
        sampling="windows",
        joiner="\n\n",
        sequences=24,
        sequence_length=128,
        seed=None,
        text_characters=9000,
        text_tokens=3072,
        token_sha256=token_sha256,
        tokenizer=None,
    )


def make_evaluation(perplexity: float, dense: float | None = 10.0, **protocol: str) -> Evaluation:
    """What a run scored on a text; the divergence is a hundredth of the perplexity."""
    return Evaluation(
        perplexity=perplexity,
        standard_error=0.5,
        negative_log_likelihood=2.5,
        predicted_tokens=24 * 127,
        divergence=perplexity / 100,
        dense_perplexity=dense,
        protocol=make_protocol(**protocol),
        dtype="float32",
        seconds=1.0,
    )


def make_record(
    method: str = "wanda",
    pattern: str = "2:4",
    seed: int = 0,
    perplexity: float | None = 12.0,
    *,
    error: float | None = 0.2,
    blocks: int = 2,
    evaluations: tuple[Evaluation, ...] | None = None,
    recipe: dict[str, Any] | None = None,
    **changes: Any,
) -> RunRecord:
    """A run of two blocks with two matrices of 4 x 8 each, half of them zeros.

    Args:
        perplexity: on `make_protocol()`'s text; None: the run was not evaluated.
        error: of the first block's output; each block after it has half as much.
        evaluations: in place of the one that `perplexity` makes.
        recipe: over the recipe.
        changes: over the record's fields.
    """
    if evaluations is None:
        evaluations = () if perplexity is None else (make_evaluation(perplexity),)
    errors = [None if error is None else error / 2**index for index in range(blocks)]
    return RunRecord.model_validate(
        {
            "format": "secateur/run/1",
            "created": f"2026-01-0{seed + 1}T00:00:00+00:00",
            "recipe": {
                "model": "models/heron", "out": f"out/{method}-{seed}", "method": method,
                "pattern": pattern, "calibration": "texts/calibration", "samples": 16,
                "sequence_length": 128, "seed": seed, "parameters": {"compare": "row"},
                "preset": "auto", "regional": {}, "dtype": "auto", "device": "auto",
                "overwrite": True,
            } | (recipe or {}),
            "architecture": "LlamaForCausalLM",
            "streamed": True,
            "device": "cpu",
            "dtype": "float32",
            "calibration": make_protocol("texts/calibration", f"{seed:064d}"),
            "blocks": tuple(
                BlockRecord(
                    index=index,
                    output_error=errors[index],
                    seconds={"load": 0.5, "observe": 1.0, "prune": 2.0, "propagate": 0.5},
                    notices=(),
                    matrices=tuple(
                        MatrixRecord(
                            name=f"model.layers.{index}.{kind}.weight", rows=4, columns=8,
                            zeros=16, holds=True, output_error=errors[index],
                        )
                        for kind in KINDS
                    ),
                )
                for index in range(blocks)
            ),
            "evaluations": evaluations,
            "seconds": 10.0 + seed,
            "peak_memory_bytes": 500_000_000,
            "peak_device_memory_bytes": None,
            "versions": {"python": "3.11", "secateur": "0.1.0"},
            "machine": {"system": "Linux", "cores": "2"},
            "notices": (),
        }
        | changes
    )  # fmt: skip


def make_recovery(record: RunRecord, perplexity: float, dense: float = 10.0) -> RunRecord:
    """The record of a model that was trained after the run, which took five seconds."""
    assert record.evaluations
    recovery = RecoveryRecord(
        created="2026-01-09T00:00:00+00:00",
        settings={"objective": "lm", "out": "out/recovered", "text": "texts/training"},
        text=make_protocol("texts/training", "c" * 64),
        trained_parameters=64,
        curve=(),
        steps=10,
        best_step=10,
        interruptions=0,
        dense=make_evaluation(dense, None),
        pruned=record.evaluations[0],
        adapted=make_evaluation(perplexity, None),
        recovered=make_evaluation(perplexity, None),
        zeros_before=64,
        zeros_after=64,
        seconds=5.0,
        versions={},
        machine={},
        notices=(),
    )
    return record.model_copy(update={"recovery": recovery, "tasks": ()})


def make_tasks(value: float, dense: float) -> TaskEvaluation:
    """What a model scored in one task of a hundred questions."""
    score = TaskScore(
        task="continuation", metric="acc", higher_is_better=True, documents=100, shots=0,
        version="1", value=value, standard_error=0.05, dense=dense, dense_standard_error=0.04,
        difference_error=0.03,
    )  # fmt: skip
    return TaskEvaluation(
        model="out/wanda", against="models/heron", asked=("continuation",), scores=(score,),
        text="builtin", limit=None, dtype="float32", lm_eval="0.4", seconds=1.0,
    )  # fmt: skip


def make_sample(method: str) -> Sample:
    """What a model wrote."""
    return Sample(prompt="The heron", dense=" waits\n\n\nfor a fish.", pruned=f" {method} waits.")


def make_study() -> list[RunRecord]:
    """Three methods, two patterns, three seeds; magnitude is far out at 2:4."""
    perplexities = {
        ("magnitude", "2:4"): 5000.0, ("wanda", "2:4"): 14.0, ("wanda++", "2:4"): 11.0,
        ("magnitude", "50%"): 13.0, ("wanda", "50%"): 12.0, ("wanda++", "50%"): 11.0,
    }  # fmt: skip
    return [
        make_record(
            method,
            pattern,
            seed,
            middle + (seed - 1) / 10,
            sample=make_sample(method),
            weight_bytes=270_000_000,
            packed_bytes={"2:4": 176, "50%": 178}[pattern] * 10**6,
        )
        for (method, pattern), middle in perplexities.items()
        for seed in (0, 1, 2)
    ]
