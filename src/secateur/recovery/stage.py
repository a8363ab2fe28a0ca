"""The stage of a recipe that trains the pruned model back: one command from dense to recovered.

The stages before it are pruned and measured as ever, into a folder that is this run's; the training
goes on from there as `secateur recover` would, on the calibration's texts, and its checkpoint lies
beside that folder until the run is over.
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path

import torch

from secateur.checkpoint import locate, open_model
from secateur.errors import RecipeError
from secateur.machine import processes
from secateur.machine.paths import pinned
from secateur.progress import Progress
from secateur.pruning.pipeline import run_pruning
from secateur.pruning.stages import Unfinished
from secateur.recipe import Recipe, RecoverStage
from secateur.record import RunRecord, StageRecord
from secateur.recovery.further import measure_further
from secateur.recovery.pipeline import run_recovery
from secateur.recovery.resume import InterruptedRecovery
from secateur.recovery.settings import Recovery
from secateur.recovery.targets import check_targets


def run_stages(recipe: Recipe, progress: Progress | None = None) -> RunRecord:
    """Do the stages of a recipe, on a model on disk; the last may train the pruned model back.

    Args:
        recipe: what to do.
        progress: told what happens; silent by default.

    Raises:
        SecateurError: something could not be read, done or written; stages that are finished, and
            the last checkpoint of the training, are kept, and the same recipe goes on after them.
    """
    stage = recipe.recovery
    if stage is None:
        return run_pruning(recipe, progress)
    if processes.count() > 1:
        raise RecipeError(
            f"{stage.kind} computes in one process, and there are {processes.count()}",
            hint="the stages before it alone, then secateur recover",
        )
    check_training(recipe, stage)
    return run_pruning(recipe, progress, finish=partial(_recover, recipe, stage, progress))


def check_training(recipe: Recipe, stage: RecoverStage) -> None:
    """Prove that the last stage fits the others and the model, before any work is done.

    Raises:
        SecateurError: it does not, or the model cannot be opened.
    """
    settings_of(recipe, stage, recipe.model, "out")
    trust = recipe.trust_remote_code
    folder = locate(pinned(recipe.model, recipe.revision), trust_remote_code=trust)
    source = open_model(folder, torch.device("cpu"), None, trust_remote_code=trust)
    check_targets(source.model, stage)


def _recover(
    recipe: Recipe, stage: RecoverStage, progress: Progress | None, left: Unfinished
) -> RunRecord:
    """Train what the other stages have left, and give the record of all of them."""
    told = json.dumps(stage.stage_options(), sort_keys=True).encode()
    name = f"recovery-{hashlib.sha256(told).hexdigest()[:16]}.safetensors"  # others begin anew
    state = InterruptedRecovery(left.between / name)
    out = recipe.out or str(left.between / "recovered")
    settings = settings_of(recipe, stage, str(left.pruned), out).model_copy(
        update={"resume": state.exists, "overwrite": recipe.overwrite}
    )

    def whole(record: RunRecord) -> RunRecord:
        done = record.recovery
        assert done is not None
        trained = StageRecord(
            kind=stage.kind, settings=stage.stage_options(), blocks=(), seconds=done.seconds,
            notices=done.notices,
        )  # fmt: skip
        joined = left.whole(record)
        return joined.model_copy(update={"stages": (*joined.stages, trained)})

    record = run_recovery(settings, progress, state=state, whole=whole)
    return measure_further(Path(out), record, recipe, progress)


def settings_of(recipe: Recipe, stage: RecoverStage, model: str, out: str) -> Recovery:
    """The recovery that a stage asks for, with what it has from the run.

    Args:
        recipe: of the run.
        stage: its last.
        model: folder of the pruned model.
        out: folder of the result.

    Raises:
        RecipeError: something does not fit together.
    """
    return Recovery.build(
        {
            **stage.model_dump(),
            "model": model,
            "out": out,
            "text": list(recipe.sources),
            "shares": recipe.shares,
            "column": recipe.column,
            "heldout": recipe.text,
            "windows": recipe.windows,
            "dense": pinned(recipe.model, recipe.revision),
            "sequence_length": recipe.sequence_length,
            "bos": recipe.bos,
            "seed": recipe.seed,
            "dtype": "auto" if recipe.dtype == "float16" else recipe.dtype,
            "device": recipe.device,
            "trust_remote_code": recipe.trust_remote_code,
        }
    )
