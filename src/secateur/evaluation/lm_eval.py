"""Zero-shot tasks through lm-eval: what a pruned model can still do, beside the dense one.

    value       of a metric over a task's documents, as lm-eval computes it
    difference  value - dense value
    standard error of the difference, from the same documents asked of both models:
                std(score_i - dense_score_i) / sqrt(documents)

The two models answer the same questions, so that the paired error is what tells whether they
differ; the error of each alone is larger. Tasks run one at a time, with lm-eval's own seeds and
prompts. Task files may bring Python code, which lm-eval runs: name only folders that you trust.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import math
import statistics
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.blocks.models_fault import models_fault
from secateur.errors import DataError, RecipeError, SecateurError, closest
from secateur.evaluation import continuation
from secateur.evaluation.scores import TaskScore
from secateur.machine.waiting import doing

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FEWSHOT_SEED = 1234
"""Seed of the examples before a question: lm-eval's own default."""
BOOTSTRAP = 1000
"""Resamplings behind the standard error of a metric that has no formula."""


class TaskSet:
    """Tasks that lm-eval knows, loaded and ready to be asked.

    Args:
        names: tasks, groups and tags; "continuation" is made from `texts`.
        include_path: a folder with more task files.
        texts: documents for `continuation`.

    Raises:
        RecipeError: lm-eval is not there, a name is unknown, or `continuation` has no text.
        DataError: the data of a task cannot be read.
    """

    def __init__(
        self,
        names: Sequence[str],
        include_path: str | None = None,
        texts: Sequence[str] | None = None,
    ) -> None:
        manager = _task_manager(include_path, defaults=False)
        shipped = {*manager.all_tasks, continuation.NAME}
        if not shipped.issuperset(names):  # lm-eval's task files are many, and slow to look through
            manager = _task_manager(include_path, defaults=True)
        known = [*manager.all_tasks, continuation.NAME]
        self.loaded: dict[str, dict[str, Any]] = {}
        for name in names:
            spec: Any = name
            if name == continuation.NAME and name not in manager.all_tasks:
                spec = _continuation(texts)
            elif name not in manager.all_tasks:
                near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
                raise RecipeError(
                    f"unknown task {name!r}",
                    where="--tasks",
                    wanted=closest(name, near) if near else "a task that lm-eval knows",
                    hint="--include-path for a folder of your own task files",
                )
            with doing(f"loading task {name}"):
                self.loaded[name] = _load(manager, name, spec)

    def ask(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **options: Any
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Name and lm-eval's results of one task after the other.

        Args:
            model: in evaluation mode, where it is to compute.
            tokenizer: its own.
            options: batch_size, max_length, limit and add_bos_token, as lm-eval takes them; with
                no add_bos_token every question begins as the tokenizer begins any text.
        """
        from lm_eval import evaluator
        from lm_eval.models.huggingface import HFLM

        limit = options.pop("limit", None)
        with _quiet():
            asked = HFLM(pretrained=model, tokenizer=tokenizer, **options)
        for name, loaded in self.loaded.items():
            with doing(f"task {name}"), _quiet(), models_fault(type(model).__name__):
                results = evaluator.evaluate(
                    asked, loaded, limit=limit, bootstrap_iters=BOOTSTRAP, log_samples=True
                )
            yield name, results


def read_scores(
    name: str, results: dict[str, Any], dense: dict[str, Any] | None
) -> tuple[TaskScore, ...]:
    """What lm-eval says of one task as records; for a tag, of each of its tasks.

    Args:
        name: as it was asked for.
        results: of the model, as `TaskSet.ask` gives them.
        dense: of the dense model, or None.
    """
    every = results["results"]
    scores = []
    for task in [name] if name in every else list(every):
        samples = results.get("samples", {}).get(task)
        reference = None if dense is None else dense["results"][task]
        for key, value in every[task].items():
            metric, _, score_filter = key.partition(",")
            if not score_filter or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            paired = None
            if dense is not None and samples:
                paired = _paired(samples, dense["samples"][task], metric, score_filter)
            error = f"{metric}_stderr,{score_filter}"
            scores.append(
                TaskScore(
                    task=task,
                    metric=metric if score_filter == "none" else key,
                    higher_is_better=results["higher_is_better"].get(task, {}).get(metric) is True,
                    documents=int(every[task]["sample_len"]),
                    shots=int(results["n-shot"].get(task) or 0),
                    version=str(results["versions"].get(task)),
                    value=float(value),
                    standard_error=_number(every[task].get(error)),
                    dense=None if reference is None else float(reference[key]),
                    dense_standard_error=None
                    if reference is None
                    else _number(reference.get(error)),
                    difference_error=paired,
                )
            )
    return tuple(scores)


def lm_eval_version() -> str:
    """The version of the package lm-eval that is installed."""
    return version("lm_eval")


def _paired(
    here: list[dict[str, Any]], there: list[dict[str, Any]], metric: str, score_filter: str
) -> float | None:
    """Standard error of the mean difference of two models' scores on the same documents."""
    scores = [
        {
            sample["doc_id"]: sample[metric]
            for sample in samples
            if sample.get("filter") == score_filter and isinstance(sample.get(metric), int | float)
        }
        for samples in (here, there)
    ]
    if len(scores[0]) < 2 or scores[0].keys() != scores[1].keys():
        return None  # a metric that is not a mean over documents
    apart = [float(scores[0][document] - scores[1][document]) for document in scores[0]]
    return statistics.stdev(apart) / math.sqrt(len(apart))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _task_manager(include_path: str | None, *, defaults: bool) -> Any:
    """lm-eval's index of tasks: those of a folder, and its own if `defaults`."""
    try:
        with _quiet():
            from lm_eval.tasks import TaskManager
    except ImportError as fault:
        raise RecipeError(
            "lm-eval is not installed", where="--tasks", hint="pip install 'secateur[tasks]'"
        ) from fault
    if defaults and include_path is None:
        return _published()
    if include_path is not None and not Path(include_path).is_dir():
        raise RecipeError("no such folder", where=f"--include-path {include_path}")
    try:
        with _quiet():
            return TaskManager(include_path=include_path, include_defaults=defaults)
    except Exception as fault:
        raise DataError(f"the task files cannot be read ({fault})", where=include_path) from fault


@functools.cache
@doing("looking through lm-eval's tasks")
def _published() -> Any:
    """lm-eval's own tasks: thousands of files, looked through once."""
    from lm_eval.tasks import TaskManager

    with _quiet():
        return TaskManager()


def _load(manager: Any, name: str, spec: Any) -> dict[str, Any]:
    """One task with its data, set as lm-eval's own command sets it."""
    try:
        with _quiet():
            loaded: dict[str, Any] = manager.load([spec])
    except SecateurError:
        raise
    except Exception as fault:  # whatever data sets, hubs and task files can raise
        raise DataError(
            f"the task cannot be loaded ({type(fault).__name__}: {fault})",
            where=name,
            hint="a machine with a network once, or a task with local data by --include-path",
        ) from fault
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return loaded


def _continuation(texts: Sequence[str] | None) -> dict[str, Any]:
    """The task `continuation` as lm-eval takes a task that is in no file."""
    if texts is None:
        raise RecipeError(
            f"task {continuation.NAME!r} is made from held-out text", hint="--text SOURCE"
        )
    from datasets import Dataset

    questions = continuation.make_questions(texts)
    rows = [
        {"context": asked.context, "choices": list(asked.choices), "answer": asked.answer}
        for asked in questions
    ]
    return {
        "task": continuation.NAME,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval draws bars and logs to standard error, which is for our own lines."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
