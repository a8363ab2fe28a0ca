"""All that decides what `bench` measures, in one frozen record."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from secateur.machine.limits import MOST_AT_ONCE, MOST_LENGTH, MOST_REPEATS
from secateur.recipe import Precision
from secateur.recipe.setting import Mark, Names, Numbers, Setting, Settings
from secateur.recipe.wording import as_given


class BenchSettings(Settings):
    """One measurement of how fast a 2:4 model reads prompts and writes tokens."""

    command = "bench"

    model: Annotated[str, Setting(Mark.CONTENT, location=True)]
    """The model to time: a checkpoint's folder, a name on the hub, or builtin (it comes with the
    package)."""
    revision: Annotated[str | None, Setting(Mark.CONTENT, unset="its main branch")] = None
    """Read this branch, tag or commit of a model on the hub."""
    batches: Annotated[Numbers, Setting(Mark.RESULT, metavar="N,...")] = (1, 4, 16, 64)
    """Run these numbers of sequences at once, with commas between."""
    prompt: Annotated[int, Setting(Mark.RESULT)] = Field(default=128, ge=1, le=MOST_LENGTH)
    """Make each prompt this many tokens long."""
    new_tokens: Annotated[int, Setting(Mark.RESULT)] = Field(default=32, ge=1, le=MOST_LENGTH)
    """Decode this many tokens after the prompt."""
    repeats: Annotated[int, Setting(Mark.RESULT)] = Field(default=5, ge=1, le=MOST_REPEATS)
    """Take each median over this many passes; one more before them is not measured."""
    forms: Annotated[
        Names | None,
        Setting(Mark.RESULT, unset="all on CUDA, dense elsewhere", metavar="FORM,..."),
    ] = None
    """Time these forms, with commas between: dense, semi-structured, packed, chosen (what
    accelerate_inference takes)."""
    dtype: Annotated[Precision, Setting(Mark.RESULT)] = "auto"
    """Hold the weights in this precision; auto takes float32 on a CPU, the checkpoint's
    own elsewhere."""
    device: Annotated[str, Setting(Mark.PLACE)] = "auto"
    """Compute on cpu, cuda, cuda:1, mps or xpu; auto takes an accelerator if there is one."""

    def contradictions(self) -> list[str]:
        """What is wrong with settings that are each right by themselves, a phrase each."""
        if self.batches and min(self.batches) >= 1 and max(self.batches) <= MOST_AT_ONCE:
            return []
        asked = as_given(("batches",), ",".join(map(str, self.batches)))
        return [f"{asked}, wanted numbers from 1 to {MOST_AT_ONCE}, as in 1,4,16"]
