"""How to repeat what was compared: facts of all runs; recipe, commands and hashes of every row."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import yaml

from secateur.data import ImageProtocol, Protocol
from secateur.recipe import Recipe
from secateur.recipe.setting import Mark, names_of
from secateur.record import RunRecord
from secateur.reporting.comparison import Comparison, Row


@dataclass(frozen=True)
class Repetition:
    """How to repeat the runs of a row."""

    name: str
    pattern: str
    commands: tuple[str, ...]
    yaml: str
    calibrations: tuple[tuple[int, str], ...]
    notices: tuple[str, ...]


def facts_of(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """What holds for all runs of a comparison: name and value."""
    runs = comparison.runs
    yield "model", comparison.model
    if runs[0].commit is not None:
        yield "commit", runs[0].commit
    yield "architecture", comparison.architecture
    yield "prunable weights", f"{comparison.weights:,} in {runs[0].dense_blocks} blocks"
    for text in comparison.texts:
        yield (
            "text",
            f"{_described(text.protocol)}, tokens sha256 {text.protocol.token_sha256[:12]}",
        )
    protocols = [run.calibration for run in runs if run.calibration is not None]
    for said in dict.fromkeys(map(_described, protocols)):
        yield "calibration", said
    seeds = sorted({run.settings["seed"] for run in runs})
    yield ("seeds" if len(seeds) > 1 else "seed"), ", ".join(map(str, seeds))
    yield "runs", f"{len(runs)}, {_ends([run.created for run in runs])}"
    yield "computed in", ", ".join(dict.fromkeys(f"{run.dtype} on {run.device}" for run in runs))
    yield "machine", _common([run.machine for run in runs])
    yield "versions", _common([run.versions for run in runs])


def _described(protocol: Protocol | ImageProtocol) -> str:
    """Where tokens or images came from, and how they were cut; of a mixture every part."""
    if isinstance(protocol, Protocol) and protocol.parts:
        parts = " + ".join(map(_described, protocol.parts))
        return f"{cut_of(protocol)}: {parts}"
    sampling = "images" if isinstance(protocol, ImageProtocol) else protocol.sampling
    drawn = f" ({sampling})" if sampling in ("documents", "joined", "excerpts") else ""
    return f"{protocol.source}: {cut_of(protocol)}{drawn}"


def _ends(times: Sequence[str]) -> str:
    first, last = min(times)[:10], max(times)[:10]
    return first if first == last else f"{first} to {last}"


def _common(facts: Sequence[dict[str, str]]) -> str:
    """Key and value of every fact; all values, where runs differ."""
    keys = dict.fromkeys(key for fact in facts for key in fact)
    return ", ".join(
        f"{key} {' / '.join(dict.fromkeys(fact[key] for fact in facts if key in fact))}"
        for key in keys
    )


def cut_of(protocol: Protocol | ImageProtocol) -> str:
    """How tokens were cut: number, length and beginning; of images, how many."""
    if isinstance(protocol, ImageProtocol):
        return f"{protocol.images} images"
    unit = "windows" if protocol.sampling == "windows" else "sequences"
    begun = f", {protocol.beginning}" if protocol.beginning else ""
    return f"{protocol.sequences} {unit} of {protocol.sequence_length} tokens{begun}"


def recipe_of(comparison: Comparison, row: Row) -> Repetition:
    """How to repeat the runs of a row."""
    name = f"{row.method}-{row.pattern}".replace(":", "of").replace("%", "").replace(" + ", "_")
    file = f"{name}.yaml"
    return Repetition(
        name=row.name,
        pattern=row.pattern,
        commands=tuple(_commands(comparison, row, file)),
        yaml=f"# {file}\n" + _as_yaml(row.runs[0]),
        calibrations=tuple(
            (run.settings["seed"], run.calibration.sha256)
            for run in row.runs
            if run.calibration is not None
        ),
        notices=tuple(dict.fromkeys(_notices(row))),
    )


def _commands(comparison: Comparison, row: Row, file: str) -> Iterator[str]:
    for run in row.runs:
        out = str(run.settings.get("out") or f"pruned-{run.recipe['seed']}")
        yield shlex.join(["secateur", "prune", "--recipe", file, "--seed",
                          str(run.settings["seed"]), "--out", out])  # fmt: skip
    for text in comparison.texts:
        bos = [] if text.protocol.bos is None else ["--bos", text.protocol.bos]
        yield shlex.join(["secateur", "evaluate", out, "--text", text.protocol.source,
                          "--sequence-length", str(text.protocol.sequence_length), *bos,
                          "--windows", str(text.protocol.sequences),
                          "--against", comparison.model])  # fmt: skip


def _as_yaml(run: RunRecord) -> str:
    """The recipe of a run: what decides its result, but the seed, which the commands name."""
    deciding = {*names_of(Recipe, Mark.RESULT, Mark.CONTENT)} - {"seed"}
    shared = {name: value for name, value in run.recipe.items() if name in deciding}
    return yaml.safe_dump(shared, sort_keys=False, allow_unicode=True, default_flow_style=None)


def _notices(row: Row) -> Iterator[str]:
    for run in row.runs:
        yield from run.notices
        for stage in run.stages:
            for block in stage.blocks:
                yield from block.notices
