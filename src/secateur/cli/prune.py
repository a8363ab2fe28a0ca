"""`secateur prune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli import printing
from secateur.cli.app import CALIBRATION, HELD_OUT, AlsoText, Trust, app, shown
from secateur.errors import RecipeError
from secateur.pruning import pipeline
from secateur.pruning.prepare import prepare
from secateur.recipe import Recipe
from secateur.recipe.yaml_file import read_value, read_yaml


@app.command("prune")
def prune_command(
    model: Annotated[
        str | None, typer.Argument(help="Folder of a checkpoint, a hub name, or builtin.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="See `secateur methods`.", show_default="wanda++")
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            help="50% or 0.5: that share is pruned. N:M, such as 2:4: N of every M weights along"
            " the input are KEPT.",
            show_default="2:4",
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REGEX", help="Prune only matrices with this in their name. May be repeated."
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REGEX", help="Leave matrices with this in their name. May be repeated."
        ),
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(help="Prune only these blocks, from 0: 4-27 or 0,3,8-.", show_default="all"),
    ] = None,
    dense_first: Annotated[
        int | None, typer.Option(help="Leave so many of the first blocks.", show_default="0")
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(help=CALIBRATION),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            help="For a classifier: a folder of images to calibrate with, FOLDER/<class>/*.png;"
            " without class folders the model's own predictions are the labels."
        ),
    ] = None,
    out_folder: Annotated[
        str | None, typer.Option("--out", help="Folder for the pruned model.")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(help=f"Measure perplexity as the blocks pass. {HELD_OUT}"),
    ] = None,
    also_text: AlsoText = None,
    windows: Annotated[
        int | None, typer.Option(help="Windows of each at most.", show_default="all")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Calibration sequences.", show_default="128")
    ] = None,
    written: Annotated[
        int | None,
        typer.Option(
            help="Sequences more that the dense model writes itself.",
            show_default="0; with effort best three for each",
        ),
    ] = None,
    sequence_length: Annotated[
        int | None,
        typer.Option(help="Tokens in each; at most what the model allows.", show_default="2048"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of everything random.", show_default="0")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A parameter of the method (alpha=10), or of the regional optimiser"
            " (regional.rounds=3). See `secateur methods`. May be repeated.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Regional optimiser: auto (sets its own rate) or paper.", show_default="auto"
        ),
    ] = None,
    effort: Annotated[
        str | None,
        typer.Option(
            help="How long the regional optimiser works: fast, balanced or best.",
            show_default="balanced",
        ),
    ] = None,
    allocation: Annotated[
        str | None,
        typer.Option(
            help="How an unstructured ratio is shared out: uniform, owl (by outliers) or measured"
            " (more where it hurts less).",
            show_default="uniform",
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="block (observe, prune, run again) or matrix (each matrix is pruned as the data"
            " reach it: half the passes).",
            show_default="block",
        ),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="YAML file with any of these; flags go over it.")
    ] = None,
    route_all: Annotated[
        bool | None,
        typer.Option("--route-all", help="Show every expert every token, not only its own."),
    ] = None,
    expert_tokens: Annotated[
        int | None,
        typer.Option(
            help="An expert that fewer tokens reach is pruned by magnitude.", show_default="32"
        ),
    ] = None,
    save_gradients: Annotated[
        str | None, typer.Option(help="gblm: keep the full-model gradients in this .safetensors.")
    ] = None,
    gradients: Annotated[
        str | None, typer.Option(help="gblm: full-model gradients that an earlier run kept.")
    ] = None,
    block_inputs: Annotated[
        str | None,
        typer.Option(help="gblm: keep block inputs in memory or on disk. [default: auto]"),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Sequences per batch.", show_default="about 2048 tokens")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Computing precision.", show_default="auto")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1.", show_default="auto")
    ] = None,
    trust_remote_code: Trust = False,
    overwrite: Annotated[
        bool | None, typer.Option("--overwrite", help="Replace the output folder.")
    ] = None,
    restart: Annotated[
        bool | None,
        typer.Option("--restart", help="Give up what an interrupted run has done; begin again."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the plan, do nothing.")
    ] = False,
) -> None:
    """Prune MODEL and write the sparse model to --out, or only measure it on --text.

    A run that was interrupted goes on after its last finished block.
    """
    values = {} if recipe is None else read_yaml(recipe)
    flags = {
        "model": model, "method": method, "pattern": pattern, "calibration": calibration,
        "out": out_folder, "samples": samples, "written": written,
        "sequence_length": sequence_length, "seed": seed,
        "preset": preset, "effort": effort, "allocation": allocation, "batch_size": batch_size,
        "dtype": dtype, "device": device, "overwrite": overwrite, "gradients": gradients,
        "save_gradients": save_gradients,
        "block_inputs": block_inputs, "text": text, "windows": windows, "restart": restart,
        "also_text": also_text or None,
        "include": include or None, "exclude": exclude or None, "blocks": blocks,
        "dense_first": dense_first, "route_all": route_all, "expert_tokens": expert_tokens,
        "images": images, "schedule": schedule,
    }  # fmt: skip
    values.update({name: value for name, value in flags.items() if value is not None})
    if trust_remote_code:
        values["trust_remote_code"] = True
    _apply_settings(values, setting or [])
    origins = {} if recipe is None else {"origin": f"{recipe} and the options"}
    built = Recipe.build(values, **origins)
    if dry_run:
        for stage in built.by_stage:
            printing.plan(prepare(stage))
        return
    printing.run(pipeline.prune(built, shown()))


def _apply_settings(values: dict[str, Any], settings: list[str]) -> None:
    """Put every NAME=VALUE where the recipe keeps it."""
    for setting in settings:
        name, sign, text = setting.partition("=")
        if not sign or not name:
            raise RecipeError(f"--set {setting!r}", wanted="NAME=VALUE, such as alpha=10")
        group, _, key = name.rpartition(".")
        if group not in ("", "regional"):
            raise RecipeError(f"--set {name!r}", wanted="NAME or regional.NAME")
        place = group or "parameters"
        before = values.get(place) or {}
        if isinstance(before, dict):  # if not, the recipe says what is wrong with it
            values[place] = {**before, key: read_value(text)}
