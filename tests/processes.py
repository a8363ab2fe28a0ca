"""What two processes do in machine/test_processes.py.

    torchrun --nproc-per-node 2 --max-restarts 1 tests/processes.py FOLDER

FOLDER has `model`, a checkpoint, and `tokens.safetensors`. A process takes seconds to start, so
that this does all in turn: what both do well, then the command, in which process 1 is killed; then
torchrun starts the two again, and they go on with the command.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import secateur
from secateur import cli
from secateur.blocks import sweep
from secateur.errors import SecateurError
from secateur.machine import processes
from tiny import make_model

RUNS: dict[str, dict[str, Any]] = {
    "wanda": {"text": True, "batch_size": 7},
    "one pass": {"method": "wanda", "schedule": "matrix"},
    "sparsegpt": {"batch_size": 7},
    "gblm": {},
    "shortgpt": {"pattern": "blocks-1"},
    "greedy": {"pattern": "blocks-1", "mend": True,
               "regional": {"rounds": 2, "samples": 4, "batch_size": 2}},
    "wanda++": {"regional": {"rounds": 2, "samples": 4, "batch_size": 2}},
}  # fmt: skip
"""Name of a run, its method if nothing else is said -> options beside those of all."""
DYING = "wanda++"


def options(folder: Path, run: str) -> dict[str, Any]:
    """Everything that a run needs but its `out`; the last batches are smaller."""
    tokens = str(folder / "tokens.safetensors")
    own = dict(RUNS[run])
    if own.pop("text", False):
        own |= {"text": tokens, "windows": 5}
    return {
        "model": str(folder / "model"),
        "method": run,
        "calibration": tokens,
        "sequence_length": 32,
        "samples": 7,
        "batch_size": 3,
        **own,
    }


def several(folder: Path) -> None:
    """Every method; a model in memory; perplexity of fewer windows than processes; refusals."""
    for run in RUNS:
        record = secateur.prune(**options(folder, run), out=folder / "two" / run)
        (folder / f"{run}-{processes.number()}.json").write_text(record.model_dump_json())
    live = make_model("mixtral")
    tokens = load_file(folder / "tokens.safetensors")["input_ids"]
    secateur.prune(live, method="sparsegpt", calibration=tokens, route_all=True)
    state = {name: value.contiguous() for name, value in live.state_dict().items()}
    save_file(state, folder / f"live-{processes.number()}.safetensors")
    given = options(folder, "wanda")
    found = secateur.evaluate(
        given["model"], text=given["calibration"], sequence_length=32, windows=1
    )
    (folder / f"evaluation-{processes.number()}.json").write_text(found.model_dump_json())
    for refused in (
        lambda: secateur.prune(**{**options(folder, "wanda"), "samples": 1}, out=folder / "no"),
        lambda: processes.alone("this"),
    ):
        try:
            refused()
        except SecateurError as fault:
            with (folder / f"refused-{processes.number()}.txt").open("a") as file:
                print(fault, file=file)
    with contextlib.suppress(KeyboardInterrupt), _at(1, _interrupt):
        secateur.prune(**options(folder, "wanda"), out=folder / "left")


def command(folder: Path, doomed: bool) -> None:
    """The command; if process 1 is doomed, it is killed at block 2."""
    given = options(folder, DYING)
    model, regional = given.pop("model"), given.pop("regional")
    arguments = ["prune", model, "--out", folder / "dying"]
    for name, value in given.items():
        arguments += ["--" + name.replace("_", "-"), value]
    for name, value in regional.items():
        arguments += ["--set", f"regional.{name}={value}"]
    sys.argv[1:] = [str(argument) for argument in arguments]
    with _at(2, _die) if doomed and processes.number() == 1 else contextlib.nullcontext():
        cli.main()


@contextlib.contextmanager
def _at(index: int, happen: Any) -> Any:
    """Inside, something happens when block `index` is to be pruned."""
    real: Any = sweep.new_weights

    def new_weights(block: Any, *args: Any) -> Any:
        if block.index == index:
            happen()
        return real(block, *args)

    setattr(sweep, "new_weights", new_weights)  # noqa: B010 - for as long as this lasts
    try:
        yield
    finally:
        sweep.new_weights = real


def _interrupt() -> None:
    raise KeyboardInterrupt


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, begun = Path(sys.argv[1]), os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    processes.start()
    if begun:
        several(place)
    command(place, doomed=begun)
