"""Records of zero-shot tasks: a metric of a task, and everything that a model was asked at once."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from secateur.recipe import Bos


class TaskScore(BaseModel):
    """One metric of one task."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    task: str
    metric: str
    """As lm-eval calls it; with its filter if there is one: "acc", "exact_match,strict-match"."""
    higher_is_better: bool
    documents: int
    shots: int
    """Examples before every question."""
    version: str
    """Version of the task, as its file says."""
    value: float
    standard_error: float | None
    dense: float | None = None
    """The value of the dense model on the same documents."""
    dense_standard_error: float | None = None
    difference_error: float | None = None
    """Standard error of value - dense, paired over documents; none for a group of tasks."""

    @property
    def difference(self) -> float | None:
        """value - dense."""
        return None if self.dense is None else self.value - self.dense

    @property
    def errors_apart(self) -> float | None:
        """The difference in units of its standard error; None if either is not known, or zero."""
        if self.difference is None or not self.difference_error:
            return None
        return self.difference / self.difference_error


class TaskEvaluation(BaseModel):
    """What a model scored, and how it was asked."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    model: str
    against: str | None
    """The dense model that stands beside it; None without one."""
    asked: tuple[str, ...]
    """Tasks as they were asked for."""
    scores: tuple[TaskScore, ...]
    text: str | None
    """Where the questions of `continuation` come from."""
    limit: int | None
    """Documents of each task at most."""
    dtype: str
    """Precision of the computation."""
    bos: Bos = "window"
    """window: every question begins as the tokenizer begins any text; none: it does not."""
    lm_eval: str
    """Version of lm-eval."""
    seconds: float
    """Wall time of asking the model; the dense one, which many share, is not counted in."""
