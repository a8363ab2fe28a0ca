"""`secateur compare`, `demo` and `report`: many runs side by side."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from secateur import methods
from secateur.cli import printing
from secateur.cli.app import (
    CALIBRATION,
    HELD_OUT,
    AlsoText,
    Device,
    Dtype,
    IncludePath,
    Model,
    Trust,
    app,
    shown,
)
from secateur.comparison.afterwards import ask_all, recover_all
from secateur.comparison.runs import Run, compare, plan_runs
from secateur.errors import RecipeError
from secateur.evaluation.zero_shot import Questions
from secateur.record import RunRecord
from secateur.reporting import ReportFormat, write_report

EVERY = ",".join(method.name for method in methods.every())
FILES: dict[str, ReportFormat] = {
    "report.html": "html",
    "table.md": "markdown",
    "table.tex": "latex",
    "table.csv": "csv",
}
"""What is written beside the runs."""
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Do finished runs again.")]


@app.command("compare")
def compare_command(
    model: Model,
    text: Annotated[str, typer.Option(help=f"Held-out text to measure on. {HELD_OUT}")],
    calibration: Annotated[str, typer.Option(help=CALIBRATION)],
    out_folder: Annotated[
        str, typer.Option("--out", help="Folder for the records, the table and the report.")
    ],
    method_names: Annotated[
        str, typer.Option("--methods", help="Separated by commas. See `secateur methods`.")
    ] = EVERY,
    patterns: Annotated[
        str, typer.Option(help="Separated by commas: 50%,2:4,4:8. N:M: N of M weights are KEPT.")
    ] = "2:4",
    seeds: Annotated[
        str, typer.Option(help="Separated by commas; each draws calibration of its own.")
    ] = "0",
    samples: Annotated[int, typer.Option(help="Calibration sequences.")] = 128,
    sequence_length: Annotated[
        int, typer.Option(help="Tokens in each, and in a window; at most what the model allows.")
    ] = 2048,
    also_text: AlsoText = None,
    windows: Annotated[
        int | None, typer.Option(help="Windows of each at most.", show_default="all")
    ] = None,
    preset: Annotated[str, typer.Option(help="Regional optimiser: auto or paper.")] = "auto",
    allocation: Annotated[
        str, typer.Option(help="How unstructured ratios are shared out: uniform, owl, measured.")
    ] = "uniform",
    effort: Annotated[
        str, typer.Option(help="How long it works: fast, balanced or best.")
    ] = "balanced",
    batch_size: Annotated[
        int | None, typer.Option(help="Sequences per batch.", show_default="about 2048 tokens")
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    keep_models: Annotated[
        bool, typer.Option("--keep-models", help="Write the pruned models too.")
    ] = False,
    recover: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="STEPS",
            help="Train every pruned model back for so many steps on the calibration text, as"
            " `secateur recover` does; keeps the models.",
            show_default="no",
        ),
    ] = None,
    objective: Annotated[str, typer.Option(help="Of --recover: lm or distill.")] = "lm",
    asked: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            help="Ask the dense and every pruned or recovered model these zero-shot tasks, as"
            " `secateur evaluate` does; keeps the models. continuation is made from --text.",
        ),
    ] = None,
    include_path: IncludePath = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Questions of each task.", show_default="all")
    ] = None,
    trust_remote_code: Trust = False,
    overwrite: Overwrite = False,
) -> None:
    """Prune MODEL with every method at every pattern, measure each, and write table and report.

    Finished runs are not repeated: what was interrupted goes on.
    """
    runs = plan_runs(
        Path(out_folder),
        _split(method_names),
        _split(patterns),
        _seeds(seeds),
        {
            "model": model,
            "calibration": calibration,
            "text": text,
            "also_text": also_text or [],
            "samples": samples,
            "sequence_length": sequence_length,
            "windows": windows,
            "preset": preset,
            "effort": effort,
            "allocation": allocation,
            "batch_size": batch_size,
            "dtype": dtype,
            "device": device,
            "trust_remote_code": trust_remote_code,
        },
        keep_models=keep_models or recover is not None or asked is not None,
    )
    questions = None
    if asked is not None:
        questions = Questions(
            asked, text=text, include_path=include_path, limit=limit, together=batch_size,
            dtype=dtype, device=device, trust_remote_code=trust_remote_code,
        )  # fmt: skip
    elif include_path is not None or limit is not None:
        raise RecipeError("--include-path and --limit are of --tasks", wanted="--tasks NAMES")
    finished, total = compare(runs, shown(), overwrite=overwrite), len(runs)
    if recover is not None:
        recovered = recover_all(runs, recover, objective, shown(), overwrite=overwrite)
        finished, total = itertools.chain(finished, recovered), 2 * total
    if questions is not None:
        finished = ask_all(finished, questions, shown())
    tell_runs(finished, total, Path(out_folder))


def tell_runs(finished: Iterable[tuple[Run, RunRecord, bool]], total: int, out: Path) -> None:
    """Print every run as it is done, then the table; write the report."""
    records = []
    for run, record, repeated in finished:
        records.append(record)
        printing.compared(run.name, record, repeated, f"{len(records)} of {total}")
    for name, form in FILES.items():
        write_report(records, out / name, form)
    printing.comparison(records, out, list(FILES))


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _seeds(text: str) -> list[int]:
    parts = _split(text)
    if not all(part.isdecimal() for part in parts):
        raise RecipeError(f"--seeds {text!r}", wanted="whole numbers, such as 0,1,2")
    return [int(part) for part in parts]
