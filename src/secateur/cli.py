"""The `secateur` command: parse, call, print. No logic lives here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from transformers.utils import logging as transformers_logging

from secateur import methods, pipeline, prove, show
from secateur.errors import CheckFailedError, RecipeError, SecateurError
from secateur.prepare import prepare
from secateur.recipe import Precision, Recipe, read_value, read_yaml
from secateur.report import JsonLines, Progress, TerminalBars

app = typer.Typer(
    help="Prune large language models one block at a time, and prove what was done."
    " Add --debug to any command for the traceback of an error.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
INTERRUPTED = 130

Model = Annotated[str, typer.Argument(help="Folder of a Hugging Face checkpoint, or a hub name.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1; auto takes what there is.")]
Dtype = Annotated[
    Precision,
    typer.Option(help="float32, bfloat16, float16; auto: float32 on a CPU, else the model's own."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command("prune")
def prune_command(
    model: Annotated[
        str | None, typer.Argument(help="Folder of a Hugging Face checkpoint, or a hub name.")
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
        typer.Option(
            help="A .txt, .jsonl or .parquet file, a folder of texts, a .safetensors file with"
            " input_ids, c4 or wikitext2."
        ),
    ] = None,
    out_folder: Annotated[
        str | None, typer.Option("--out", help="Folder for the pruned model.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Calibration sequences.", show_default="128")
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
        int | None, typer.Option(help="Sequences per batch.", show_default="about 8192 tokens")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Computing precision.", show_default="auto")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1.", show_default="auto")
    ] = None,
    overwrite: Annotated[
        bool | None, typer.Option("--overwrite", help="Replace the output folder.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the plan, do nothing.")
    ] = False,
) -> None:
    """Prune MODEL and write the sparse model to --out."""
    values = {} if recipe is None else read_yaml(recipe)
    flags = {
        "model": model, "method": method, "pattern": pattern, "calibration": calibration,
        "out": out_folder, "samples": samples, "sequence_length": sequence_length, "seed": seed,
        "preset": preset, "batch_size": batch_size, "dtype": dtype, "device": device,
        "overwrite": overwrite, "gradients": gradients, "save_gradients": save_gradients,
        "include": include or None, "exclude": exclude or None, "blocks": blocks,
        "dense_first": dense_first, "block_inputs": block_inputs, "route_all": route_all,
        "expert_tokens": expert_tokens,
    }  # fmt: skip
    values.update({name: value for name, value in flags.items() if value is not None})
    _apply_settings(values, setting or [])
    origins = {} if recipe is None else {"origin": f"{recipe} and the options"}
    built = Recipe.build(values, **origins)
    if dry_run:
        show.plan(prepare(built))
        return
    show.run(pipeline.prune(built, _progress()))


@app.command()
def evaluate(
    model: Model,
    text: Annotated[
        str,
        typer.Option(help="Held-out text: a file, a folder, c4 or wikitext2 (their test splits)."),
    ],
    against: Annotated[
        str | None,
        typer.Option(help="The dense model: adds the mean KL divergence per token from it."),
    ] = None,
    sequence_length: Annotated[int, typer.Option(min=2, help="Tokens per window.")] = 2048,
    windows: Annotated[
        int | None, typer.Option(min=1, help="How many windows at most.", show_default="all")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Windows per batch.", show_default="about 8192 tokens")
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Perplexity of MODEL on held-out text, in fixed windows, one block in memory."""
    found = pipeline.evaluate(
        model,
        text,
        against=against,
        sequence_length=sequence_length,
        windows=windows,
        together=batch_size,
        dtype=dtype,
        device=device,
        progress=_progress(),
    )
    if as_json:
        print(found.model_dump_json(indent=2))
    else:
        show.evaluation(found, against)


@app.command()
def check(
    model: Model,
    pattern: Annotated[
        str | None,
        typer.Option(help="What every matrix must have.", show_default="what its run.json says"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Prove the sparsity of MODEL from its files. Exit status 0 if it holds, 1 if not."""
    proof = prove.prove(model, pattern)
    if as_json:
        print(json.dumps(proof.as_dict(), indent=2))
    else:
        show.proof(proof)
    if proof.failing:
        raise CheckFailedError(
            f"{len(proof.failing)} matrices are not {proof.pattern}, such as {proof.failing[0]}",
            where=proof.folder,
        )


@app.command("methods")
def methods_command(as_json: Json = False) -> None:
    """List the methods, what each needs, its parameters and its paper."""
    if as_json:
        print(json.dumps([method.describe() for method in methods.every()], indent=2))
    else:
        show.methods()


def main() -> None:
    """Run the command; bad input is one line on standard error and exit status 2 (or 1)."""
    transformers_logging.disable_progress_bar()  # standard error is ours: bars or JSON lines
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        status = app(arguments or ["--help"], standalone_mode=False)
    except SecateurError as fault:
        if debug:
            raise
        show.error(str(fault))
        sys.exit(fault.exit_code)
    except typer.TyperException as fault:  # an unknown option, a word for a number, ...
        show.error(fault.format_message())
        sys.exit(2)
    if status == INTERRUPTED:  # typer's answer to Ctrl-C
        show.warn("interrupted: nothing was written")
    sys.exit(status or 0)


def _progress() -> Progress:
    """Bars for a person, JSON lines for anything else."""
    return TerminalBars(show.err) if show.err.is_terminal else JsonLines()


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
