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
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from secateur.errors import RecipeError
from secateur.methods import Method, Params, Refine, get
from secateur.recipe.faults import faults_of
from secateur.recipe.regional import Regional, ready_made
from secateur.sparsity import Pattern, Selection, parse_pattern, read_selection
from secateur.sparsity.allocation import Allocation

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

    model: str
    """Folder of a Hugging Face checkpoint, or a hub name."""
    out: str | None = None
    """Folder for the result; none: the model is pruned in memory."""
    method: str = "wanda++"
    """Name of a method, see `secateur methods`."""
    pattern: str = "2:4"
    """50% or 0.5 (share pruned), or N:M (N of every M weights kept)."""
    patterns: dict[str, str] = {}
    """Expression -> pattern, for matrices in whose name the expression is found first."""
    include: list[str] = []
    """Only matrices in whose name one of these expressions is found."""
    exclude: list[str] = []
    """No matrix in whose name one of these expressions is found."""
    blocks: str | None = None
    """Only these blocks, counted from 0, such as 4-27 or 0,3,8-."""
    dense_first: int = Field(default=0, ge=0)
    """So many of the first blocks stay dense."""
    calibration: str | None = None
    """A .txt, .jsonl, .parquet or .safetensors file, a folder of texts, c4, wikitext2, builtin
    (the standard library's source), or self (text that the dense model writes)."""
    images: str | None = None
    """Folder of images to calibrate a classifier with: FOLDER/<class>/*.png, or no classes."""
    samples: int = Field(default=128, ge=1)
    """Calibration sequences, or images."""
    sequence_length: int = Field(default=2048, ge=2)
    """Tokens per calibration sequence."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of everything random."""
    text: str | None = None
    """Held-out text to measure perplexity on while the blocks pass; as calibration, but self."""
    also_text: list[str] = []
    """Further held-out texts to measure on, such as one from another domain."""
    windows: int | None = Field(default=None, ge=1)
    """Windows of held-out text at most, of each; none: all."""
    parameters: dict[str, Any] = {}
    """The method's own parameters."""
    preset: Literal["auto", "paper"] = "auto"
    """Settings of the regional optimiser: derived from the layers, or those of the paper."""
    effort: Literal["fast", "balanced", "best"] = "balanced"
    """How long the regional optimiser works, under preset auto."""
    regional: dict[str, Any] = {}
    """Single settings of the regional optimiser, over the preset."""
    written: int | None = Field(default=None, ge=0)
    """Sequences that the dense model writes beside the calibration's; none: three times as many
    under effort best for a method with the regional optimiser, otherwise 0."""
    allocation: Allocation = "uniform"
    """uniform: the same ratio everywhere; owl: fewer zeros in blocks with outliers; measured: more
    where pruning was measured to hurt less. Their mean is the ratio (unstructured only)."""
    schedule: Schedule = "block"
    """block: a block is observed, pruned and run again, as in the papers; matrix: each matrix is
    pruned as the data reach it, in one pass (magnitude, wanda, sparsegpt, alps, gblm)."""
    route_all: bool = False
    """Show every expert every token; else only those that the router sends it."""
    expert_tokens: int = Field(default=32, ge=1)
    """An expert that fewer tokens reach is pruned by magnitude, with a notice."""
    gradients: str | None = None
    """File of full-model gradients from an earlier run with save_gradients (gblm)."""
    save_gradients: str | None = None
    """Keep the full-model gradients in this .safetensors file (gblm)."""
    block_inputs: Literal["auto", "memory", "disk"] = "auto"
    """Where full-model gradients keep what enters each block; auto: memory if it fits."""
    batch_size: int | None = Field(default=None, ge=1)
    """Sequences that run through a block together; none: about 2048 tokens."""
    dtype: Precision = "auto"
    """Precision of the computation; auto: float32 on a CPU, the checkpoint's own elsewhere."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto: an accelerator where there is one."""
    trust_remote_code: bool = False
    """Run code that lies beside the weights; not to be had from a recipe file."""
    overwrite: bool = False
    """Replace the result folder if it exists."""
    restart: bool = False
    """Begin again where an earlier run was interrupted, instead of going on."""

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
