"""What the curve of damage by share removed has beyond a recipe, and which keys it takes of one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import PurePath
from typing import Annotated, Any

from pydantic import Field, field_validator

from secateur import methods
from secateur.comparison.units import MEASURED
from secateur.errors import PatternError
from secateur.machine.limits import MOST_SEQUENCES
from secateur.recipe.setting import (
    CONTENT,
    PLACE,
    RESULT,
    RUN,
    Setting,
    Settings,
    as_written,
    split_names,
)
from secateur.recipe.wording import as_given
from secateur.sparsity import Pattern, Structures, Unstructured, parse_pattern

CURVE_FILES = (".html", ".svg", ".json", ".csv")
"""Endings of the files that a curve can be written to."""
TAKEN = (
    "revision", "calibration", "column", "sequence_length", "bos", "seed", "parameters",
    "activations", "batch_size", "dtype", "device", "trust_remote_code",
)  # fmt: skip
"""Keys of a recipe that a curve takes as they are."""
_METHODS = ", ".join(f"{one.method} for {name}" for name, one in MEASURED.items())


class CliffSettings(Settings):
    """One curve: of a model that loses more and more structures of one kind."""

    command = "cliff"

    model: Annotated[str, Setting(CONTENT, location=True)]
    """The model to measure: a checkpoint's folder, a name on the hub, or builtin (it comes with
    the package)."""
    text: Annotated[str, Setting(CONTENT, location=True)]
    """Measure on this held-out text: a file, a folder, c4 or wikitext2 (their test splits), or
    builtin (modules held out)."""
    method: Annotated[str | None, Setting(RESULT, unset=_METHODS)] = None
    """The method that says which go; `secateur methods` lists those that remove."""
    pattern: Annotated[str, Setting(RESULT, metavar="UNIT")] = "blocks"
    """What is removed, by its name alone: blocks, or of every block feed-forward channels (ffn),
    key-value heads with their queries (heads), or experts."""
    shares: Annotated[
        tuple[str, ...] | None,
        Setting(RESULT, unset="10%,20%,30%,40%,50%, as far as they can go", metavar="SHARE,..."),
    ] = None
    """Measure the model without these shares of them, or numbers, with commas between, such as
    10%,20%,30% or 1,4,8."""
    samples: Annotated[int, Setting(RESULT)] = Field(default=32, ge=1, le=MOST_SEQUENCES)
    """Calibrate the choice on this many sequences."""
    windows: Annotated[int, Setting(RESULT)] = Field(default=32, ge=1, le=MOST_SEQUENCES)
    """Measure on at most this many windows of the text."""
    out: Annotated[str | None, Setting(PLACE, location=True, unset="nothing is written")] = None
    """Write the curve to this file: .html or .svg to look at, .json or .csv for programs."""
    overwrite: Annotated[bool, Setting(RUN)] = False
    """Replace the file if it exists."""

    @field_validator("shares", mode="before")
    @classmethod
    def _each_as_text(cls, shares: Any) -> Any:
        """A number is written as one; what is no list stays as it is."""
        parts = split_names(as_written(shares))
        return [as_written(part) for part in parts] if isinstance(parts, list | tuple) else parts

    def contradictions(self) -> list[str]:
        """What is wrong with settings that are each right by themselves, a phrase each."""
        faults = []
        unit = self.pattern if self.pattern in MEASURED else None
        removers = {method.name for method in methods.every_remover(unit)}
        if self.method is not None and self.method not in removers:
            faults.append(
                f"{as_given(('method',), self.method)} removes no {unit or 'structures'},"
                f" wanted one of {', '.join(sorted(removers))}"
            )
        if self.pattern not in MEASURED:
            faults.append(
                f"{as_given(('pattern',), self.pattern)}, wanted the name of what is removed"
                f" alone: {' or '.join(MEASURED)}"
            )
            return faults
        if self.shares is not None and not self.shares:
            faults.append(f"{as_given(('shares',), '')}, wanted some, such as 10%,20%,30%")
        for share in self.shares or ():
            try:
                _structures(self.pattern, share)
            except PatternError:
                faults.append(
                    f"{as_given(('shares',), share)}, wanted a share such as 10% or a number such"
                    " as 3, which removes some and not all"
                )
        if self.out is not None and PurePath(self.out).suffix.lower() not in CURVE_FILES:
            faults.append(
                f"{as_given(('out',), self.out)}, wanted a name in {', '.join(CURVE_FILES)}"
            )
        return faults

    @property
    def chosen_method(self) -> str:
        """The method, that of what is removed where none was named."""
        return MEASURED[self.pattern].method if self.method is None else self.method

    def patterns(self) -> tuple[Structures, ...]:
        """The shares as patterns; none if they follow from the model."""
        return tuple(_structures(self.pattern, share) for share in self.shares or ())


def _structures(unit: str, share: str) -> Structures:
    """So many structures, or such a share of them, which may be written as a fraction: 0.5.

    Raises:
        PatternError: it is neither, or none or all of them.
    """
    read: Pattern | None = None
    with suppress(PatternError):
        read = parse_pattern(share)
    if isinstance(read, Unstructured):
        return Structures(unit, share=read.ratio)
    read = parse_pattern(f"{unit}-{share}")
    assert isinstance(read, Structures)
    return read


def split_cliff_options(values: Mapping[str, Any]) -> tuple[CliffSettings, dict[str, Any]]:
    """The settings of a curve, and the keys of a recipe that it takes, out of one mapping.

    Raises:
        RecipeError: a key is neither, or a setting of the curve is wrong.
    """
    taken = {name: values[name] for name in TAKEN if name in values}
    own = {name: value for name, value in values.items() if name not in taken}
    return CliffSettings.build(own), taken
