"""`secateur compare`, `demo` and `report`: many runs side by side."""

from __future__ import annotations

from typing import Annotated

import typer

import secateur
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

EVERY = ",".join(method.name for method in methods.every())
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
    done = secateur.compare(
        model,
        out=out_folder,
        methods=method_names,
        progress=shown(),
        each=printing.compared,
        patterns=patterns,
        seeds=seeds,
        calibration=calibration,
        text=text,
        also_text=also_text or [],
        samples=samples,
        sequence_length=sequence_length,
        windows=windows,
        preset=preset,
        effort=effort,
        allocation=allocation,
        batch_size=batch_size,
        dtype=dtype,
        device=device,
        keep_models=keep_models,
        recover=recover,
        objective=objective,
        tasks=asked,
        include_path=include_path,
        limit=limit,
        trust_remote_code=trust_remote_code,
        overwrite=overwrite,
    )
    printing.comparison(done)
