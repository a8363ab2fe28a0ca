"""Zero-shot tasks from end to end: the model asked, then the dense one, side by side.

One model is in memory at a time, whole: lm-eval calls it as transformers does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.checkpoint import Checkpoint, load_whole, locate
from secateur.checkpoint.configuration import notices_of, read_config
from secateur.checkpoint.model_facts import load_tokenizer
from secateur.data import read_documents
from secateur.errors import DataError, RecipeError
from secateur.evaluation import TaskEvaluation
from secateur.evaluation.continuation import NAME as CONTINUATION
from secateur.evaluation.lm_eval import TaskSet, lm_eval_version, read_scores
from secateur.evaluation.settings import EvaluationSettings
from secateur.evaluation.suites import spell_out
from secateur.machine import processes
from secateur.machine.device import choose_device, choose_dtype
from secateur.machine.paths import pinned
from secateur.progress import Progress, Quiet
from secateur.recipe import Bos

LONGEST = 2048
"""Tokens of a question at most, where the model would allow more."""
QUESTIONS_TOGETHER = 8
"""Questions that a model is asked at once, unless the settings say otherwise."""


@dataclass(frozen=True)
class Answers:
    """What one model answered.

    Attributes:
        results: task -> what lm-eval found, with every question.
        seconds: that it took.
    """

    results: dict[str, dict[str, Any]]
    seconds: float


class Questions:
    """Tasks with their data, loaded and ready to be asked of one model after the other.

    Args:
        settings: tasks, the text that `continuation` is made of, and how the models are asked;
            which model they name does not matter here.

    Raises:
        SecateurError: a task is unknown, or its data cannot be read.
    """

    def __init__(self, settings: EvaluationSettings) -> None:
        self.trust_remote_code = settings.trust_remote_code
        self.asked = spell_out(settings.tasks or "")
        if not self.asked:
            raise RecipeError("no task", where="--tasks", wanted="names with commas between")
        self._text = settings.text if CONTINUATION in self.asked else None
        texts: Sequence[str] | None = None
        if self._text is not None:
            texts = read_documents(self._text, "test").texts
        self._ready = TaskSet(self.asked, settings.include_path, texts)
        self._limit, self._together = settings.limit, settings.batch_size or QUESTIONS_TOGETHER
        self._bos: Bos = "none" if settings.bos == "none" else "window"
        self._device = choose_device(settings.device)
        self._dtype = choose_dtype(settings.dtype, self._device)

    def ask(self, folder: Path, told: Progress) -> Answers:
        """What the model in a folder answers; it is in memory, whole, until it has.

        Raises:
            SecateurError: it cannot be read.
        """
        began = time.perf_counter()
        told.begin(folder.name, len(self._ready.loaded))
        results = {}
        for name, result in self._put_to(folder, told):
            results[name] = result
            told.block(task=name, **_headline(name, result))
        return Answers(results, time.perf_counter() - began)

    def score(
        self, model: str, answers: Answers, against: str | None = None, dense: Answers | None = None
    ) -> TaskEvaluation:
        """The answers of a model as a record, beside those of the dense model `against`."""
        beside = {} if dense is None else dense.results
        return TaskEvaluation(
            model=model,
            against=against,
            scores=tuple(
                score
                for name, result in answers.results.items()
                for score in read_scores(name, result, beside.get(name))
            ),
            lm_eval=lm_eval_version(),
            seconds=answers.seconds,
            **self._protocol,
        )

    def asked_before(self, recorded: Sequence[TaskEvaluation], against: str) -> bool:
        """Whether a model, by what is recorded of it, was asked these very questions."""
        asked = {"against": against, **self._protocol}
        return any(asked.items() <= dict(scored).items() for scored in recorded)

    @property
    def _protocol(self) -> dict[str, Any]:
        """How every model is asked, as it stands in the record."""
        dtype = "stored" if self._dtype is None else str(self._dtype).removeprefix("torch.")
        facts = {"asked": self.asked, "text": self._text, "limit": self._limit, "dtype": dtype}
        return {**facts, "bos": self._bos}

    def _put_to(self, folder: Path, told: Progress) -> Iterator[tuple[str, dict[str, Any]]]:
        """Name and results of one task after the other, of the model in a folder."""
        trust = self.trust_remote_code
        checkpoint = Checkpoint(folder, trust_remote_code=trust)
        config = read_config(checkpoint)
        for line in notices_of(checkpoint):
            told.notice(line)
        tokenizer = load_tokenizer(folder, trust_remote_code=trust)
        if isinstance(tokenizer, DataError):
            raise tokenizer
        loaded = load_whole(folder, self._dtype, trust_remote_code=trust)
        checkpoint.source.check()
        allowed = getattr(config.get_text_config(decoder=True), "max_position_embeddings", LONGEST)
        return self._ready.ask(
            loaded.to(self._device).eval(),
            tokenizer,
            batch_size=self._together,
            max_length=min(LONGEST, allowed),
            limit=self._limit,
            add_bos_token=False if self._bos == "none" else None,
        )


def evaluate_tasks(
    settings: EvaluationSettings, progress: Progress | None = None
) -> TaskEvaluation:
    """What a model scores in tasks, and the dense model beside it.

    Args:
        settings: which model, what it is asked, and how.
        progress: told what happens; silent by default.

    Raises:
        SecateurError: something cannot be read, or a task is unknown.
    """
    processes.alone("evaluate --tasks")
    folders = [
        locate(name, trust_remote_code=settings.trust_remote_code)
        for name in (pinned(settings.model, settings.revision), settings.against)
        if name is not None
    ]
    questions = Questions(settings)
    with progress or Quiet() as told:
        answers, *dense = (questions.ask(folder, told) for folder in folders)
    return questions.score(settings.model, answers, settings.against, *dense)


def _headline(name: str, result: dict[str, Any]) -> dict[str, float]:
    """The first metric of a task, for the line that says it is done."""
    score = next(iter(read_scores(name, result, None)), None)
    return {} if score is None else {score.metric: round(score.value, 4)}
