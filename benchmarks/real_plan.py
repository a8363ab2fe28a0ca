"""What `real.py` measures: every part as a list of runs, each with a folder of its own.

    OUT/MODEL/SETTING/runs/METHOD_PATTERN_seedN/run.json

A setting is what all its methods have in common: how many tokens of which text they are calibrated
on. Parts that need the same run share it, because it lies in the same folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from secateur.comparison.combinations import plan_runs
from secateur.comparison.runs import Run
from secateur.comparison.settings import ComparisonSettings
from secateur.data.builtin import BUILTIN

METHODS = (
    *("magnitude", "wanda", "wanda++-rgs", "gblm", "sparsegpt", "alps"),
    *("wanda++-ro", "wanda++", "alps-ro"),
)
QUICK, SLOW = METHODS[:6], METHODS[6:]
"""Methods by what they cost: without the regional optimiser, and with it."""
HALF = ("magnitude", "wanda", "sparsegpt", "alps", "alps-ro")
"""Methods at 50 %."""
PATTERNS = ("2:4", "4:8", "50%", "60%")
SEEDS = (0, 1, 2)
FIRST, SECOND = "smollm2-135m", "gemma3-270m"
"""The model of which most is measured, and one of which the grid and the scales are."""
KEPT = ("wanda", "alps-ro")
"""Methods whose first model at 2:4 is kept: it is asked tasks, trained back and packed."""
SCALED, MIXED = ("wanda", "wanda++-rgs", "gblm"), ("wanda", "alps")
"""Methods of the scales, and of the mixtures."""
SCALES = ((32, 256), (64, 512), (128, 512))
RATES = (3e-7, 3e-6, 3e-5, 3e-4)
"""Learning rates of the paper's optimiser; the first is the published one."""
SIZE = {"samples": 64, "sequence_length": 512, "windows": 48, "dtype": "bfloat16"}
"""What can be done on two cores; bfloat16 is three times as fast as float32 where there is AMX."""
SOURCES = ("wikitext", "books", "self", BUILTIN)
MIXTURES = (
    *SOURCES,
    *("wikitext+books", "wikitext+self", f"wikitext+{BUILTIN}", "books+self", f"books+{BUILTIN}"),
    *(
        f"self+{BUILTIN}",
        f"books+self+{BUILTIN}",
        f"wikitext+self+{BUILTIN}",
        "wikitext+books+self",
    ),
    f"wikitext+books+self+{BUILTIN}",
)
"""Alone, every pair, all but one, all: so every text is once left out of the whole mixture."""


@dataclass(frozen=True)
class Texts:
    """Where text comes from.

    Attributes:
        calibration: name -> source, as `secateur prune --calibration` takes it.
        heldout: name -> source, as `--text` does; of a part the first two, of mixtures all.
        domain: name of a held-out text -> name of the calibration that is of its collection.
    """

    calibration: Mapping[str, str]
    heldout: Mapping[str, str]
    domain: Mapping[str, str]

    @classmethod
    def of(cls, wikitext: Path | None, books: Path | None) -> Texts:
        """Folders, or what comes with the package and from the hub where there is none."""
        calibration = {"wikitext": "wikitext2", "self": "self", BUILTIN: BUILTIN}
        heldout, domain = {"WikiText-2": "wikitext2"}, {"WikiText-2": "wikitext"}
        if wikitext is not None:
            calibration["wikitext"] = str(wikitext / "valid.txt")
            heldout["WikiText-2"] = str(wikitext / "test.txt")
        if books is not None:
            calibration["books"] = str(books / "calibration")
            heldout["books"], domain["books"] = str(books / "heldout"), "books"
        heldout["source code"], domain["source code"] = BUILTIN, BUILTIN
        return cls(calibration, heldout, domain)

    def source(self, mixture: str) -> str | list[str]:
        """The calibration of a mixture such as "wikitext+self".

        Raises:
            KeyError: one of its parts is not there.
        """
        sources = [self.calibration[name] for name in mixture.split("+")]
        return sources if len(sources) > 1 else sources[0]


@dataclass(frozen=True)
class Group:
    """Runs that have everything in common but method, pattern and seed.

    Attributes:
        methods, patterns, seeds: what is combined.
        samples, length: of the calibration, in sequences and tokens of each.
        calibration: its name, or several with a plus sign between.
        name: of the setting, if size and calibration do not tell all.
        texts: how many of the held-out texts it is measured on.
        options: what the recipe has beyond that.
    """

    methods: Sequence[str]
    patterns: Sequence[str]
    seeds: Sequence[int]
    samples: int
    length: int
    calibration: str = "wikitext"
    name: str = ""
    texts: int = 2
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def setting(self) -> str:
        """The folder that these runs have in common."""
        return named(f"{self.samples}x{self.length}", self.name)


