"""What a run needs before it begins: every input located, read and checked against the others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from secateur.blocks.batching import tokens_in_each
from secateur.checkpoint import (
    BlockModel,
    Destination,
    LeftDense,
    ResidentModel,
    find_left_dense,
    load_whole,
    locate,
    open_model,
)
from secateur.checkpoint.gradient_store import GradientFile
from secateur.checkpoint.model_facts import load_tokenizer, reads_images
from secateur.data import ImageBatch, TokenBatch, Tokenizer, overlaps
from secateur.errors import DataError, OutputError, RecipeError, SecateurError
from secateur.machine import processes
from secateur.machine.accelerator import held_dtype
from secateur.machine.device import choose_device, choose_dtype, multiplies_bfloat16
from secateur.machine.paths import as_path, pinned
from secateur.pruning.estimate import Estimate, estimate
from secateur.pruning.fit import Placement, check_experts, check_plan, place_activations
from secateur.pruning.inputs import check_kind, read_calibration, read_heldout, read_images
from secateur.pruning.quantise import fit_rounding
from secateur.pruning.reuse import (
    CalibrationKey,
    HeldOutKey,
    Made,
    ModelKey,
    SharedWork,
    Stopwatch,
)
from secateur.pruning.saved_gradients import (
    already_saved,
    claim_gradients,
    gradient_facts,
    matrix_shapes,
)
from secateur.pruning.zeros_lost import zeros_lost
from secateur.recipe import Plan, Recipe, plan_of
from secateur.record import LostWidth, Removed
from secateur.statistics import Need

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TAKES_MINUTES = 5 * 10**7
"""Weights of a model from which on a CPU takes minutes."""


@dataclass(frozen=True)
class Prepared:
    """A run whose inputs were all read and checked, before any work is done.

    Attributes:
        recipe: what was asked for.
        folder: of the model on disk; None for a model in memory.
        source: the model.
        calibration: the sequences or images, or None for a method that needs none.
        heldout: the windows of every text to measure on; may be none.
        plan: what is done with every block.
        left_dense: what of the model gets no pattern, with the reason.
        estimate: what it will take.
        activations: where hidden states wait.
        gradient_facts: what full-model gradients of this run are made of; None if it needs none.
        gradients: those of an earlier run, if they were given.
        removed: the blocks that are not in `source` any more; None if all are.
        narrowed: what is not in any of its blocks any more; None if all is.
        notices: what the user should know.
    """

    recipe: Recipe
    folder: Path | None
    source: BlockModel
    calibration: TokenBatch | ImageBatch | None
    heldout: tuple[TokenBatch, ...]
    plan: Plan
    left_dense: tuple[LeftDense, ...]
    estimate: Estimate
    activations: Placement
    gradient_facts: dict[str, str] | None
    gradients: GradientFile | None
    notices: tuple[str, ...]
    removed: Removed | None = None
    narrowed: LostWidth | None = None


def prepare(
    recipe: Recipe,
    shared: SharedWork | None = None,
    watch: Stopwatch | None = None,
    left: BlockModel | None = None,
) -> Prepared:
    """Open the model, read the texts, check that everything fits together.

    Args:
        recipe: what was asked for.
        shared: what other runs of this model have made already, and will make use of.
        watch: keeps account of the seconds that they spent.
        left: what other stages would leave of the model, in its place; None for all of it.

    Raises:
        SecateurError: something does not fit; nothing was written.
    """
    shared, watch = shared or SharedWork(), watch or Stopwatch()
    trust, folder = recipe.trust_remote_code, _locate(recipe)
    if recipe.out is not None:
        Destination(
            Path(recipe.out), folder, overwrite=recipe.overwrite, restart=recipe.restart
        ).check()
    source = watch.pruning(_open(recipe, folder, shared)) if left is None else left
    notices = source.notices
    if not source.streamed:
        notices += ("the files cannot be read block by block: the model was loaded whole",)
        shared.model.forget()  # it is changed in place
    if recipe.dtype == "auto" and _is_slow(source):
        notices += (
            "computing in float32, the same bits everywhere; this processor is about twice as fast"
            " with --dtype bfloat16",
        )
    if trust:
        notices += (f"code in {folder} is trusted and may run with all your rights",)

    tokenizer = watch.pruning(
        shared.tokenizer.once(folder, lambda: load_tokenizer(folder, trust_remote_code=trust))
    )
    check_kind(recipe, source)

    def calibrate() -> TokenBatch | ImageBatch | None:
        if reads_images(source):
            return read_images(recipe, source, folder)
        dense = partial(load_whole, folder, source.dtype, trust_remote_code=trust)
        return read_calibration(recipe, source, tokenizer, lambda: dense().to(source.device))

    calibration_key = CalibrationKey(
        recipe.sources,
        recipe.shares,
        recipe.column,
        recipe.images,
        recipe.samples,
        recipe.sequence_length,
        recipe.seed,
        recipe.chosen_written,
        recipe.bos,
    )
    calibration = watch.pruning(
        shared.calibration.once(calibration_key, lambda: processes.from_first(calibrate))
    )
    heldout = watch.measuring(
        shared.heldout.once(
            HeldOutKey(recipe.texts, recipe.windows, recipe.sequence_length, recipe.bos),
            lambda: processes.from_first(lambda: read_heldout(recipe, source, tokenizer)),
        )
    )
    return _prepare(recipe, folder, source, calibration, heldout, notices)


def _is_slow(source: BlockModel) -> bool:
    """Whether a CPU computes in float32 what it would compute sooner, and what takes minutes."""
    on_cpu = source.device.type == "cpu" and source.dtype == torch.float32
    return on_cpu and source.count_weights() >= TAKES_MINUTES and multiplies_bfloat16()


def check_fit(recipe: Recipe, shared: SharedWork) -> None:
    """Raise unless what every stage prunes or removes is there; no text is read.

    A stage that removes structures leaves the next ones a smaller model, on which they are checked.

    Raises:
        SecateurError: the model cannot be opened, or a pattern does not fit; names the stage.
    """
    source, stages = _open(recipe, _locate(recipe), shared).value, recipe.by_stage
    for number, one in enumerate(stages, 1):
        if one.recovery is not None:
            continue
        try:
            plan = plan_of(one)
            left = check_plan(plan, source)
            estimate(source, plan, sequences=0, length=0)
        except SecateurError as fault:
            raise fault if len(stages) == 1 else fault.within(f"stage {number}") from fault
        source = left


def source_files(recipe: Recipe, shared: SharedWork) -> dict[str, str]:
    """SHA-256 of the files of a recipe's model, see `SourceFiles.sums`; all of them are read.

    Raises:
        SecateurError: it cannot be opened, or not read.
    """
    files = _open(recipe, _locate(recipe), shared).value.watch()
    assert files is not None  # it is on the disk
    files.read_all()
    return files.sums()


def _locate(recipe: Recipe) -> Path:
    name = pinned(recipe.model, recipe.revision)
    return locate(name, trust_remote_code=recipe.trust_remote_code)


def _open(recipe: Recipe, folder: Path, shared: SharedWork) -> Made[BlockModel]:
    """The model, as an earlier run opened it or anew."""
    device = choose_device(recipe.device)
    dtype, trust = choose_dtype(recipe.dtype, device), recipe.trust_remote_code
    return shared.model.once(
        ModelKey(folder, device, dtype),
        lambda: open_model(folder, device, dtype, trust_remote_code=trust),
    )


def prepare_in_place(
    model: PreTrainedModel, recipe: Recipe, tokenizer: Tokenizer, tokens: Tensor | None
) -> Prepared:
    """Prepare a run on a model in memory; the arguments are those of `pipeline.prune_in_place`."""
    device = model.device if recipe.device == "auto" else choose_device(recipe.device)
    dtype = held_dtype(choose_dtype(recipe.dtype, device) or model.dtype, device)
    source = ResidentModel(model, device, dtype)
    check_kind(recipe, source)
    if tokens is not None and tokens.is_inference():
        tokens = tokens.clone()  # those of torch.inference_mode() take part in no gradient
    if tokenizer is not None and not hasattr(tokenizer, "chat_template"):  # a function has none
        raise RecipeError(f"tokenizer is a {type(tokenizer).__name__}", wanted="a tokenizer")
    calibration = (
        read_images(recipe, source, Path(model.name_or_path), tokens)
        if reads_images(source)
        else read_calibration(recipe, source, tokenizer, lambda: model, tokens)
    )
    heldout = read_heldout(recipe, source, tokenizer)
    return _prepare(recipe, None, source, calibration, heldout, ())


def _prepare(
    recipe: Recipe,
    folder: Path | None,
    source: BlockModel,
    calibration: TokenBatch | ImageBatch | None,
    heldout: tuple[TokenBatch, ...],
    notices: tuple[str, ...],
) -> Prepared:
    plan = plan_of(recipe)
    check_plan(plan, source)
    check_experts(recipe, source)
    plan, told = fit_rounding(plan, source, written=recipe.out is not None)
    notices += told
    sequences = length = 0
    if calibration is not None:
        sequences, length = len(calibration.inputs), tokens_in_each(calibration, source)
        if sequences < processes.count():
            raise DataError(
                f"{sequences} calibration sequences for {processes.count()} processes",
                wanted="one for each process at least",
                hint="fewer processes, or more --samples",
            )
    shapes = estimate(source, plan, sequences, length)
    left_dense = () if plan.structures else find_left_dense(source, plan.selection)
    if others := [str(left) for left in left_dense if not left.usual and not left.chosen]:
        notices += (f"left dense: {'; '.join(others)}",)
    activations = place_activations(recipe, source, plan, calibration, heldout)
    notices += (*activations.notices, *zeros_lost(source, plan))
    facts = gradients = None
    if Need.FULL_GRADIENT in plan.method.needs and calibration is not None:
        facts = gradient_facts(source, calibration, plan)
        if recipe.gradients is not None:
            given = as_path(recipe.gradients, fault=DataError)
            gradients = processes.from_first(
                lambda: GradientFile.open(given, matrix_shapes(source), facts)
            )
        if recipe.save_gradients is not None:
            path = as_path(recipe.save_gradients, fault=OutputError)
            gradients = processes.from_first(lambda: already_saved(path, source, facts))
            if gradients is None:
                claim_gradients(path, recipe, folder)
            else:
                notices += (f"{path} holds these very gradients: they are not computed again",)
        watched = source.watch()
        if gradients is not None and watched is not None:
            watched.expect(gradients.source)
    of_texts = dict.fromkeys(
        line for text in (calibration, *heldout) if text is not None for line in text.notices
    )
    if isinstance(calibration, TokenBatch):
        of_texts.update(dict.fromkeys(overlaps(calibration, heldout)))
    return Prepared(
        recipe, folder, source, calibration, heldout, plan, left_dense, shapes,
        activations, facts, gradients, (*notices, *of_texts),
    )  # fmt: skip
