"""All that decides a recovery, in one frozen record that is checked as a whole."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from secateur.machine.limits import (
    MOST_LENGTH,
    MOST_SEQUENCES,
    MOST_TOKENS,
)
from secateur.recipe import Bos
from secateur.recipe.faults import faults_of_parts
from secateur.recipe.recover_stage import RecoverStage
from secateur.recipe.setting import (
    CONTENT,
    PLACE,
    RESULT,
    RUN,
    SEVERAL,
    Setting,
    Settings,
    Shares,
)
from secateur.recipe.wording import as_given, name_of


class Recovery(Settings, RecoverStage):
    """One recovery of a pruned model. Make it with `Recovery.build`, which names what is wrong."""

    command = "recover"

    model: Annotated[str, Setting(CONTENT, location=True)]
    """The sparse model to train: its folder, or its name on the hub."""
    out: Annotated[str, Setting(PLACE, location=True)]
    """Write the recovered model to this folder."""
    text: Annotated[str | list[str], Setting(CONTENT, location=True), SEVERAL]
    """Train on this text or these tokens: whatever `prune --calibration` takes; self is written by
    the dense model. May be repeated: then every text gives a part of the sequences."""
    shares: Annotated[Shares | None, Setting(CONTENT, unset="equal", metavar="N,...")] = None
    """Let several texts give sequences in this ratio, such as 2,1,1."""
    revision: Annotated[str | None, Setting(CONTENT, unset="its main branch")] = None
    """Read this branch, tag or commit of a model on the hub."""
    column: Annotated[
        str | None, Setting(CONTENT, unset="text, or messages by the model's chat template")
    ] = None
    """Read this column of the text's files of records."""
    heldout: Annotated[str | None, Setting(PLACE, location=True, unset="nothing is measured")] = (
        None
    )
    """Measure perplexity on this held-out text: dense, pruned, before and after the merge."""
    windows: Annotated[int | None, Setting(PLACE, unset="all")] = Field(
        default=None, ge=1, le=MOST_SEQUENCES
    )
    """Measure on at most this many windows of the held-out text."""
    dense: Annotated[
        str | None, Setting(CONTENT, location=True, unset="the model that run.json names")
    ] = None
    """The dense model to compare with: its folder, or its name on the hub, also as
    owner/name@revision."""
    result: Annotated[Literal["merged", "adapters"], Setting(RESULT)] = "merged"
    """What is written. merged: one sparse model, every zero kept; adapters: plain LoRA beside the
    sparse model."""
    sequence_length: Annotated[int, Setting(RESULT)] = Field(default=2048, ge=2, le=MOST_LENGTH)
    """Make every sequence and window this many tokens long; at most what the model allows."""
    bos: Annotated[Bos, Setting(CONTENT)] = "window"
    """Begin every window of text with what the tokenizer puts before a text, such as its
    beginning-of-sequence token, as models are trained (window); put that before the whole text
    only, as the papers' scripts do (stream); or leave it out (none). Given tokens stay as they
    are."""
    seed: Annotated[int, Setting(RESULT)] = Field(default=0, ge=0, lt=2**32)
    """Draw every random choice from this seed."""
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], Setting(RESULT)] = "auto"
    """Train in this precision; auto takes float32 on a CPU, bfloat16 on an accelerator."""
    device: Annotated[str, Setting(PLACE)] = "auto"
    """Compute on cpu, cuda, cuda:1, mps or xpu; auto takes an accelerator if there is one."""
    pattern: Annotated[str | None, Setting(RESULT, unset="the one in run.json")] = None
    """Demand this pattern of every matrix, before and after."""
    trust_remote_code: Annotated[bool, Setting(RUN)] = False
    """Run the code that comes with the sparse and the dense model, with all your rights."""
    overwrite: Annotated[bool, Setting(RUN)] = False
    """Replace the result folder, and begin anew."""
    resume: Annotated[bool, Setting(RUN)] = False
    """Go on from the checkpoint of an interrupted run."""

    def contradictions(self) -> list[str]:
        """What is wrong with settings that are each right by themselves, a phrase each."""
        faults = faults_of_parts(self.texts, self.shares, self.trained_sequences, "text")
        faults += self.training_faults()
        if self.result == "adapters" and self.train != "adapters":
            faults.append(f"{name_of('result')} adapters goes with {name_of('train')} adapters")
        if self.resume and self.overwrite:
            resume, overwrite = name_of("resume"), name_of("overwrite")
            faults.append(f"{resume} goes on, {overwrite} begins anew: give one of them")
        if (tokens := self.trained_sequences * self.sequence_length) > MOST_TOKENS:
            faults.append(
                f"{tokens:.3g} tokens to train on, wanted at most {MOST_TOKENS:.3g}: give fewer"
                f" {name_of('steps')}, or {name_of('samples')} that are read again and again"
            )
        if self.windows is not None and self.heldout is None:
            windows = as_given(("windows",), self.windows)
            faults.append(f"{windows} are those of {name_of('heldout')}: give both")
        return faults

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts to train on."""
        return (self.text,) if isinstance(self.text, str) else tuple(self.text)

    def spelled_out(self) -> dict[str, Any]:
        """Every setting with its default filled in, for the record."""
        return {**self.model_dump(), **self.stage_options()}
