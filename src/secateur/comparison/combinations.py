"""Which runs a comparison has: methods, patterns, seeds and schemes, where they go together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from secateur import methods
from secateur.comparison.runs import RUNS, Run
from secateur.comparison.settings import ComparisonSettings, is_of_structures, options_for
from secateur.errors import RecipeError
from secateur.recipe import Recipe
from secateur.recipe.faults_of_quantization import IDLE_METHOD
from secateur.recipe.wording import name_of
from secateur.sparsity import NOTHING_PRUNED, Structures, parse_pattern


def plan_runs(
    settings: ComparisonSettings, options: Mapping[str, Any], *, keep_models: bool = False
) -> list[Run]:
    """Every run of the comparison, in the order that shares most.

    Args:
        settings: the methods, patterns, seeds and schemes to combine; what is named twice, in
            whatever spelling, is done once. Magnitude needs no calibration and so is the same for
            every seed: it runs for the first one only.
        options: every other key of a recipe, each for the methods that it concerns; `text`, or
            `images` for a classifier, must be among them.
        keep_models: write the pruned models too, beside their records.

    Raises:
        RecipeError, PatternError: something is unknown, missing or does not fit.
    """
    method_names, schemes = settings.chosen_methods, settings.chosen_schemes
    patterns, seeds = settings.patterns, settings.seeds
    for what, given in (
        ("method", method_names), ("pattern", patterns), ("seed", seeds), ("scheme", schemes)
    ):  # fmt: skip
        if not given:
            raise RecipeError(f"no {what} to compare", wanted="at least one")
    if options.get("text") is None and options.get("images") is None:
        raise RecipeError("no held-out text to measure on", hint="--text SOURCE")
    runs = []
    spellings = {str(parse_pattern(one)): is_of_structures(one) for one in patterns}
    mend = bool(options.get("mend"))
    if mend and not any(spellings.values()) and not any(schemes):
        raise RecipeError(f"{name_of('mend')} is for patterns that remove structures, or quantize")
    pruning = [one for one in spellings if one != NOTHING_PRUNED]
    suiting = {name: [one for one in pruning if _suits(name, one)] for name in method_names}
    if pruning and (idle := [name for name, some in suiting.items() if not some]):
        raise RecipeError(
            f"method {idle[0]} goes with none of the patterns {', '.join(pruning)}",
            wanted="methods of weights for patterns of weights, others for blocks-2 and the like",
        )
    if NOTHING_PRUNED in spellings:  # quantised alone, by no method
        suiting.setdefault(IDLE_METHOD, []).append(NOTHING_PRUNED)
    for seed, method in itertools.product(dict.fromkeys(seeds), suiting):
        for pattern, scheme in itertools.product(suiting[method], schemes):
            if _scheme_is_left_out(pattern, scheme, schemes):
                continue
            asked = {**options, "quantize": scheme}
            drawn = mend or _rounds_by_data(asked) or methods.get(method).needs_calibration
            if seed != seeds[0] and not drawn:
                continue
            if scheme is None and any(schemes):
                asked.pop("quantize_by", None)
            by = "" if pattern == NOTHING_PRUNED else f"{method}_"
            to = "" if scheme is None else f"_{scheme.replace(':', '-')}"
            name = f"{by}{pattern.replace(':', 'of').replace('%', 'pct')}{to}_seed{seed}"
            folder = Path(settings.out) / RUNS / name
            values = {
                **options_for(method, asked, structures=spellings[pattern]),
                "method": method,
                "pattern": pattern,
                "seed": seed,
                "out": str(folder) if keep_models else None,
            }
            runs.append(Run(name, folder, Recipe.build(values)))
    return runs


def _rounds_by_data(options: Mapping[str, Any]) -> bool:
    """Whether weights are rounded by what the calibration says."""
    rounds = options["quantize"] is not None and options.get("quantize_by") != "rtn"
    return rounds and options.get("calibration") is not None


def _scheme_is_left_out(pattern: str, scheme: str | None, schemes: Sequence[str | None]) -> bool:
    """Whether a pattern goes without a scheme, as others of the comparison do: the dense model is
    measured anyhow, and what removes structures is not quantised in the same stage."""
    if pattern == NOTHING_PRUNED:
        return scheme is None and any(schemes)
    return is_of_structures(pattern) and scheme is not None and None in schemes


def _suits(method: str, pattern: str) -> bool:
    """Whether a method works on a pattern: of weights, or of some kind of structures."""
    known, asked = methods.get(method), parse_pattern(pattern)
    return asked.unit in known.units if isinstance(asked, Structures) else known.removal is None


def left_out(settings: ComparisonSettings, options: Mapping[str, Any]) -> Iterator[str]:
    """A line on what was asked for and does not go together, and one on what is not mended."""
    schemes = settings.chosen_schemes
    patterns = [one for one in dict.fromkeys(settings.patterns) if one != NOTHING_PRUNED]
    suiting = {
        name: [one for one in patterns if not _suits(name, one)]
        for name in dict.fromkeys(settings.methods or ())
    } | {
        one: [str(scheme) for scheme in schemes if _scheme_is_left_out(one, scheme, schemes)]
        for one in patterns
    }
    if pairs := [f"{name} with {', '.join(others)}" for name, others in suiting.items() if others]:
        yield f"left out, as they do not go together: {'; '.join(pairs)}"
    whole = [one for one in patterns if not is_of_structures(one)]
    if options.get("mend") and None in schemes and whole:
        yield (
            f"{name_of('mend')} is for what is quantised or has lost structures: rows of"
            f" {', '.join(whole)} that are neither are not mended"
        )
