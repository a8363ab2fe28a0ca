"""The stage that prunes: a method with its parameters, a pattern, and which matrices get it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from secateur.errors import PatternError, RecipeError
from secateur.machine.limits import MOST_BLOCKS, MOST_TOKENS, MOST_WIDTH
from secateur.methods import Method, Params, Refine, get
from secateur.quantization import parse_scheme
from secateur.quantization.scheme import By
from secateur.recipe.faults import faults_of_pruning
from secateur.recipe.faults_of_quantization import faults_of_quantization, with_method
from secateur.recipe.faults_of_structures import MULTIPLE
from secateur.recipe.regional import Regional, ready_made
from secateur.recipe.setting import LISTED, RESULT, WRITTEN, MethodPart, Setting, setting_of
from secateur.recipe.stage import PRUNE, Stage, register
from secateur.sparsity import (
    Dense,
    Pattern,
    Selection,
    Structures,
    parse_pattern,
    read_selection,
)
from secateur.sparsity.allocation import Allocation

OF_METHOD, OF_OPTIMISER = MethodPart.METHOD, MethodPart.OPTIMISER

Schedule = Literal["block", "matrix"]


@register
class PruneStage(Stage):
    """Settings of a stage that prunes."""

    kind: ClassVar[str] = PRUNE

    method: Annotated[str, Setting(RESULT, part=OF_METHOD)] = "wanda++"
    """The pruning method; `secateur methods` lists them."""
    pattern: Annotated[str, Setting(RESULT)] = "2:4"
    """What is pruned. 50% or 0.5: that share of the weights. N:M, such as 2:4: N of every M weights
    along the input are KEPT. blocks-2 or blocks-10%: so many blocks are REMOVED from the model;
    ffn-20%, heads-1, experts-25%: so many channels of every feed-forward layer, key-value heads, or
    experts. dense: nothing is pruned, with quantize."""
    mend: Annotated[bool, Setting(RESULT)] = False
    """Let the regional optimiser change the weights of what is left where structures are removed,
    so that they learn what those did, or the rounded weights where they are quantised."""
    width_multiple: Annotated[int, Setting(RESULT)] = Field(default=MULTIPLE, ge=1, le=MOST_WIDTH)
    """Where a share of the feed-forward channels is removed, leave the nearest multiple of this,
    which kernels like, if that leaves something to remove."""
    patterns: Annotated[dict[str, str], Setting(RESULT, metavar="REGEX=PATTERN")] = Field(
        default={}
    )
    """Give the matrices whose name matches REGEX a pattern of their own; the first match decides.
    May be repeated."""
    include: Annotated[list[str], Setting(RESULT, metavar="REGEX"), LISTED] = Field(default=[])
    """Prune only the matrices whose name matches. May be repeated."""
    exclude: Annotated[list[str], Setting(RESULT, metavar="REGEX"), LISTED] = Field(default=[])
    """Leave the matrices whose name matches dense. May be repeated."""
    blocks: Annotated[str | None, Setting(RESULT, unset="all"), WRITTEN] = None
    """Prune only these blocks, counted from 0, such as 4-27 or 0,3,8-."""
    dense_first: Annotated[int, Setting(RESULT)] = Field(default=0, ge=0, le=MOST_BLOCKS)
    """Leave this many blocks dense, from the first one on."""
    parameters: Annotated[dict[str, Any], Setting(RESULT, group=True, part=OF_METHOD)] = Field(
        default={}
    )
    """Set parameters of the method, such as alpha=10; `secateur methods` lists them."""
    preset: Annotated[Literal["auto", "paper"], Setting(RESULT, part=OF_OPTIMISER)] = "auto"
    """Settings of the regional optimiser: auto derives its rate from the layers, paper takes the
    published ones."""
    effort: Annotated[Literal["fast", "balanced", "best"], Setting(RESULT, part=OF_OPTIMISER)] = (
        "balanced"
    )
    """How long the regional optimiser works, under preset auto."""
    regional: Annotated[dict[str, Any], Setting(RESULT, group=True, part=OF_OPTIMISER)] = Field(
        default={}
    )
    """Change settings of the regional optimiser, such as regional.rounds=3, from their preset."""
    allocation: Annotated[Allocation, Setting(RESULT)] = "uniform"
    """How an unstructured ratio is shared out. uniform: the same everywhere; owl: blocks with
    outliers lose less; measured: matrices lose more where pruning was measured to hurt less."""
    schedule: Annotated[Schedule, Setting(RESULT)] = "block"
    """block: a block is observed, pruned and run again, as in the papers; matrix: each matrix is
    pruned as the data reach it, in half the passes (magnitude, wanda, sparsegpt, alps, gblm)."""
    route_all: Annotated[bool, Setting(RESULT)] = False
    """Show every expert every token, not only those that the router sends it."""
    expert_tokens: Annotated[int, Setting(RESULT)] = Field(default=32, ge=1, le=MOST_TOKENS)
    """Prune an expert that fewer tokens than this reach by magnitude, with a notice."""
    quantize: Annotated[str | None, Setting(RESULT, unset="not quantised", metavar="SCHEME")] = None
    """Round the weights of every matrix that is pruned, and write them so: w4a16, w8a16 or fp8.
    w4a16:g64 is one scale for 64 inputs, :row one for a row, :asym adds zero points."""
    quantize_by: Annotated[By | None, Setting(RESULT, unset="gptq, or rtn without calibration")] = (
        None
    )
    """Round by gptq, which makes up for each error by the weights that are still to be rounded, or
    to the nearest (rtn)."""

    @model_validator(mode="before")
    @classmethod
    def _with_method(cls, values: Any) -> Any:
        """The pattern dense needs no method, and has the one that needs no data."""
        return with_method(values) if isinstance(values, Mapping) else values

    @field_validator("quantize", mode="before")
    @classmethod
    def _scheme_in_one_spelling(cls, scheme: Any) -> Any:
        try:
            return str(parse_scheme(scheme)) if isinstance(scheme, str) else scheme
        except RecipeError:
            return scheme

    @field_validator("pattern", mode="before")
    @classmethod
    def _in_one_spelling(cls, pattern: Any) -> Any:
        """0.5 and 50% are one pattern, and so one run. What is none is let be."""
        try:
            return str(parse_pattern(pattern)) if _is_written(pattern) else pattern
        except PatternError:
            return str(pattern)

    @field_validator("patterns", mode="before")
    @classmethod
    def _each_in_one_spelling(cls, patterns: Any) -> Any:
        if not isinstance(patterns, Mapping):
            return patterns
        return {name: cls._in_one_spelling(pattern) for name, pattern in patterns.items()}

    @classmethod
    def faults(cls, values: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
        """What does not fit together: the method, its parameters, the pattern, the optimiser."""
        return [
            *faults_of_pruning(cls, with_method(values), run),
            *faults_of_quantization(values, run),
        ]

    @property
    def title(self) -> str:
        """The method."""
        return self.method

    @property
    def chosen_method(self) -> Method:
        """The method."""
        return get(self.method)

    @property
    def chosen_pattern(self) -> Pattern:
        """The pattern of all matrices that have none of their own."""
        return parse_pattern(self.pattern)

    @property
    def structures(self) -> Structures | None:
        """What is removed of the model; None for a pattern of weights."""
        pattern = self.chosen_pattern
        return pattern if isinstance(pattern, Structures) else None

    @property
    def selection(self) -> Selection:
        """Which matrix gets which pattern; of a model that loses structures every one is kept."""
        if self.structures is not None:
            return Selection(Dense(), blocks=None if self.mend else ())
        return read_selection(self.model_dump())

    @property
    def chosen_params(self) -> Params:
        """The method's parameters, defaults filled in, or what its preset says instead."""
        params = self.chosen_method.params
        published = params.published if self.preset == "paper" else {}
        return params.model_validate({**published, **self.parameters})

    @property
    def chosen_regional(self) -> Regional:
        """The settings of the regional optimiser, defaults filled in."""
        return ready_made(self.preset, self.effort, self.regional)

    @property
    def refines(self) -> bool:
        """Whether the regional optimiser works after the method."""
        return self.mend or self.chosen_method.refine is Refine.REGIONAL

    def stage_options(self) -> dict[str, Any]:
        """Every setting of the stage with its default written down, but not its kind."""
        options = {
            **self.model_dump(include=set(PruneStage.model_fields)),
            "parameters": self.chosen_params.model_dump(mode="json"),
        }
        if not self.refines:  # there is no optimiser for these to set
            return {**options, **without_optimiser()}
        regional = self.chosen_regional.model_dump()
        if regional["learning_rate"] is not None:
            del regional["step"]  # it is not used, and Regional refuses the two together
        return {**options, "regional": regional}


def _is_written(pattern: Any) -> bool:
    """Whether it has a type in which a pattern is written."""
    return isinstance(pattern, str | int | float) and not isinstance(pattern, bool)


def without_optimiser() -> dict[str, Any]:
    """The settings of the regional optimiser, of a method that has none."""
    return {
        name: field.get_default()
        for name, field in PruneStage.model_fields.items()
        if setting_of(PruneStage, name).part is MethodPart.OPTIMISER
    }
