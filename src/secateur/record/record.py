"""The record of a run, `run.json`: everything needed to repeat it and to check what it did."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from secateur.checkpoint.durable import write_text, writing
from secateur.data import ImageProtocol, Protocol
from secateur.errors import CheckpointError, unreadable
from secateur.evaluation import Evaluation, TaskEvaluation
from secateur.machine.limits import MOST_JSON_BYTES, at_most
from secateur.recipe import Recipe
from secateur.recipe.recover_stage import RecoverStage
from secateur.recipe.stage import KIND, PRUNE, STAGES
from secateur.record.matrices import BlockRecord
from secateur.record.narrowed import LostWidth
from secateur.record.recovery import RecoveryRecord
from secateur.record.removed import Removed
from secateur.record.schema import FileName, Measured, RecordPart, WholeNumber, typed_settings
from secateur.record.stages import StageRecord
from secateur.record.versions import bring_forward
from secateur.sparsity import Selection, read_selection


class Sample(RecordPart):
    """A few lines that a model wrote, greedily."""

    prompt: str
    dense: str
    """How the dense model went on."""
    pruned: str
    """How the pruned model went on."""


class RunRecord(RecordPart):
    """A whole run. Records of earlier versions are read as if they were of this one."""

    format: Literal["secateur/run/2"] = "secateur/run/2"
    created: str
    """UTC, ISO 8601."""
    settings: dict[str, Any]
    """Every option of the run, defaults included; those of its stages stand with them."""
    commit: str | None = None
    """The commit of the hub's repository that the model was read from; None for a folder."""
    architecture: str
    streamed: bool
    """Whether blocks came from disk one at a time; otherwise the model was in memory."""
    device: str
    dtype: str
    """Precision of the computation; statistics and master weights are float32."""
    calibration: Protocol | ImageProtocol | None
    stages: tuple[StageRecord, ...]
    """In their order, each on the result of the one before."""
    evaluations: tuple[Evaluation, ...] = ()
    """Held-out perplexity of the result, beside that of the dense model."""
    recovery: RecoveryRecord | None = None
    """If the model was trained after it was pruned; everything above is of the pruning."""
    tasks: tuple[TaskEvaluation, ...] = ()
    """What the model in this folder scored, if it was recorded."""
    sample: Sample | None = None
    seconds: Measured
    """Wall time of the run but for measuring; what other runs did for it is counted in."""
    peak_memory_bytes: WholeNumber
    """Largest resident memory of the process so far; of several, of the largest."""
    peak_device_memory_bytes: WholeNumber | None
    """Largest memory allocated on the accelerator, if there was one."""
    processes: int = 1
    """That the sequences were split over."""
    weight_bytes: WholeNumber | None = None
    """Bytes of all weights as the files of the result hold them, or would; None if not known."""
    packed_bytes: WholeNumber | None = None
    """The same if zeros were not stored, in every matrix where that takes less."""
    versions: dict[str, str]
    machine: dict[str, str]
    repeatable: str = ""
    """Where the same recipe gives the same bits again."""
    files: dict[FileName, str] = Field(default={})
    """SHA-256 of every file in the result folder but this one, by name."""
    source_files: dict[str, str] = Field(default={})
    """One SHA-256 of config.json and of every file of weights that the run read, by name: see
    `SourceFiles.sums`. None for a model in memory."""

    @model_validator(mode="before")
    @classmethod
    def _brought_forward(cls, values: Any) -> Any:
        return bring_forward(values)

    @field_validator("settings")
    @classmethod
    def _of_their_types(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return typed_settings(settings, Recipe)

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe as `Recipe.build` takes it: flat if the run has one stage, which pruned."""
        return _as_recipe(self.settings, self.stages)

    @property
    def pruning_recipe(self) -> dict[str, Any]:
        """The recipe without the stage that trained, of which `recovery` tells."""
        return _as_recipe(self.settings, self.pruning)

    @property
    def pruning(self) -> tuple[StageRecord, ...]:
        """The stages but one that trained the whole model."""
        return tuple(stage for stage in self.stages if stage.kind != RecoverStage.kind)

    @property
    def method(self) -> str:
        """The method; of several that prune the title of each, such as "sparsegpt + wanda"."""
        return " + ".join(stage.title for stage in self.pruning)

    @property
    def pattern(self) -> str:
        """The pattern; of stages with different ones that of each, such as "2:4 + 50%"."""
        patterns = [stage.pattern for stage in self.stages if stage.pattern is not None]
        return " + ".join(patterns if len(set(patterns)) > 1 else patterns[:1])

    @property
    def removes(self) -> bool:
        """Whether a stage was to remove structures."""
        return any(stage.removes for stage in self.stages)

    @property
    def quantize(self) -> str | None:
        """The scheme that the weights are quantised by; None if they are not."""
        scheme = self.pruning[-1].settings.get("quantize") if self.pruning else None
        return None if scheme is None else str(scheme)

    @property
    def removed(self) -> tuple[Removed, ...]:
        """The blocks that were removed of the model, in order."""
        return tuple(stage.removed for stage in self.stages if stage.removed is not None)

    @property
    def lost(self) -> tuple[Removed | LostWidth, ...]:
        """What was removed of the model and of its blocks, in order."""
        lost = (stage.removed or stage.narrowed for stage in self.stages)
        return tuple(one for one in lost if one is not None)

    @property
    def selection(self) -> Selection | None:
        """The pattern that the stages gave every matrix, the last that gave one; None if none did.

        Raises:
            PatternError: a pattern cannot be read.
        """
        selection: Selection | None = None
        for stage in self.stages:
            if "pattern" in stage.settings and not stage.removes:
                selection = replace(read_selection(stage.settings), before=selection)
        return selection

    @property
    def blocks(self) -> tuple[BlockRecord, ...]:
        """The blocks as the last stage that pruned left them."""
        return self.pruning[-1].blocks if self.pruning else ()

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know of any stage."""
        return tuple(dict.fromkeys(line for stage in self.stages for line in stage.notices))

    @property
    def weights(self) -> int:
        """Prunable weights."""
        return sum(m.rows * m.columns for block in self.blocks for m in block.matrices)

    @property
    def dense_weights(self) -> int:
        """Prunable weights before anything was removed."""
        return self.weights + sum(one.weights for one in self.lost)

    @property
    def dense_blocks(self) -> int:
        """Blocks before anything was removed."""
        return self.removed[0].of if self.removed else len(self.blocks)

    @property
    def zeros(self) -> int:
        """Weights that are zero."""
        return sum(m.zeros for block in self.blocks for m in block.matrices)

    @property
    def sparsity(self) -> float:
        """Share of zeros among the prunable weights."""
        return self.zeros / self.weights

    @property
    def mean_output_error(self) -> float | None:
        """Mean over blocks of the relative output error of the last stage that pruned."""
        errors = [block.output_error for block in self.blocks if block.output_error is not None]
        return sum(errors) / len(errors) if errors else None


def _as_recipe(settings: dict[str, Any], stages: tuple[StageRecord, ...]) -> dict[str, Any]:
    if [stage.kind for stage in stages] == [PRUNE]:
        return {**settings, **stages[0].settings}
    return {**settings, STAGES: [{KIND: stage.kind, **stage.settings} for stage in stages]}


def read_record(folder: Path) -> RunRecord | None:
    """The record in a folder, or None if it has none.

    Raises:
        CheckpointError: there is one and it cannot be read.
    """
    path = folder / "run.json"
    return read_record_file(path) if path.is_file() else None


def read_record_file(path: Path) -> RunRecord:
    """The record in a file.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        at_most(MOST_JSON_BYTES, path.stat().st_size, "bytes of JSON", where=path)
        return RunRecord.model_validate_json(path.read_bytes())
    except OSError as fault:
        raise unreadable(path, fault, CheckpointError) from fault
    except ValidationError as fault:
        first = fault.errors()[0]
        where = ".".join(str(part)[:40] for part in first["loc"])
        raise CheckpointError(
            f"the run record cannot be read ({where + ': ' if where else ''}"
            f"{first['msg'].removeprefix('Value error, ')[:200]})",
            where=path,
            wanted="the run.json that secateur wrote, or none",
        ) from fault


def write_record(folder: Path, record: RunRecord) -> None:
    """Put `run.json` into a folder, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    path = folder / "run.json"
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(path, record.model_dump_json(indent=2) + "\n")
