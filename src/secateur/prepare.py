"""What a run needs before it begins: every input found, read and checked against the others."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from secateur.blocks.prune import Plan
from secateur.checkpoint import (
    BlockModel,
    ResidentModel,
    StreamedModel,
    find_all_matrices,
    find_matrices,
    locate,
    open_model,
)
from secateur.checkpoint.choice import check_choice
from secateur.checkpoint.gradients import GradientFile
from secateur.checkpoint.write import check_output
from secateur.data import TokenBatch, load_calibration
from secateur.errors import OutputError, RecipeError
from secateur.estimate import Estimate, estimate
from secateur.recipe import Recipe
from secateur.statistics import Need

TOKENS_PER_BATCH = 8192


@dataclass(frozen=True)
class Prepared:
    """A run whose inputs were all found and checked, before any work is done.

    Attributes:
        recipe: what was asked for.
        folder: of the model on disk; None for a model in memory.
        source: the model.
        calibration: the sequences, or None for a method that needs none.
        plan: what is done with every block.
        estimate: what it will take.
        gradient_facts: what full-model gradients of this run are made of; None if it needs none.
        gradients: those of an earlier run, if they were given.
        notices: what the user should know.
    """

    recipe: Recipe
    folder: Path | None
    source: StreamedModel | ResidentModel
    calibration: TokenBatch | None
    plan: Plan
    estimate: Estimate
    gradient_facts: dict[str, str] | None
    gradients: GradientFile | None
    notices: tuple[str, ...]


def prepare(recipe: Recipe) -> Prepared:
    """Open the model, read the calibration, check that everything fits together.

    Raises:
        SecateurError: something does not; nothing was written.
    """
    folder = locate(recipe.model)
    if recipe.out is not None:
        check_output(Path(recipe.out), folder, overwrite=recipe.overwrite)
    device = choose_device(recipe.device)
    source = open_model(folder, device, choose_dtype(recipe.dtype, device))
    calibration = read_calibration(recipe, source, load_tokenizer(folder))
    whole = "this family's files need conversion: the model was loaded whole"
    notices = (whole,) if isinstance(source, ResidentModel) else ()
    return _prepare(recipe, folder, source, calibration, notices)


def prepare_in_place(
    model: PreTrainedModel,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase | None,
    tokens: Tensor | None,
) -> Prepared:
    """The same for a model in memory; the arguments are those of `pipeline.prune_in_place`."""
    device = model.device if recipe.device == "auto" else choose_device(recipe.device)
    source = ResidentModel(model, device, choose_dtype(recipe.dtype, device) or model.dtype)
    calibration = read_calibration(recipe, source, tokenizer, tokens)
    return _prepare(recipe, None, source, calibration, ())


def _prepare(
    recipe: Recipe,
    folder: Path | None,
    source: StreamedModel | ResidentModel,
    calibration: TokenBatch | None,
    notices: tuple[str, ...],
) -> Prepared:
    plan = plan_of(recipe)
    check_choice(plan.choice, source.blocks)
    sequences, length = (0, 0) if calibration is None else calibration.input_ids.shape
    shapes = estimate(source, plan, sequences, length)
    facts = gradients = None
    if Need.FULL_GRADIENT in plan.method.needs and calibration is not None:
        facts = _gradient_facts(source, calibration, plan)
        if recipe.gradients is not None:
            gradients = GradientFile.open(Path(recipe.gradients), matrix_shapes(source), facts)
        if recipe.save_gradients is not None:
            _check_new_file(Path(recipe.save_gradients), overwrite=recipe.overwrite)
    told = () if calibration is None else calibration.notices
    return Prepared(
        recipe, folder, source, calibration, plan, shapes, facts, gradients, (*notices, *told)
    )


def matrix_shapes(source: BlockModel) -> dict[str, tuple[int, int]]:
    """(out, in) of every prunable matrix, by parameter name in the model."""
    return {
        source.blocks.prefix(index) + matrix.name: matrix.shape
        for index, matrices in enumerate(find_all_matrices(source.blocks))
        for matrix in matrices
    }


def _gradient_facts(source: BlockModel, calibration: TokenBatch, plan: Plan) -> dict[str, str]:
    """What gradients depend on: those of an earlier run serve only if all of this is the same."""
    digest = hashlib.sha256()
    for index in {0, len(source.blocks) - 1}:
        with source.open_block(index) as block:
            weight = find_matrices(block)[0].read().float().cpu().contiguous()
            digest.update(weight.numpy().tobytes())
    return {
        "format": "secateur/gradients/1",
        "aggregate": plan.params.gradient_order,
        "architecture": type(source.model).__name__,
        "weights": digest.hexdigest(),
        "tokens": calibration.protocol.token_sha256,
        "precision": str(source.dtype).removeprefix("torch."),
    }


def _check_new_file(path: Path, *, overwrite: bool) -> None:
    """Raise unless a file can be written at `path`."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise OutputError("no file can be written here", where=path, wanted="a file in a folder")
    if path.exists() and not overwrite:
        raise OutputError("the file exists", where=path, hint="--overwrite, or another name")


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the accelerator if there is one.

    Raises:
        RecipeError: it does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    present = device is not None and (
        device.type == "cpu" or (device.type == "cuda" and str(_numbered(device)) in there)
    )
    if device is None or not present:
        raise RecipeError(f"device {name!r} is not there", wanted=f"one of {', '.join(there)}")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """The computing precision; None is the checkpoint's own.

    "auto" computes in float32 on a CPU, where half precision is slow and rounds the hidden states,
    and in the checkpoint's own dtype on an accelerator.
    """
    if name == "auto":
        return torch.float32 if device.type == "cpu" else None
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside a model, or None if there is none that can be read."""
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError, KeyError, TypeError):
        return None


def batch_size(asked: int | None, length: int) -> int:
    """Sequences per batch: what was asked for, or as many as make about 8192 tokens."""
    return asked or max(1, TOKENS_PER_BATCH // length)


def plan_of(recipe: Recipe) -> Plan:
    """What a recipe asks to be done with every block."""
    return Plan(
        recipe.chosen_method,
        recipe.chosen_params,
        recipe.choice,
        recipe.chosen_regional,
        recipe.seed,
        recipe.route_all,
        recipe.expert_tokens,
    )


def read_calibration(
    recipe: Recipe,
    source: BlockModel,
    tokenizer: PreTrainedTokenizerBase | None,
    tokens: Tensor | None = None,
) -> TokenBatch | None:
    """The calibration sequences, no longer than the model allows; None if there are to be none.

    Args:
        recipe: names the source and the sizes.
        source: the model.
        tokenizer: for sources that are text.
        tokens: int64 [sequences, tokens] in place of the recipe's source.

    Raises:
        DataError: the source cannot be read or is too short.
    """
    asked: str | Tensor | None = recipe.calibration if tokens is None else tokens
    if asked is None:
        return None
    length, notices = clip(recipe.sequence_length, source)
    batch = load_calibration(
        asked,
        tokenizer=tokenizer,
        samples=recipe.samples,
        sequence_length=length,
        seed=recipe.seed,
        vocabulary=vocabulary(source),
    )
    return replace(batch, notices=(*notices, *batch.notices))


def vocabulary(source: BlockModel) -> int:
    """How many tokens the model can read."""
    size: int = source.model.get_input_embeddings().weight.shape[0]
    return size


def clip(length: int, source: BlockModel) -> tuple[int, tuple[str, ...]]:
    """`length`, or the longest that the model allows and a notice that says so."""
    config = source.model.config.get_text_config(decoder=True)
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None or length <= limit:
        return length, ()
    return limit, (f"sequences are {limit} tokens, the most this model allows, not {length}",)


def _numbered(device: torch.device) -> torch.device:
    return torch.device(device.type, device.index or 0)
