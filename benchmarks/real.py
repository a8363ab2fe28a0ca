"""Pretrained language models: every method measured as the papers do, on what pip alone brings.

    python benchmarks/real.py grid --out FOLDER --wikitext TEXTS --books TEXTS
    python benchmarks/real.py tables --out FOLDER --markdown docs/benchmarks.md

The parts, any of them in one call:

    grid       every method at 2:4, some at 50 %: perplexity, damage removed, time, memory.
               --methods, --patterns, --seeds choose others; all patterns are 2:4 4:8 50% 60%
    scales     RGS, GBLM and Wanda at 32 x 256, 64 x 512 and 128 x 512 calibration tokens
    mixtures   calibrated on WikiText-2, on books, on what the model writes itself (self), on the
               standard library (builtin), on pairs and on all of them; measured on all texts
    paper      Wanda++ with the published settings at several learning rates, beside Wanda
    tasks      zero-shot tasks of dense, Wanda and ALPS-RO, with paired standard errors
    recovery   Wanda and ALPS-RO at 2:4 trained back, packed, loaded, compared
    tables     of all that is finished; nothing is run. A cell that was not measured is empty

The models are smollm2-135m (SmolLM2-135M-Instruct) and, in grid and scales, gemma3-270m, which
pip brings without a hub (`real_models.py`: dequantised from 4 bits, so the hub's own give other
numbers); --model FOLDER is any other. Text is WikiText-2: calibrated on the validation text and
measured on the test text of --wikitext (valid.txt and test.txt) or, without it, of the hub (then
calibrated on its training text); out of domain a folder of books (--books, with calibration/ and
heldout/) and the standard library's source, which comes with Secateur.

What is done is not done again; what failed is told with its reason, and tried again the next time.
OUT/log.jsonl has a line for each run: date, commit, processor, threads, seconds, and how many cores
other programs kept at work meanwhile. OUT/MODEL/SETTING/runs has the records, which `secateur
report OUT/MODEL` puts on a page.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import real_plan
import real_tables
import results
import yaml
from real_log import Log, Notices
from real_models import PACKAGED, fetched
from real_plan import Texts
from transformers.utils import logging

from secateur.comparison.runs import Run, run_comparison
from secateur.errors import SecateurError
from secateur.machine.device import choose_device
from secateur.machine.waiting import Watch
from secateur.record import RunRecord

PARTS = ("grid", "scales", "mixtures", "paper", "tasks", "recovery")


def main() -> None:
    options = parse()
    results.check(options)
    logging.disable_progress_bar()
    texts = Texts.of(options.wikitext, options.books)
    models = chosen_models(options)
    log = Log(options.out, choose_device(options.device))
    parts = [part for part in options.parts if part != "tables"]
    with Watch(sys.stderr):
        for part in parts:
            for name in models_of(part, models, options):
                do(part, name, models[name], texts, log, options)
    shown = {part: models_of(part, models, options) for part in parts or PARTS}
    real_tables.show(shown, texts, log, options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("parts", nargs="+", choices=[*PARTS, "tables"], metavar="PART", help="see above")
    add("--out", type=Path, required=True, help="folder of all results")
    add("--models", nargs="+", metavar="NAME", help="of those that pip brings; none: see above")
    add("--model", type=Path, action="append", default=[], help="another model's folder")
    add(
        "--models-folder", type=Path, default=Path.home() / ".cache" / "secateur-real",
        help="where the models lie, or are fetched to",
    )  # fmt: skip
    add("--wikitext", type=Path, metavar="FOLDER", help="valid.txt, test.txt; none: the hub's")
    add("--books", type=Path, metavar="FOLDER", help="with calibration/ and heldout/")
    add("--methods", nargs="+", help="none: those of the part")
    add("--patterns", nargs="+", help="none: those of the part")
    add("--seeds", nargs="+", type=int, help="none: those of the part")
    add("--samples", type=int, help="calibration sequences")
    add("--sequence-length", type=int, help="tokens of sequences and windows")
    add("--windows", type=int, help="of each held-out text; 0: all")
    add("--dtype", choices=["float32", "bfloat16", "float16"])
    add("--device", default="auto")
    add("--calibrations", nargs="+", metavar="A+B", help="of mixtures; none: singles, pairs, all")
    add("--rates", nargs="+", type=float, default=real_plan.RATES, help="learning rates of paper")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="more settings of every recipe")
    add("--tasks", nargs="+", help="none: all of --tasks-folder, or one made from held-out text")
    add("--tasks-folder", type=Path, metavar="FOLDER", help="of lm-eval's task files and code")
    add("--limit", type=int, help="questions of each task; none: all")
    add("--minutes", type=float, default=30, help="of each recovery, on the machine at hand")
    add("--steps", type=int, help="of each recovery; none: as many as --minutes has room for")
    add("--train-on", default="wikitext+self", metavar="A+B", help="texts of a recovery")
    add("--objective", choices=["lm", "distill"], default="distill", help="of a recovery")
    add("--train-samples", type=int, default=448, help="sequences that a recovery reads")
    add("--train", choices=["adapters", "weights", "norms"], default="weights", help="likewise")
    add("--learning-rate", type=float, help="peak of a recovery's; none: by what is trained")
    add("--overwrite", action="store_true", help="do finished runs again")
    results.add_options(parser)
    parser.set_defaults(**real_plan.SIZE)
    options = parser.parse_args()
    options.set = dict(setting.partition("=")[::2] for setting in options.set)
    options.name = "-".join(f"{key}={value}" for key, value in options.set.items())
    options.set = {key: yaml.safe_load(value) for key, value in options.set.items()}
    options.windows = options.windows or None
    return options


def chosen_models(options: argparse.Namespace) -> dict[str, Path]:
    """Name -> folder of every model; those that pip brings are fetched if they are not there."""
    names = options.models or ([] if options.model else list(PACKAGED))
    reads_only = options.parts == ["tables"]
    models = {
        name: options.models_folder / name if reads_only else fetched(name, options.models_folder)
        for name in names
    }
    return {**models, **{folder.resolve().name: folder for folder in options.model}}


def models_of(part: str, models: Mapping[str, Path], options: argparse.Namespace) -> list[str]:
    """Those of a part: of the two that pip brings both in the grid and the scales, unless said."""
    both = part in ("grid", "scales") or options.models is not None
    return [name for name in models if both or name != real_plan.SECOND]


def do(
    part: str, name: str, model: Path, texts: Texts, log: Log, options: argparse.Namespace
) -> None:
    """One part on one model."""
    by_pattern: dict[str, dict[Path, Run]] = {}
    for run in planned(part, name, model, texts, log, options):
        by_pattern.setdefault(run.recipe.pattern, {}).setdefault(run.folder, run)
    finished: list[tuple[Run, RunRecord]] = []
    for runs in by_pattern.values():  # a pattern that does not fit the model spoils no other
        finished += do_runs(list(runs.values()), log, overwrite=options.overwrite)
    if part in ("tasks", "recovery"):
        import real_after

        further = real_after.ask if part == "tasks" else real_after.recover
        further(finished, texts, log, options)


def planned(
    part: str, name: str, model: Path, texts: Texts, log: Log, options: argparse.Namespace
) -> Iterator[Run]:
    """The runs of a part on a model; what cannot be planned is told."""
    for group in real_plan.groups(part, name, options):
        try:
            yield from real_plan.runs_of(group, options.out / name, model, texts, options)
        except KeyError as fault:
            log.say(f"{name} {group.setting}: left out, for want of --{fault.args[0]}")
        except SecateurError as fault:
            log.failed(options.out / name / group.setting, fault)


def do_runs(
    runs: Sequence[Run], log: Log, *, overwrite: bool = False
) -> Iterator[tuple[Run, RunRecord]]:
    """Do what is still to do of the runs of one model and pattern; what fails is left behind."""
    todo = [run for run in runs if overwrite or not differs(run, log)]
    while todo:
        log.begin(todo[0].folder)
        try:
            for run, record, repeated in run_comparison(todo, Notices(log), overwrite=overwrite):
                todo = todo[1:]
                log.done(run.folder, record, repeated=repeated)
                yield run, record
                if todo:
                    log.begin(todo[0].folder)
        except Exception as fault:  # whatever it is, the other cells can still be measured
            if not isinstance(fault, SecateurError):
                traceback.print_exc()
            log.failed(todo[0].folder, fault)
            todo = todo[1:]


def differs(run: Run, log: Log) -> bool:
    """Whether another recipe's run lies where this one would, which is told."""
    try:
        run.finished()
    except SecateurError as fault:
        log.failed(run.folder, fault)
        return True
    return False


if __name__ == "__main__":
    main()
