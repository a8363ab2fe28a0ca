"""What does not go together where weights are quantised, or where nothing is pruned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from secateur.errors import PatternError, RecipeError
from secateur.quantization import parse_scheme
from secateur.recipe.faults_of_structures import faults_of_order
from secateur.recipe.stage import KIND, PRUNE
from secateur.recipe.wording import name_of
from secateur.sparsity import Dense, Structures, parse_pattern

IDLE_METHOD = "magnitude"
"""The method of the pattern dense: it needs no data, and has nothing to do."""


def with_method(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a stage; of one with the pattern dense and no method, with one."""
    if "method" not in values and type(_pattern_of(values.get("pattern"))) is Dense:
        return {**values, "method": IDLE_METHOD}
    return values


def faults_of_quantization(values: Mapping[str, Any], run: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the quantisation of a stage, or with a pattern that prunes nothing.

    Args:
        values: settings of the stage, unchecked.
        run: settings of the run, unchecked.
    """
    written, by = values.get("quantize"), values.get("quantize_by")
    pattern = _pattern_of(values.get("pattern"))
    if type(pattern) is Dense and values.get("method", IDLE_METHOD) != IDLE_METHOD:
        yield f"pattern dense prunes nothing: leave {name_of('method')} out"
    if written is None:
        others = values.get("patterns")
        written_patterns = others.values() if isinstance(others, Mapping) else ()
        if any(type(_pattern_of(one)) is Dense for one in (pattern, *written_patterns)):
            yield (
                f"pattern dense prunes nothing: give {name_of('quantize')}, such as w4a16, or a"
                " pattern such as 2:4"
            )
        if by is not None:
            yield f"{name_of('quantize_by')} says how to round: give {name_of('quantize')} too"
        return
    if isinstance(written, str):
        try:
            parse_scheme(written)
        except RecipeError as fault:
            yield str(fault)
    if isinstance(pattern, Structures):
        yield (
            f"pattern {pattern} removes structures: {name_of('quantize')} is for a stage after it,"
            " such as one of pattern dense"
        )
    if run.get("images") is not None:
        yield f"{name_of('quantize')} is for language models, and there are images"
    elif by == "gptq" and run.get("calibration") is None:
        yield f"gptq needs calibration text: give {name_of('calibration')}, or rtn"


def faults_of_sequence(stages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What does not go in this order, a phrase each: structures go first, quantising goes last.

    Args:
        stages: the settings of each, unchecked.
    """
    yield from faults_of_order(stages)
    for number, settings in enumerate(stages[:-1], 1):
        if settings.get(KIND, PRUNE) == PRUNE and settings.get("quantize") is not None:
            yield (
                f"stage {number} quantises, and stage {number + 1} would move its weights off the"
                " grid: quantise in the last stage"
            )


def _pattern_of(written: Any) -> Any:
    """A pattern that can be read; None of what is told elsewhere to be none."""
    try:
        return parse_pattern(written)
    except (PatternError, TypeError):
        return None
