"""All that decides a pruning run, in one frozen record: flags over a YAML file over defaults.

    model: ./llama                   parameters: {alpha: 100}
    method: wanda++                  preset: auto
    pattern: "2:4"                   regional: {rounds: 5}
    calibration: c4                  out: ./llama-2of4

Reading collects every fault before it complains, and complains in one line. A recipe holds values
only: it cannot name code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from secateur.errors import RecipeError
from secateur.methods import Method, Params, Refine, get
from secateur.recipe.faults import faults_of
from secateur.recipe.regional import Regional, ready_made
from secateur.recipe.setting import Mark, Setting
from secateur.sparsity import Pattern, Selection, parse_pattern, read_selection
from secateur.sparsity.allocation import Allocation

CONTENT, PLACE, RESULT, RUN = Mark.CONTENT, Mark.PLACE, Mark.RESULT, Mark.RUN
_OPTIONS = "the options"
WRITTEN_FOR_BEST = 3
"""Sequences that the dense model writes for each that there is, under effort best."""

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Schedule = Literal["block", "matrix"]


class Recipe(BaseModel):
    """One pruning run. Make it with `Recipe.build`, which checks the whole."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=False
    )

    model: Annotated[str, Setting(CONTENT)]
    """The model to prune: a checkpoint's folder, a name on the hub, or builtin (it comes with
    the package)."""
    out: Annotated[str | None, Setting(PLACE, unset="nothing is written")] = None
    """Write the pruned model to this folder."""
    method: Annotated[str, Setting(RESULT)] = "wanda++"
    """The pruning method; `secateur methods` lists them."""
    pattern: Annotated[str, Setting(RESULT)] = "2:4"
    """What is pruned. 50% or 0.5: that share of the weights. N:M, such as 2:4: N of every M weights
    along the input are KEPT."""
    patterns: Annotated[dict[str, str], Setting(RESULT, metavar="REGEX=PATTERN")] = {}
    """Give the matrices whose name matches REGEX a pattern of their own; the first match decides.
    May be repeated."""
    include: Annotated[list[str], Setting(RESULT, metavar="REGEX")] = []
    """Prune only the matrices whose name matches. May be repeated."""
    exclude: Annotated[list[str], Setting(RESULT, metavar="REGEX")] = []
    """Leave the matrices whose name matches dense. May be repeated."""
    blocks: Annotated[str | None, Setting(RESULT, unset="all")] = None
    """Prune only these blocks, counted from 0, such as 4-27 or 0,3,8-."""
    dense_first: Annotated[int, Setting(RESULT)] = Field(default=0, ge=0)
    """Leave this many blocks dense, from the first one on."""
    calibration: Annotated[str | None, Setting(CONTENT)] = None
    """Calibrate on this text: a .txt, .jsonl or .parquet file, a folder of texts, a .safetensors
    file with input_ids, c4, wikitext2, builtin (source of the standard library), or self (the
    dense model writes it)."""
    images: Annotated[str | None, Setting(CONTENT)] = None
    """Calibrate a classifier on this folder of images: FOLDER/<class>/*.png; without class folders
    the model's own predictions are the labels."""
    samples: Annotated[int, Setting(RESULT)] = Field(default=128, ge=1)
    """Calibrate on this many sequences, or images."""
    sequence_length: Annotated[int, Setting(RESULT)] = Field(default=2048, ge=2)
    """Make every sequence and window this many tokens long; at most what the model allows."""
    seed: Annotated[int, Setting(RESULT)] = Field(default=0, ge=0, lt=2**32)
    """Draw every random choice from this seed."""
    text: Annotated[str | None, Setting(CONTENT)] = None
    """Measure perplexity on this held-out text while the blocks pass: a file, a folder, c4 or
    wikitext2 (their test splits), or builtin (modules held out)."""
    also_text: Annotated[list[str], Setting(CONTENT)] = []
    """Measure on this held-out text too, such as one from another domain. May be repeated."""
    windows: Annotated[int | None, Setting(CONTENT, unset="all")] = Field(default=None, ge=1)
    """Measure on at most this many windows of each held-out text."""
    parameters: Annotated[dict[str, Any], Setting(RESULT)] = {}
    """Set parameters of the method, such as alpha=10; `secateur methods` lists them."""
    preset: Annotated[Literal["auto", "paper"], Setting(RESULT)] = "auto"
    """Settings of the regional optimiser: auto derives its rate from the layers, paper takes the
    published ones."""
    effort: Annotated[Literal["fast", "balanced", "best"], Setting(RESULT)] = "balanced"
    """How long the regional optimiser works, under preset auto."""
    regional: Annotated[dict[str, Any], Setting(RESULT)] = {}
    """Change settings of the regional optimiser, such as regional.rounds=3, from their preset."""
    written: Annotated[
        int | None, Setting(RESULT, unset="0; three per sample under effort best")
    ] = Field(default=None, ge=0)
    """Let the dense model write this many sequences, to calibrate on beside those of the text."""
    allocation: Annotated[Allocation, Setting(RESULT)] = "uniform"
    """How an unstructured ratio is shared out. uniform: the same everywhere; owl: blocks with
    outliers lose less; measured: matrices lose more where pruning was measured to hurt less."""
    schedule: Annotated[Schedule, Setting(RESULT)] = "block"
    """block: a block is observed, pruned and run again, as in the papers; matrix: each matrix is
    pruned as the data reach it, in half the passes (magnitude, wanda, sparsegpt, alps, gblm)."""
    route_all: Annotated[bool, Setting(RESULT)] = False
    """Show every expert every token, not only those that the router sends it."""
    expert_tokens: Annotated[int, Setting(RESULT)] = Field(default=32, ge=1)
    """Prune an expert that fewer tokens than this reach by magnitude, with a notice."""
    gradients: Annotated[str | None, Setting(PLACE)] = None
    """Take the full-model gradients from this file, which an earlier run saved (gblm)."""
    save_gradients: Annotated[str | None, Setting(PLACE, unset="not kept")] = None
    """Keep the full-model gradients in this .safetensors file (gblm)."""
    block_inputs: Annotated[Literal["auto", "memory", "disk"], Setting(PLACE)] = "auto"
    """Where full-model gradients keep what enters each block; auto takes memory if it fits."""
    batch_size: Annotated[int | None, Setting(RESULT, unset="about 2048 tokens on a CPU")] = Field(
        default=None, ge=1
    )
    """Run this many sequences through a block together."""
    dtype: Annotated[Precision, Setting(CONTENT)] = "auto"
    """Compute in this precision; auto takes float32 on a CPU, the checkpoint's own elsewhere."""
    device: Annotated[str, Setting(PLACE)] = "auto"
    """Compute there: cpu, cuda, cuda:1; auto takes an accelerator if there is one."""
    trust_remote_code: Annotated[bool, Setting(RUN)] = False
    """Run the code that comes with the model, with all your rights. The families of transformers
    never need it; a recipe file cannot set it."""
    overwrite: Annotated[bool, Setting(RUN)] = False
    """Replace the result folder if it exists."""
    restart: Annotated[bool, Setting(RUN)] = False
    """Give up what an interrupted run has finished, and begin again."""

    @field_validator("pattern", "blocks", mode="before")
    @classmethod
    def _written(cls, pattern: Any) -> Any:
        """A ratio, or a block, may stand in a recipe file as a number."""
        return str(pattern) if type(pattern) in (int, float) else pattern

    @field_validator("patterns", mode="before")
    @classmethod
    def _each_written(cls, patterns: Any) -> Any:
        """So may the ratios among them."""
        if not isinstance(patterns, Mapping):
            return patterns
        return {name: cls._written(pattern) for name, pattern in patterns.items()}

    @field_validator("include", "exclude", "also_text", mode="before")
    @classmethod
    def _listed(cls, expressions: Any) -> Any:
        """One may stand alone."""
        return [expressions] if isinstance(expressions, str) else expressions

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
    def texts(self) -> tuple[str, ...]:
        """All held-out texts, the first one first."""
        return () if self.text is None else (self.text, *self.also_text)

    @property
    def chosen_method(self) -> Method:
        """The method."""
        return get(self.method)

    @property
    def chosen_pattern(self) -> Pattern:
        """The pattern of all matrices that have none of their own."""
        return parse_pattern(self.pattern)

    @property
    def selection(self) -> Selection:
        """Which matrix gets which pattern."""
        return read_selection(self.model_dump())

    @property
    def chosen_params(self) -> Params:
        """The method's parameters, defaults filled in."""
        return self.chosen_method.params.model_validate(self.parameters)

    @property
    def chosen_regional(self) -> Regional:
        """The settings of the regional optimiser, defaults filled in."""
        return ready_made(self.preset, self.effort, self.regional)

    @property
    def chosen_written(self) -> int:
        """How many sequences the dense model writes beside the calibration's."""
        if self.written is not None or self.images is not None:
            return self.written or 0
        refines = self.chosen_method.refine is Refine.REGIONAL and self.preset == "auto"
        return WRITTEN_FOR_BEST * self.samples if refines and self.effort == "best" else 0

    def spelled_out(self) -> dict[str, Any]:
        """The recipe with every default written down, for the record."""
        method = self.chosen_method
        regional = self.chosen_regional.model_dump() if method.refine is Refine.REGIONAL else {}
        if regional.get("learning_rate") is not None:
            del regional["step"]  # it is not used, and Regional refuses the two together
        return {
            **self.model_dump(),
            "written": self.chosen_written,
            "parameters": self.chosen_params.model_dump(mode="json"),
            "regional": regional,
        }
