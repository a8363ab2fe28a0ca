"""The library's front doors: each does what the command of its name does, and gives a record.

The examples follow each other: `prune` writes "pruned" in its own, and notes.txt is any text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, overload

from torch import Tensor

from secateur.checkpoint import locate
from secateur.checkpoint.in_memory import is_in_memory
from secateur.checkpoint.load import load as load
from secateur.comparison.pipeline import FinishedRun, do_comparison, plan_comparison
from secateur.comparison.settings import split_options
from secateur.data.token_files import tokens_in_memory
from secateur.errors import CheckpointError, OutputError, RecipeError, closest
from secateur.evaluation import Classification, Evaluation, EvaluationSettings, TaskEvaluation
from secateur.evaluation.images import evaluate_images
from secateur.evaluation.text import evaluate_text
from secateur.evaluation.zero_shot import evaluate_tasks
from secateur.export import pack as pack
from secateur.export import pack_gguf as pack_gguf
from secateur.export import unpack as unpack
from secateur.inference import accelerate_inference as accelerate_inference
from secateur.machine.device import plain_computing
from secateur.machine.paths import Location, as_path, location, pinned
from secateur.progress import Progress
from secateur.pruning import pipeline
from secateur.recipe import Recipe
from secateur.recipe.setting import without_paths
from secateur.record import RunRecord, add_to_record, find_records, record_to_add_to
from secateur.record.check import Proof, check_folder
from secateur.recovery import Recovery, run_recovery
from secateur.recovery.stage import run_stages
from secateur.reporting import comparing_alone, write_comparison, write_report
from secateur.reporting.cliff import cliff as cliff
from secateur.reporting.page import ComparisonResult, Report, ReportFormat

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@plain_computing()
def prune(
    model: Location | PreTrainedModel,
    *,
    method: str | None = None,
    pattern: str | float | None = None,
    calibration: Location | Sequence[Location] | Tensor | Mapping[str, Any] | None = None,
    out: Location | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> RunRecord:
    """Prune a checkpoint into a new folder, or a model in memory in place.

    Args:
        model: folder or hub name; or a transformers model, which keeps its device and dtype.
        method: see `secateur methods`; wanda++ if neither it nor `stages` is given.
        pattern: "50%", 0.5, "2:4", ...; 2:4 if it is not given.
        calibration: as on the command line, or a list of several; for a model in memory also
            int64 token ids [sequences, tokens], alone or in a batch without padding, or texts with
            `tokenizer`; for a classifier pixel_values, float [images, channels, height, width].
        out: folder for the result; none with a model in memory.
        tokenizer: for texts with a model in memory.
        progress: told what happens; silent by default.
        options: every other key of a recipe (`secateur.recipe.Recipe`), such as samples, text.

    Returns:
        the record of the run; `run.json` in the result folder holds the same.

    Raises:
        SecateurError: bad input, in one line; no result folder is left.

    >>> run = secateur.prune("builtin", method="magnitude", pattern="2:4", out="pruned")
    >>> run.sparsity
    0.5
    """
    in_memory = (tokens := tokens_in_memory(calibration)) is not None
    values: dict[str, Any] = {"out": out, **options}
    asked = {"method": method, "pattern": None if pattern is None else str(pattern)}
    values.update({key: value for key, value in asked.items() if value is not None})
    if in_memory and getattr(model, "main_input_name", None) == "pixel_values":
        values["images"] = "images in memory"
    else:
        values["calibration"] = "tokens in memory" if in_memory else calibration
    values = without_paths(values)
    if not is_in_memory(model):
        if in_memory:
            raise RecipeError(
                "token ids in memory go with a model in memory",
                hint="saving them as input_ids in a .safetensors file",
            )
        return run_stages(Recipe.build({"model": location(model), **values}), progress)
    if out is not None:
        raise RecipeError("a model in memory is pruned in place", hint="save_pretrained, not out")
    recipe = Recipe.build({"model": model.name_or_path or type(model).__name__, **values})
    return pipeline.prune_in_place(model, recipe, tokenizer, tokens, progress)


@overload
def evaluate(model: Location, *, tasks: str, **options: Any) -> TaskEvaluation: ...
@overload
def evaluate(model: Location, *, images: Location, **options: Any) -> Classification: ...
@overload
def evaluate(
    model: Location, *, text: Location, tasks: None = None, images: None = None, **options: Any
) -> Evaluation: ...
@overload
def evaluate(model: Location, **options: Any) -> Evaluation | TaskEvaluation | Classification: ...
@plain_computing()
def evaluate(
    model: Location,
    *,
    text: Location | None = None,
    tasks: str | None = None,
    images: Location | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Evaluation | TaskEvaluation | Classification:
    """Measure a model on held-out text, in zero-shot tasks, or on images.

    Args:
        model: folder or hub name.
        text: held-out text to measure perplexity on; with tasks, what `continuation` is made of.
        tasks: names of zero-shot tasks with commas between, asked by lm-eval.
        images: folder of images to measure a classifier's top-1 on.
        progress: told what happens; silent by default.
        options: every other field of `secateur.evaluation.EvaluationSettings`, such as against
            (the dense model to compare with), windows, limit, device.

    Returns:
        an Evaluation for text, a TaskEvaluation for tasks, a Classification for images.

    Raises:
        SecateurError: something cannot be read, or does not fit.

    >>> measured = secateur.evaluate("pruned", text="builtin", sequence_length=64, windows=2)
    >>> measured.protocol.sequences
    2
    """
    values = {"text": text, "tasks": tasks, "images": images, **options}
    settings = EvaluationSettings.build({"model": location(model), **values})
    if settings.images is not None:
        return evaluate_images(settings, progress)
    if settings.tasks is None:
        return evaluate_text(settings, progress)
    if not settings.record:
        return evaluate_tasks(settings, progress)
    folder = locate(pinned(settings.model, settings.revision))
    record = record_to_add_to(folder)
    scored = evaluate_tasks(settings, progress)
    add_to_record(folder, scored, record)
    return scored


@plain_computing()
def check(
    model: Location, *, pattern: str | float | None = None, trust_remote_code: bool = False,
    **options: Any,
) -> Proof:  # fmt: skip
    """Count the zeros of every prunable matrix of a model folder, and verify its checksums.

    Args:
        model: folder or hub name.
        pattern: what every matrix must have; None takes what run.json says, or looks for nothing.
        trust_remote_code: run the code that lies beside the weights, if the model needs it.
        options: revision; source, the model that it is to be made from; and include, exclude,
            blocks, dense_first and patterns: which matrices are to have it, as in a recipe.

    Returns:
        what was counted; its `complaint` says what does not hold, and is None if all does.

    Raises:
        SecateurError: the pattern or the folder cannot be read.

    >>> secateur.check("pruned", pattern="2:4").complaint is None
    True
    """
    return check_folder(location(model), pattern, trust_remote_code=trust_remote_code, **options)


@plain_computing()
def recover(
    model: Location,
    *,
    text: Location,
    out: Location,
    progress: Progress | None = None,
    **options: Any,
) -> RunRecord:
    """Train a sparse model back, keep every zero, and write it to a new folder.

    Args:
        model: folder of the sparse model, or a hub name.
        text: text or tokens to train on.
        out: folder for the recovered model.
        progress: told what happens; silent by default.
        options: every other field of `secateur.recovery.Recovery`, such as steps and heldout.

    Returns:
        the record of the pruning run with `recovery` filled in; `run.json` holds the same.

    Raises:
        SecateurError: something could not be read, done or written; no result folder is left.

    >>> run = secateur.recover("pruned", text="notes.txt", out="recovered", steps=1, samples=2,
    ...                        validation=1, batch_size=1, sequence_length=32)
    >>> run.recovery.zeros_after == run.recovery.zeros_before
    True
    """
    settings = Recovery.build({"model": location(model), "text": text, "out": out, **options})
    return run_recovery(settings, progress)


@plain_computing()
def compare(
    model: Location,
    *,
    out: Location,
    methods: str | Sequence[str] | None = None,
    progress: Progress | None = None,
    each: Callable[[FinishedRun], None] | None = None,
    **options: Any,
) -> ComparisonResult:
    """Prune a model by every method at every pattern, measure each, and write table and report.

    Args:
        model: folder or hub name.
        out: folder for records, tables and report; what is finished there is not done again.
        methods: what to compare: a list, or names with commas between; None takes all.
        progress: told what happens; silent by default.
        each: called with every run as it is done.
        options: every other field of `ComparisonSettings`, such as patterns, seeds, recover, tasks;
            and the keys of a recipe that all runs share: text (needed), calibration, samples, ...

    Returns:
        the records in order, and where tables and report were written.

    Raises:
        SecateurError: a run cannot be done; those before it are finished and stay.

    >>> done = secateur.compare("builtin", out="table", methods=["magnitude", "wanda"],
    ...                         text="builtin", windows=2, calibration="notes.txt", samples=2,
    ...                         sequence_length=64)
    >>> [run.recipe["method"] for run in done.records]
    ['magnitude', 'wanda']
    """
    values = without_paths({"model": location(model), "out": out, "methods": methods, **options})
    plan = plan_comparison(*split_options(values))
    again, records = plan.settings.overwrite, []
    with comparing_alone(Path(out), overwrite=again):
        for run in do_comparison(plan, progress):
            records.append(run.record)
            if each is not None:
                each(run)
        return write_comparison(records, Path(out), overwrite=again)


def report(
    places: Location | Sequence[Location],
    *,
    out: Location | None = None,
    format: ReportFormat = "html",  # noqa: A002 - as the command's option is called
    overwrite: bool = False,
) -> Report:
    """Put earlier runs side by side: one HTML file that needs nothing else, or the table alone.

    Args:
        places: folders with run.json below them, or such files.
        out: file to write; without it a page goes to report.html, and a table nowhere.
        format: "html" for the page; "markdown", "latex" or "csv" for the table.
        overwrite: replace a file that is there even if it is no report.

    Returns:
        where it was written, and what.

    Raises:
        SecateurError: a place holds no record, or the file cannot be written.

    >>> secateur.report("table", format="csv").text.splitlines()[1].split(",")[2:4]
    ['2:4', 'magnitude']
    """
    if isinstance(places, str) or not isinstance(places, Sequence):
        places = [places]
    for place in places:
        if not isinstance(place, str | PathLike):
            raise RecipeError(f"{place!r} is no place of runs", wanted="folders or run.json files")
    if not places:
        raise RecipeError("no runs to report on", wanted="at least one folder or run.json")
    if format not in (forms := get_args(ReportFormat)):
        raise RecipeError(f"unknown format {format!r}", wanted=closest(str(format), forms))
    path = None if out is None else as_path(out, fault=OutputError)
    records = find_records([as_path(place, fault=CheckpointError) for place in places])
    return write_report(records, path, format, overwrite=overwrite)
