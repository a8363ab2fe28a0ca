"""All that decides an evaluation, in one frozen record that is checked as a whole."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from secateur.machine.limits import MOST_AT_ONCE, MOST_LENGTH, MOST_REPEATS, MOST_SEQUENCES
from secateur.recipe import Bos, Precision
from secateur.recipe.setting import CONTENT, PLACE, RESULT, RUN, Setting, Settings
from secateur.recipe.wording import name_of


class EvaluationSettings(Settings):
    """One evaluation: of a model on text, in zero-shot tasks, or on images."""

    command = "evaluate"

    model: Annotated[str, Setting(CONTENT, location=True)]
    """The model to measure: a checkpoint's folder, a name on the hub, or builtin (it comes with
    the package)."""
    revision: Annotated[str | None, Setting(CONTENT, unset="its main branch")] = None
    """Read this branch, tag or commit of a model on the hub."""
    text: Annotated[str | None, Setting(CONTENT, location=True)] = None
    """Measure perplexity on this held-out text: a file, a folder, c4 or wikitext2 (their test
    splits), or builtin (modules held out). With tasks, continuation makes its questions of it."""
    tasks: Annotated[str | None, Setting(RESULT)] = None
    """Ask these zero-shot tasks by lm-eval, with commas between, such as arc_easy,hellaswag.
    wanda++ and wanda are the papers' lists; continuation is made from text and needs no network."""
    images: Annotated[str | None, Setting(CONTENT, location=True)] = None
    """Measure a classifier's top-1 on this folder of images: FOLDER/<class>/*.png."""
    against: Annotated[str | None, Setting(CONTENT, location=True)] = None
    """The dense model to compare with: adds the mean KL divergence per token from it, its scores
    in the tasks, or how often the two agree on images; of the hub also as owner/name@revision."""
    sequence_length: Annotated[int, Setting(RESULT)] = Field(default=2048, ge=2, le=MOST_LENGTH)
    """Make every window of text this many tokens long; at most what the model allows."""
    windows: Annotated[int | None, Setting(RESULT, unset="all")] = Field(
        default=None, ge=1, le=MOST_SEQUENCES
    )
    """Measure on at most this many windows of the text."""
    bos: Annotated[Bos, Setting(CONTENT)] = "window"
    """Begin every window of text with what the tokenizer puts before a text, such as its
    beginning-of-sequence token, as models are trained (window); put that before the whole text
    only, as the papers' scripts do (stream); or leave it out (none). A question of a task is a
    text of its own; given tokens stay as they are."""
    batch_size: Annotated[
        int | None, Setting(RESULT, unset="about 2048 tokens on a CPU; 8 questions")
    ] = Field(default=None, ge=1, le=MOST_AT_ONCE)
    """Run this many windows, questions or images through the model together."""
    include_path: Annotated[str | None, Setting(CONTENT, location=True)] = None
    """Read task files from this folder too, beside lm-eval's own; the code in them is run."""
    limit: Annotated[int | None, Setting(RESULT, unset="all")] = Field(
        default=None, ge=1, le=MOST_REPEATS
    )
    """Ask at most this many questions of each task, or draw this many images."""
    record: Annotated[bool, Setting(RUN)] = False
    """Add the scores in the tasks to the run.json of the model."""
    dtype: Annotated[Precision, Setting(CONTENT)] = "auto"
    """Compute in this precision; auto takes float32 on a CPU, the checkpoint's own elsewhere."""
    device: Annotated[str, Setting(PLACE)] = "auto"
    """Compute on cpu, cuda, cuda:1, mps or xpu; auto takes an accelerator if there is one."""
    trust_remote_code: Annotated[bool, Setting(RUN)] = False
    """Run the code that comes with the models, with all your rights."""

    def contradictions(self) -> list[str]:
        """What is wrong with settings that are each right by themselves, a phrase each."""
        faults = []
        if self.text is None and self.tasks is None and self.images is None:
            faults.append(
                f"nothing to evaluate on; try {name_of('text')}, {name_of('tasks')} or"
                f" {name_of('images')}"
            )
        for name in ("text", "tasks"):
            if getattr(self, name) is not None and self.images is not None:
                faults.append(f"{name} and images to evaluate on: leave one out")
        for name, others in (
            ("include_path", ("tasks",)), ("limit", ("tasks", "images")), ("record", ("tasks",)),
        ):  # fmt: skip
            if getattr(self, name) and all(getattr(self, other) is None for other in others):
                faults.append(f"{name_of(name)} goes with {' or '.join(map(name_of, others))}")
        if self.windows is not None and (self.tasks is not None or self.images is not None):
            faults.append(
                f"{name_of('windows')} are those of {name_of('text')}; wanted no {name_of('tasks')}"
                f" and no {name_of('images')}"
            )
        return faults
