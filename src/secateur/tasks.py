"""Zero-shot tasks from end to end: the model asked, then the dense one, side by side.

One model is in memory at a time, whole: lm-eval calls it as transformers does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from secateur.checkpoint import Checkpoint, locate
from secateur.checkpoint.durable import write_text
from secateur.checkpoint.skeleton import read_config
from secateur.data import read_documents
from secateur.errors import CheckpointError, RecipeError
from secateur.evaluate import TaskEvaluation
from secateur.evaluate.continuation import NAME as CONTINUATION
from secateur.evaluate.suites import spell_out
from secateur.evaluate.tasks import TaskSet, lm_eval_version, read_scores
from secateur.placement import choose_device, choose_dtype
from secateur.report import Progress, Quiet
from secateur.report.record import read_record
from secateur.sequences import load_tokenizer

LONGEST = 2048
"""Tokens of a question at most, where the model would allow more."""


def ask(
    model: str,
    tasks: str,
    *,
    against: str | None = None,
    text: str | None = None,
    include_path: str | None = None,
    limit: int | None = None,
    together: int | None = None,
    dtype: str = "auto",
    device: str = "auto",
    progress: Progress | None = None,
) -> TaskEvaluation:
    """What a model scores in tasks, and the dense model beside it.

    Args:
        model: folder or hub name.
        tasks: names of tasks, groups or suites, with commas between.
        against: folder or hub name of the dense model.
        text: held-out text that `continuation` is made of.
        include_path: a folder of task files beside lm-eval's own.
        limit: documents of each task at most; for trying out, not for tables.
        together: questions per batch.
        dtype, device, progress: as for `pipeline.prune`.

    Raises:
        SecateurError: something cannot be read, or a task is unknown.
    """
    began = time.perf_counter()
    asked = spell_out(tasks)
    if not asked:
        raise RecipeError("no task", where="--tasks", wanted="names with commas between")
    folders = [locate(name) for name in (model, against) if name is not None]
    texts: Sequence[str] | None = None
    if text is not None and CONTINUATION in asked:
        texts = read_documents(text, "test").texts
    ready = TaskSet(asked, include_path, texts)
    where = choose_device(device)
    precision = choose_dtype(dtype, where)
    found: list[dict[str, dict[str, Any]]] = []
    with progress or Quiet() as shown:
        for folder in folders:
            shown.begin(folder.name, len(ready.loaded))
            results = {}
            for name, result in _ask(ready, folder, where, precision, together or 8, limit):
                results[name] = result
                shown.block(task=name, **_headline(name, result))
            found.append(results)
    dense = found[1] if against is not None else {}
    return TaskEvaluation(
        model=model,
        against=against,
        asked=asked,
        scores=tuple(
            score
            for name, result in found[0].items()
            for score in read_scores(name, result, dense.get(name))
        ),
        text=text if texts is not None else None,
        limit=limit,
        dtype="stored" if precision is None else str(precision).removeprefix("torch."),
        lm_eval=lm_eval_version(),
        seconds=time.perf_counter() - began,
    )


def add_to_record(folder: Path, evaluation: TaskEvaluation) -> None:
    """Put what a model scored into the run.json beside it, in place of the same tasks before.

    Raises:
        CheckpointError: there is no record.
        OutputError: it cannot be written.
    """
    record, path = read_record(folder), folder / "run.json"
    if record is None:
        raise CheckpointError("no run record to add to", where=path, hint="without --record")
    kept = tuple(other for other in record.tasks if other.asked != evaluation.asked)
    updated = record.model_copy(update={"tasks": (*kept, evaluation)})
    write_text(path, updated.model_dump_json(indent=2) + "\n")


def _ask(
    ready: TaskSet,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype | None,
    together: int,
    limit: int | None,
) -> Any:
    """Name and results of one task after the other, of the model in a folder."""
    config = read_config(Checkpoint(folder))
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise CheckpointError("no tokenizer that can be read", where=folder)
    loaded = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype="auto" if dtype is None else dtype,
        trust_remote_code=False,
        use_safetensors=True,
    )
    allowed = getattr(config.get_text_config(decoder=True), "max_position_embeddings", LONGEST)
    return ready.ask(
        loaded.to(device).eval(),
        tokenizer,
        batch_size=together,
        max_length=min(LONGEST, allowed),
        limit=limit,
    )


def _headline(name: str, result: dict[str, Any]) -> dict[str, float]:
    """The first metric of a task, for the line that says it is done."""
    score = next(iter(read_scores(name, result, None)), None)
    return {} if score is None else {score.metric: round(score.value, 4)}
