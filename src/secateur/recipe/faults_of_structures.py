"""What does not go together where a pattern removes structures, or does not remove any."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from secateur.errors import PatternError
from secateur.methods import Method, Refine, every_remover
from secateur.recipe.stage import KIND, PRUNE
from secateur.recipe.wording import name_of
from secateur.sparsity import IN_FULL, SELECTION_KEYS, Pattern, Structures, parse_pattern

MULTIPLE = 64
"""Of which so many channels are left where a share of them is removed, if nothing else is asked."""
_EXAMPLES = {
    "blocks": "blocks-2", "ffn": "ffn-20%", "heads": "heads-1", "experts": "experts-25%"
}  # fmt: skip
"""A pattern of every kind of structures."""
_IDLE: dict[str, tuple[object, ...]] = {key: (None, [], {}, (), 0) for key in SELECTION_KEYS} | {
    "route_all": (None, False), "schedule": (None, "block"), "allocation": (None, "uniform"),
}  # fmt: skip
"""Settings that choose among weights, with the values that choose nothing."""


def faults_of_structures(
    method: Method, patterns: tuple[Pattern, ...], values: Mapping[str, Any], run: Mapping[str, Any]
) -> Iterator[str]:
    """What does not go with removing structures, or only with that, a phrase each.

    Args:
        method: of the stage.
        patterns: that its matrices may get, its own first; none if they cannot be read.
        values: settings of the stage, unchecked.
        run: settings of the run, unchecked.
    """
    mend = values.get("mend")
    if not patterns:
        return
    given = "method" if "method" in values else "the default method"
    pattern = f"{patterns[0]}" if "pattern" in values else f"the default {patterns[0]}"
    multiple = values.get("width_multiple")
    if multiple not in (None, MULTIPLE) and not _is_share_of_channels(patterns[0]):
        asked = name_of("width_multiple")
        yield f"{asked} is for a share of channels, such as ffn-20%: leave it out"
    if not any(isinstance(pattern, Structures) for pattern in patterns):
        if method.removal is not None:
            yield (
                f"method {method.name} removes structures, and {pattern} is a pattern of weights:"
                f" give one such as {_EXAMPLES[method.units[0]]}"
            )
        if mend and values.get("quantize") is None:
            yield (
                f"{name_of('mend')} is for what is left of structures or is quantised: leave it out"
            )
        elif mend and method.refine is Refine.REGIONAL:
            yield f"method {method.name} has the regional optimiser: leave {name_of('mend')} out"
        elif mend and run.get("calibration") is None:
            yield _no_text_to_mend()
        return
    if not isinstance(patterns[0], Structures):
        by = name_of("pattern")
        yield f"{name_of('patterns')} are of matrices: structures are removed by {by}"
        return
    if idle := [key for key, nothing in _IDLE.items() if values.get(key) not in nothing]:
        named = ", ".join(map(name_of, idle))
        yield f"pattern {patterns[0]} removes structures whole: leave {named} out"
    if patterns[0].unit not in method.units:
        able = ", ".join(one.name for one in every_remover(patterns[0].unit))
        unable = f"{given} {method.name} does not score {IN_FULL[patterns[0].unit]}"
        yield f"{unable}, pattern {patterns[0]} wants one of {able or 'no method of this version'}"
    if run.get("images") is not None:
        yield f"pattern {patterns[0]} is for language models, and there are images"
    if mend and run.get("calibration") is None:
        yield _no_text_to_mend()


def _no_text_to_mend() -> str:
    return f"{name_of('mend')} needs calibration text: give {name_of('calibration')}"


def _is_share_of_channels(pattern: Pattern) -> bool:
    return isinstance(pattern, Structures) and pattern.unit == "ffn" and pattern.share is not None


def faults_of_order(stages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What does not go in this order: groups of zeros and blocks are numbered anew, a phrase each.

    Args:
        stages: the settings of each, unchecked.
    """
    pruned = None
    for number, settings in enumerate(stages, 1):
        if settings.get(KIND, PRUNE) != PRUNE:
            continue
        if not _removes(settings):
            pruned = number
        elif pruned is not None:
            yield (
                f"stage {number} removes structures, which goes before the zeros of stage {pruned}"
            )


def _removes(settings: Mapping[str, Any]) -> bool:
    """Whether a stage removes structures; what cannot be read is told of elsewhere."""
    try:
        return isinstance(parse_pattern(settings.get("pattern", "2:4")), Structures)
    except (PatternError, TypeError):
        return False
