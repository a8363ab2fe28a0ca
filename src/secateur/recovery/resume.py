"""The state of a recovery that was interrupted: one safetensors file, replaced as a whole.

    adapter.NAME                 trained factors now
    best.NAME                    at the best evaluation so far
    optimizer.NAME.exp_avg, ...  what AdamW remembers of them
    metadata "state"             JSON: what the run is, its step, the curve so far

Nothing is pickled, so that a checkpoint from elsewhere can do no more than be wrong. The order of
the data follows from seed and step and needs no state.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor
from torch.optim import Optimizer

from secateur.checkpoint.beside import recovery_beside
from secateur.checkpoint.destination import result_path
from secateur.checkpoint.durable import left_unfinished, writing
from secateur.checkpoint.proved import read_proved, write_proved
from secateur.errors import CheckpointError, RecipeError
from secateur.recipe.differences import differences
from secateur.record import RecoveryPoint

_ANEW = "--overwrite to begin anew"


class Position(BaseModel):
    """The point that a recovery has come to."""

    model_config = ConfigDict(frozen=True)

    identity: dict[str, Any]
    step: int
    curve: tuple[RecoveryPoint, ...]
    seconds: float
    interruptions: int


class InterruptedRecovery:
    """The checkpoint of one recovery.

    Args:
        path: of the file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def beside(cls, out: Path) -> InterruptedRecovery:
        """The checkpoint of a recovery whose result is to be `out`.

        Raises:
            OutputError: there can be no such folder.
        """
        return cls(recovery_beside(result_path(out)))

    @property
    def exists(self) -> bool:
        """Whether there is a run to go on with."""
        return self.path.is_file()

    def save(
        self,
        position: Position,
        adapter: Mapping[str, Tensor],
        best: Mapping[str, Tensor],
        optimizer: Mapping[str, Mapping[str, Tensor]],
    ) -> None:
        """Replace the file.

        Raises:
            OutputError: it cannot be written.
        """
        tensors = {f"adapter.{name}": value for name, value in adapter.items()}
        tensors |= {f"best.{name}": value for name, value in best.items()}
        for name, moments in optimizer.items():
            tensors |= {f"optimizer.{name}.{key}": value for key, value in moments.items()}
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        write_proved(self.path, tensors, {"state": position.model_dump_json()})

    def load(self, identity: Mapping[str, Any]) -> tuple[Position, dict[str, Tensor]]:
        """Read what was saved.

        Args:
            identity: of the run that wants to go on.

        Raises:
            CheckpointError: there is no such file, or it is not what was written.
            RecipeError: it is of another run.
        """
        if not self.exists:
            raise CheckpointError(
                "no interrupted recovery to go on with", where=self.path, hint="without --resume"
            )
        try:
            tensors, facts = read_proved(self.path)
            position = Position.model_validate_json(facts["state"])
        except (CheckpointError, KeyError, ValidationError) as fault:
            raise CheckpointError(
                "the checkpoint cannot be read", where=self.path, hint=_ANEW
            ) from fault
        if differing := differences(identity, position.identity):
            raise RecipeError(
                f"the checkpoint was made with {' | '.join(map(str, differing))}",
                where=self.path,
                hint=f"the same options again, or {_ANEW}",
            )
        if not position.curve:
            raise CheckpointError("the checkpoint has no curve", where=self.path, hint=_ANEW)
        return position, tensors

    def check_fits(
        self, tensors: Mapping[str, Tensor], factors: Mapping[str, Tensor], step: int
    ) -> None:
        """Prove that what `load` gave is the state of these factors.

        Args:
            tensors: what was read.
            factors: those that are trained, by name.
            step: how many steps were done; the optimiser remembers nothing before the first.

        Raises:
            CheckpointError: a factor is missing, or of another shape.
        """
        kinds = ["adapter.{}", "best.{}"]
        kinds += ["optimizer.{}.exp_avg", "optimizer.{}.exp_avg_sq"] if step else []
        for name, factor in factors.items():
            for key in (kind.format(name) for kind in kinds):
                if key not in tensors or tensors[key].shape != factor.shape:
                    raise CheckpointError(
                        f"the checkpoint lacks {key!r}, or has it in another shape",
                        where=self.path,
                        hint=_ANEW,
                    )

    def remove(self) -> None:
        """The run is over; what killed attempts to save it have left goes too."""
        for path in (self.path, *left_unfinished(self.path)):
            path.unlink(missing_ok=True)


def part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors under one of the prefixes of the file."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): v for key, v in tensors.items() if key.startswith(prefix)}


def remembered(optimizer: Optimizer, names: list[str]) -> dict[str, dict[str, Tensor]]:
    """The state of an optimiser by the name of the parameter, in the order it was given them."""
    state = optimizer.state_dict()["state"]
    return {
        name: {key: torch.as_tensor(value) for key, value in state[index].items()}
        for index, name in enumerate(names)
        if index in state
    }


def remind(optimizer: Optimizer, names: list[str], tensors: Mapping[str, Tensor]) -> None:
    """Give back to an optimiser what `remembered` took from it."""
    state: dict[int, dict[str, Tensor]] = {}
    for index, name in enumerate(names):
        state[index] = part(tensors, name)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
