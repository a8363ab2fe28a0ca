"""What a dry run prints: what every stage would do, and what it would take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape

from secateur.cli.printing import protocol_line
from secateur.cli.terminal import amount, say, warn
from secateur.comparison.cliff import plan_cliff
from secateur.data import TokenBatch
from secateur.pruning.experts import how_many_go
from secateur.pruning.fit import check_plan
from secateur.pruning.prepare import Prepared, check_fit, prepare
from secateur.pruning.reuse import SharedWork
from secateur.recipe import Recipe, RecoverStage
from secateur.recovery.stage import check_training
from secateur.sparsity import IN_FULL, SELECTION_KEYS


def show(recipe: Recipe) -> None:
    """Check everything and print the plan of every stage, on what those before it would leave.

    Raises:
        SecateurError: something does not fit.
    """
    shared, left, length = SharedWork(), None, recipe.sequence_length
    check_fit(recipe, shared)
    for one in recipe.by_stage:
        if one.recovery is None:
            prepared = prepare(one, shared, left=left)
            plan(prepared)
            left = check_plan(prepared.plan, prepared.source)
            if isinstance(calibration := prepared.calibration, TokenBatch):
                length = calibration.protocol.sequence_length  # that the model allows
        else:
            training(one, one.recovery, length)
    say("nothing was done: this was a dry run")


def plan(prepared: Prepared) -> None:
    """Print what a run would do, and what it would take."""
    recipe, shapes = prepared.recipe, prepared.estimate
    source, calibration = prepared.source, prepared.calibration
    for notice in prepared.notices:
        warn(f"[yellow]notice[/] {escape(notice)}")
    rows = [
        ["model", f"{type(source.model).__name__} in {prepared.folder}"],
        ["method", f"{recipe.method} {recipe.spelled_out()['parameters']}"],
        ["pattern", _pattern(prepared)],
        ["calibration", "none" if calibration is None else protocol_line(calibration.protocol)],
        ["blocks", str(shapes.blocks)],
        [
            f"weights to {'prune' if prepared.plan.structures is None else 'remove'}",
            amount(shapes.prunable_weights),
        ],
        ["left as they are", amount(shapes.other_weights)],
        *(["left dense", str(left)] for left in prepared.left_dense),
        ["computed on", f"{source.device} in {str(source.dtype).removeprefix('torch.')}"],
        ["memory of a block", f"{amount(shapes.block_bytes, 'B')} with its statistics"],
        ["memory of activations", amount(shapes.activation_bytes, "B")],
        *_of_device(prepared),
        ["work", f"{amount(shapes.flops, 'FLOP')} in matrix products"],
        ["result", recipe.out or "nowhere: no --out was given"],
    ]
    if regional := recipe.spelled_out()["regional"]:
        rows.insert(3, ["regional", str(regional)])
    if selection := _selection(recipe):
        rows.insert(3, ["selection", selection])
    _say(rows)


def _pattern(prepared: Prepared) -> str:
    """What is pruned or removed, and how much that is."""
    pattern, structures = prepared.recipe.chosen_pattern, prepared.plan.structures
    if structures is None:
        return f"{pattern} ({pattern.sparsity:.2%} zeros)"
    total = prepared.source.how_many(structures.unit)
    gone = how_many_go(prepared.source, structures, prepared.plan.multiple)
    where = "" if structures.unit == "blocks" else " of every block"
    mended = ", and the rest is mended" if prepared.recipe.mend else ""
    return f"{pattern} ({gone} of {total} {IN_FULL[structures.unit]}{where} go{mended})"


def _of_device(prepared: Prepared) -> list[list[str]]:
    """What the run takes of an accelerator; nothing on a CPU."""
    placed = prepared.activations
    if placed.estimated is None or placed.free is None:
        return []
    where = "main memory" if placed.host else "its memory"
    takes = f"about {amount(placed.estimated, 'B')} of {amount(placed.free, 'B')} free"
    return [["memory of the device", f"{takes}, activations in {where}"]]


def show_cliff(values: Mapping[str, Any]) -> None:
    """Check everything and print what a curve would be measured of.

    Raises:
        SecateurError: something does not fit.
    """
    plan = plan_cliff(values)
    prepared, settings = plan.prepared, plan.settings
    source, calibration = prepared.source, prepared.calibration
    for notice in prepared.notices:
        warn(f"[yellow]notice[/] {escape(notice)}")
    counts = ", ".join(map(str, plan.counts))
    _say(
        [
            ["model", f"{type(source.model).__name__} in {prepared.folder}"],
            ["method", f"{settings.method} {prepared.recipe.spelled_out()['parameters']}"],
            ["removed", f"{counts} of {plan.total} {IN_FULL[settings.pattern]}"],
            ["calibration", "none" if calibration is None else protocol_line(calibration.protocol)],
            ["text", protocol_line(plan.heldout.protocol)],
            ["computed on", f"{source.device} in {str(source.dtype).removeprefix('torch.')}"],
            ["memory of a block", amount(prepared.estimate.block_bytes, "B")],
            ["memory of activations", amount(prepared.estimate.activation_bytes, "B")],
            *_of_device(prepared),
            ["result", settings.out or "printed only: no --out was given"],
        ]
    )
    say("nothing was done: this was a dry run")


def training(recipe: Recipe, stage: RecoverStage, length: int) -> None:
    """Print what the last stage of a run would train, on sequences of so many tokens."""
    check_training(recipe, stage)
    batch = stage.batch_size * stage.accumulation
    steps = f"{stage.steps} of {batch} x {length} tokens"
    held = "the whole model"
    if stage.train == "weights":
        held += ", its weights in float32 with gradients and two moments"
    if stage.objective == "distill":
        held += ", and the dense model"
    rows = [
        ["then", stage.kind],
        ["trains", f"{stage.train}, objective {stage.objective}"],
        ["steps", f"{steps}, rate {stage.chosen_learning_rate:g}"],
        ["text", f"{stage.trained_sequences + stage.validation} sequences of "
                 + " + ".join(recipe.sources)],
        ["memory", held],
    ]  # fmt: skip
    _say(rows)


def _say(rows: list[list[str]]) -> None:
    """Print names and facts, a line each."""
    for name, fact in rows:
        say(f"{name:<22} {escape(fact)}")


def _selection(recipe: Recipe) -> str:
    """The settings that choose matrices, in one phrase; empty if all are pruned alike."""
    patterns = {"patterns": list(map("=".join, recipe.patterns.items()))}
    chosen = {key: patterns.get(key, getattr(recipe, key)) for key in SELECTION_KEYS}
    return ", ".join(
        f"{key} {' '.join(value) if isinstance(value, list) else value}"
        for key, value in chosen.items()
        if value
    )
