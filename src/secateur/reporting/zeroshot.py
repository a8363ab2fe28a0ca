"""What the rows of a comparison scored in zero-shot tasks: a column for every metric of a task.

    value            mean over the seeds that were asked
    standard error   over questions, the mean over those seeds

Only the same questions stand in one column: a task that was asked with another limit, version or
number of examples, or begun otherwise, has a column of its own.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from secateur.evaluation import TaskScore
from secateur.recipe import Bos
from secateur.record import RunRecord
from secateur.reporting.comparison import Comparison, Row


@dataclass(frozen=True)
class Scored:
    """A model in a task: its value, and the standard error over questions if there is one."""

    value: float
    standard_error: float | None


@dataclass(frozen=True)
class Asked:
    """What tells the questions of one column from those of another."""

    task: str
    metric: str
    documents: int
    shots: int
    version: str
    bos: Bos


@dataclass(frozen=True)
class TaskColumn:
    """A metric of a task.

    Attributes:
        label: its name, unlike the others': "arc_easy acc".
        leading: whether it is the first metric of its task, the one to print if only one is.
        questions: what it is told apart by.
        dense: what the dense model scored, if it was asked.
    """

    label: str
    leading: bool
    questions: Asked
    dense: Scored | None

    def of(self, row: Row) -> Scored | None:
        """What a row scored; None if it was not asked."""
        scores = _answered(row.runs, self.questions)
        return _mean([(score.value, score.standard_error) for score in scores])


def task_columns(comparison: Comparison) -> tuple[TaskColumn, ...]:
    """A column for every metric that some run has, in the order of asking."""
    first: dict[Asked, TaskScore] = {}
    leading: dict[str, str] = {}
    for questions, score in (asked for run in comparison.runs for asked in _scores(run)):
        first.setdefault(questions, score)
        leading.setdefault(score.task, score.metric)
    names = [f"{score.task} {score.metric}" for score in first.values()]
    columns = []
    for name, (questions, score) in zip(names, first.items(), strict=True):
        scores = _answered(comparison.runs, questions)
        dense = [(one.dense, one.dense_standard_error) for one in scores if one.dense is not None]
        asked = f"{score.documents} questions, {score.shots} shots, version {score.version}"
        asked += "" if questions.bos == "window" else ", no BOS"
        columns.append(
            TaskColumn(
                label=name if names.count(name) == 1 else f"{name} ({asked})",
                leading=leading[score.task] == score.metric,
                questions=questions,
                dense=_mean(dense[:1]),
            )
        )
    return tuple(columns)


def _scores(run: RunRecord) -> Iterator[tuple[Asked, TaskScore]]:
    """Every score of a run, with what was asked."""
    for asked in run.tasks:
        for one in asked.scores:
            told = (one.task, one.metric, one.documents, one.shots, one.version)
            yield Asked(*told, asked.bos), one


def _answered(runs: Sequence[RunRecord], questions: Asked) -> Iterator[TaskScore]:
    """What the runs scored in these questions, the last asking of each."""
    for run in runs:
        scores = [score for asked, score in _scores(run) if asked == questions]
        yield from scores[-1:]


def _mean(values: Sequence[tuple[float, float | None]]) -> Scored | None:
    if not values:
        return None
    errors = [error for _, error in values if error is not None]
    return Scored(
        statistics.fmean(value for value, _ in values),
        statistics.fmean(errors) if errors else None,
    )