def groups(part: str, model: str, asked: argparse.Namespace) -> list[Group]:
    """What a part measures of a model.

    Args:
        part: its name.
        model: its name.
        asked: the options; methods, patterns, seeds and calibrations are None where the part is to
            choose them itself.
    """
    main = Group(SLOW, ("2:4",), SEEDS[:1], asked.samples, asked.sequence_length, name=asked.name)
    many = SEEDS if model == FIRST else SEEDS[:1]
    rows = {
        "grid": lambda: [
            replace(main, methods=QUICK, seeds=many),
            main,
            *([replace(main, methods=HALF, patterns=("50%",))] if model == FIRST else []),
        ],
        "scales": lambda: [
            replace(
                main, methods=SCALED, samples=samples, length=length,
                seeds=SEEDS if samples < 128 else SEEDS[:1],
            )
            for samples, length in SCALES
        ],
        "mixtures": lambda: [
            replace(main, methods=MIXED, calibration=mixture, texts=3,
                    name=mixture_name(asked, mixture))
            for mixture in asked.calibrations or MIXTURES
        ],
        "paper": lambda: [
            replace(main, methods=("wanda", "wanda++")),
            *(
                replace(main, methods=("wanda++",), name=paper_name(asked, rate),
                        options={"preset": "paper", "regional": {"learning_rate": rate}})
                for rate in asked.rates
            ),
        ],
        "tasks": lambda: [replace(main, methods=KEPT)],
        "recovery": lambda: [replace(main, methods=KEPT)],
    }  # fmt: skip
    chosen = [replace(group, options={**asked.set, **group.options}) for group in rows[part]()]
    if part == "grid" and (asked.methods or asked.patterns or asked.seeds):
        chosen = [replace(chosen[0], methods=METHODS, seeds=SEEDS[:1])]
    told = {"methods": asked.methods, "patterns": asked.patterns, "seeds": asked.seeds}
    if part == "paper":
        del told["methods"]
    changes: dict[str, Any] = {name: value for name, value in told.items() if value}
    return [replace(group, **changes) for group in chosen]


def named(*parts: str) -> str:
    """The name of a setting."""
    return "-".join(part for part in parts if part)


def setting_named(asked: argparse.Namespace, name: str | None = None) -> str:
    """The setting of this name at the size that was asked for; none: that of the grid."""
    return named(f"{asked.samples}x{asked.sequence_length}", asked.name if name is None else name)


def mixture_name(asked: argparse.Namespace, mixture: str) -> str:
    """The name of a setting that is measured on all texts."""
    return named("on", mixture, asked.name)


def paper_name(asked: argparse.Namespace, rate: float) -> str:
    """The name of a setting with the paper's optimiser."""
    return named(f"paper-{rate:g}", asked.name)


def runs_of(
    group: Group, folder: Path, model: Path, texts: Texts, asked: argparse.Namespace
) -> Iterator[Run]:
    """The runs of a group.

    Args:
        group: what is measured.
        folder: for the results of this model.
        model: its own.
        texts: where text comes from.
        asked: the options.

    Raises:
        SecateurError: something is unknown, or does not fit.
    """
    first, *others = list(texts.heldout.values())[: group.texts]
    windows = asked.windows and max(1, asked.windows * asked.sequence_length // group.length)
    options = {
        "model": str(model),
        "calibration": texts.source(group.calibration),
        "samples": group.samples,
        "sequence_length": group.length,
        "text": first,
        "also_text": others,
        "windows": windows,
        "dtype": asked.dtype,
        "device": asked.device,
        **({} if "preset" in group.options else {"effort": "fast"}),
        **group.options,
    }
    settings = ComparisonSettings(
        out=str(folder / group.setting),
        methods=tuple(group.methods),
        patterns=tuple(group.patterns),
        seeds=tuple(group.seeds),
    )
    main = setting_named(asked)
    for run in plan_runs(settings, options):
        recipe = run.recipe
        keeps = (group.setting, recipe.pattern, recipe.seed) == (main, "2:4", SEEDS[0])
        if keeps and recipe.method in KEPT:
            recipe = recipe.model_copy(update={"out": str(run.folder)})
        yield Run(f"{group.setting}/{run.name}", run.folder, recipe)
