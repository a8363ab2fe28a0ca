"""All that decides a run, in one frozen record: flags over a YAML file over defaults.

    model: ./llama                   parameters: {alpha: 100}
    method: wanda++                  preset: auto
    pattern: "2:4"                   regional: {rounds: 5}
    calibration: c4                  out: ./llama-2of4

What is done to the model is a stage (`prune_stage.py`). A recipe of one stage says it flat, as
above; a recipe of several has a list, and each goes on with the result of the one before:

    model: ./llama                   stages:
    calibration: c4                    - {method: sparsegpt, pattern: "2:4", include: mlp}
    out: ./llama-sparse                - {method: wanda, pattern: 50%, include: self_attn}

Reading collects every fault before it complains, and complains in one line. A recipe holds values
only: it cannot name code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from secateur.errors import RecipeError
from secateur.machine.limits import MOST_AT_ONCE, MOST_LENGTH, MOST_SEQUENCES
from secateur.quantization import Rounding, parse_scheme
from secateur.quantization.scheme import By
from secateur.recipe.faults import faults_of, faults_of_parts
from secateur.recipe.prune_stage import PruneStage, Schedule
from secateur.recipe.recover_stage import RecoverStage
from secateur.recipe.setting import (
    CONTENT,
    LISTED,
    PLACE,
    RESULT,
    RUN,
    SEVERAL,
    Setting,
    Shares,
)
from secateur.recipe.stage import KIND, PRUNE, STAGES, Stage, read_stage

WRITTEN_FOR_BEST = 3
"""Sequences that the dense model writes for each that there is, under effort best."""
_OPTIONS = "the options"

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Bos = Literal["window", "stream", "none"]
"""Where the tokens stand that a tokenizer puts before any text: before every window, once before
the stream that windows are cut from, or nowhere."""

__all__ = ["Bos", "Precision", "Recipe", "Schedule"]


class Recipe(PruneStage):
    """One run. Make it with `Recipe.build`, which checks the whole.

    The fields that it has from `PruneStage` are its one stage, unless `stages` lists several: then
    they stand at their defaults and nothing reads them.
    """

    model: Annotated[str, Setting(CONTENT, location=True)]
    """The model to prune: a checkpoint's folder, a name on the hub, or builtin (it comes with
    the package)."""
    revision: Annotated[str | None, Setting(CONTENT, unset="its main branch")] = None
    """Read this branch, tag or commit of a model on the hub."""
    out: Annotated[str | None, Setting(PLACE, location=True, unset="nothing is written")] = None
    """Write the pruned model to this folder."""
    calibration: Annotated[str | list[str] | None, Setting(CONTENT, location=True), SEVERAL] = None
    """Calibrate on this text: a file of text or of records (.txt, .jsonl, .json, .csv, .parquet,
    .arrow, also .gz), a folder of them, a .safetensors file with input_ids, c4, wikitext2, builtin
    (source of the standard library), or self (the dense model writes it). May be repeated: then
    every text gives a part of the samples."""
    shares: Annotated[Shares | None, Setting(CONTENT, unset="equal", metavar="N,...")] = None
    """Let several calibration texts give samples in this ratio, such as 2,1,1."""
    column: Annotated[
        str | None, Setting(CONTENT, unset="text, or messages by the model's chat template")
    ] = None
    """Read this column of the calibration's files of records. Held-out text has its own: text, or
    messages."""
    images: Annotated[str | None, Setting(CONTENT, location=True)] = None
    """Calibrate a classifier on this folder of images: FOLDER/<class>/*.png; without class folders
    the model's own predictions are the labels."""
    samples: Annotated[int, Setting(RESULT)] = Field(default=128, ge=1, le=MOST_SEQUENCES)
    """Calibrate on this many sequences, or images."""
    sequence_length: Annotated[int, Setting(RESULT)] = Field(default=2048, ge=2, le=MOST_LENGTH)
    """Make every sequence and window this many tokens long; at most what the model allows."""
    bos: Annotated[Bos, Setting(CONTENT)] = "window"
    """Begin every window of text with what the tokenizer puts before a text, such as its
    beginning-of-sequence token, as models are trained (window); put that before the whole text
    only, as the papers' scripts do (stream); or leave it out (none). Given tokens stay as they
    are."""
    seed: Annotated[int, Setting(RESULT)] = Field(default=0, ge=0, lt=2**32)
    """Draw every random choice from this seed."""
    text: Annotated[str | None, Setting(CONTENT, location=True)] = None
    """Measure perplexity on this held-out text while the blocks pass: a file, a folder, c4 or
    wikitext2 (their test splits), or builtin (modules held out)."""
    also_text: Annotated[list[str], Setting(CONTENT, location=True), LISTED] = Field(default=[])
    """Measure on this held-out text too, such as one from another domain. May be repeated."""
    windows: Annotated[int | None, Setting(CONTENT, unset="all")] = Field(
        default=None, ge=1, le=MOST_SEQUENCES
    )
    """Measure on at most this many windows of each held-out text."""
    written: Annotated[
        int | None, Setting(RESULT, unset="0; three per sample under effort best")
    ] = Field(default=None, ge=0, le=MOST_SEQUENCES)
    """Let the dense model write this many sequences, to calibrate on beside those of the text."""
    gradients: Annotated[str | None, Setting(PLACE, location=True)] = None
    """Take the full-model gradients from this file, which an earlier run saved (gblm)."""
    save_gradients: Annotated[str | None, Setting(PLACE, location=True, unset="not kept")] = None
    """Keep the full-model gradients in this .safetensors file (gblm)."""
    activations: Annotated[Literal["auto", "device", "host"], Setting(PLACE)] = "auto"
    """Where hidden states wait between blocks: on the accelerator, or in main memory, which takes
    time to copy; auto takes main memory if the accelerator has too little. Nothing on a CPU."""
    block_inputs: Annotated[Literal["auto", "memory", "disk"], Setting(PLACE)] = "auto"
    """Where full-model gradients keep what enters each block; auto takes memory if it fits."""
    batch_size: Annotated[int | None, Setting(RESULT, unset="about 2048 tokens on a CPU")] = Field(
        default=None, ge=1, le=MOST_AT_ONCE
    )
    """Run this many sequences through a block together."""
    dtype: Annotated[Precision, Setting(CONTENT)] = "auto"
    """Compute in this precision; auto takes float32 on a CPU, the checkpoint's own elsewhere."""
    device: Annotated[str, Setting(PLACE)] = "auto"
    """Compute on cpu, cuda, cuda:1, mps or xpu; auto takes an accelerator if there is one."""
    trust_remote_code: Annotated[bool, Setting(RUN)] = False
    """Run the code that comes with the model, with all your rights. The families of transformers
    never need it; a recipe file cannot set it."""
    overwrite: Annotated[bool, Setting(RUN)] = False
    """Replace the result folder if it exists."""
    restart: Annotated[bool, Setting(RUN)] = False
    """Give up what an interrupted run has finished, and begin again."""
    stages: Annotated[tuple[SerializeAsAny[Stage], ...], Setting(RESULT)] = ()
    """Stages that are done one after the other, in place of the method and its settings: a list of
    the settings of each, with their kind (prune, if none is named). In a recipe file only."""

    @model_validator(mode="before")
    @classmethod
    def _alone(cls, values: Any) -> Any:
        """A list of one stage that prunes is the same recipe as a flat one, and becomes it."""
        stages = values.get(STAGES) if isinstance(values, Mapping) else None
        if not isinstance(stages, list | tuple) or len(stages) != 1:
            return values
        (stage,) = stages
        if not isinstance(stage, Stage | Mapping):
            return values
        settings = _written_down(stage) if isinstance(stage, Stage) else dict(stage)
        if settings.pop(KIND, PRUNE) != PRUNE:
            return values
        return {**{key: value for key, value in values.items() if key != STAGES}, **settings}

    @field_validator(STAGES, mode="before")
    @classmethod
    def _each_read(cls, stages: Any) -> Any:
        """Every stage becomes a record of its kind."""
        return tuple(one if isinstance(one, Stage) else read_stage(one) for one in stages)

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        """Every calibration text is another one, and gives a sequence at least."""
        if faults := faults_of_parts(self.sources, self.shares, self.samples):
            raise ValueError(" | ".join(faults))
        return self

    @classmethod
    def build(cls, values: Mapping[str, Any], origin: str = _OPTIONS) -> Recipe:
        """Check everything and make the recipe.

        Raises:
            RecipeError: with all faults, in one line.
        """
        faults = faults_of(cls, values)
        if faults:
            head = f"{len(faults)} faults in {origin}: " if len(faults) > 1 else ""
            where = None if head or origin == _OPTIONS else origin
            raise RecipeError(head + " | ".join(faults), where=where)
        return cls.model_validate(dict(values))

    @property
    def every_stage(self) -> tuple[Stage, ...]:
        """The stages in their order; a flat recipe is its own."""
        return self.stages or (self,)

    @property
    def by_stage(self) -> tuple[Recipe, ...]:
        """A flat recipe for every stage, with the settings of this run; itself if it is flat."""
        if not self.stages:
            return (self,)
        run = {name: value for name, value in self if name in run_settings()}
        run["written"] = self.chosen_written  # one calibration serves all of them
        return tuple(Recipe.model_validate({**run, STAGES: (one,)}) for one in self.stages)

    @property
    def recovery(self) -> RecoverStage | None:
        """The last stage, if it trains the pruned model back."""
        last = self.every_stage[-1]
        return last if isinstance(last, RecoverStage) else None

    @property
    def title(self) -> str:
        """What the stages do: the method of one, or of each."""
        return " + ".join(stage.title for stage in self.stages) or self.method

    @property
    def sources(self) -> tuple[str, ...]:
        """All calibration texts."""
        several = self.calibration if isinstance(self.calibration, list) else [self.calibration]
        return tuple(source for source in several if source is not None)

    @property
    def texts(self) -> tuple[str, ...]:
        """All held-out texts, the first one first."""
        return () if self.text is None else (self.text, *self.also_text)

    @property
    def chosen_written(self) -> int:
        """How many sequences the dense model writes beside the calibration's."""
        if self.written is not None or self.images is not None:
            return self.written or 0
        best = any(
            isinstance(stage, PruneStage)
            and stage.refines
            and (stage.preset, stage.effort) == ("auto", "best")
            for stage in self.every_stage
        )
        return WRITTEN_FOR_BEST * self.samples if best else 0

    @property
    def rounding(self) -> Rounding | None:
        """What is done with the weights once they are pruned; None if they are not quantised."""
        if self.quantize is None:
            return None
        by: By = "rtn" if self.calibration is None else "gptq"
        return Rounding(parse_scheme(self.quantize), self.quantize_by or by)

    def spelled_out(self) -> dict[str, Any]:
        """The recipe with every default written down, as `build` takes it."""
        if self.stages:
            return {**self.run_options(), STAGES: [_written_down(one) for one in self.stages]}
        return {**self.run_options(), **self.stage_options()}

    def run_options(self) -> dict[str, Any]:
        """Every setting of the run with its default written down, but none of its stages."""
        return {**self.model_dump(include=set(run_settings())), "written": self.chosen_written}


def _written_down(stage: Stage) -> dict[str, Any]:
    """A stage with its kind and every default, as an element of the list."""
    return {KIND: stage.kind, **stage.stage_options()}


def run_settings() -> tuple[str, ...]:
    """The fields of a recipe that belong to the run, whatever its stages are."""
    inside = PruneStage.model_fields
    return tuple(name for name in Recipe.model_fields if name not in inside and name != STAGES)
