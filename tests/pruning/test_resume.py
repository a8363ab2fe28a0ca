"""A crash costs one block: runs stopped at any moment go on, and end in the same bits."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import secateur
from secateur import cli, methods
from secateur.blocks import sweep
from secateur.checkpoint import open as opening
from secateur.checkpoint.naming import NotStreamableError
from secateur.checkpoint.proved import read_facts, write_facts
from secateur.errors import CheckpointError, NumericalError, OutputError, RecipeError
from secateur.progress import Quiet
from secateur.pruning import dense_passes
from secateur.record import RunRecord
from tiny import BLOCKS, fingerprint, make_model, make_tokens, save

CHANGES = {"created", "seconds", "peak_memory_bytes", "settings"}
"""What two records of the same run may differ in."""
UP = "model.layers.1.mlp.up_proj.weight"


def wait_until_finished(out: Path, block: int) -> None:
    """A block is written while the next one is pruned: until that is done, and tidied up."""
    state, end = partial(out) / "state", time.monotonic() + 300
    while not (state / f"block-{block:05d}.json").exists() or len(list(state.glob("stream-*"))) > 1:
        assert time.monotonic() < end
        time.sleep(0.001)


class Told(Quiet):
    """Remembers the notices, and which blocks were pruned."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.blocks: list[int] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def block(self, **facts: Any) -> None:
        self.blocks.append(facts["block"])


@pytest.fixture
def options(llama_folder: Path, tokens_file: Path) -> dict[str, Any]:
    """A short run: everything but its `out`."""
    return {
        "model": llama_folder,
        "method": "wanda",
        "calibration": tokens_file,
        "sequence_length": 32,
        "samples": 8,
        "batch_size": 3,
    }


@contextmanager
def stopped(at: int, fault: type[BaseException] = KeyboardInterrupt) -> Iterator[None]:
    """Inside, the sweep raises `fault` while it works on block `at`."""
    real = sweep.new_weights

    def new_weights(block: Any, *args: Any) -> Any:
        if block.index == at:
            raise fault("stopped")
        return real(block, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "new_weights", new_weights)
        with pytest.raises(fault):
            yield


def weights_of(folder: Path) -> dict[str, str]:
    """Fingerprints of everything but the record."""
    return {name: bits for name, bits in fingerprint(folder).items() if name != "run.json"}


def facts_of(record: RunRecord) -> dict[str, Any]:
    """A record without what time and place decide."""
    facts = record.model_dump(mode="json", exclude=CHANGES)
    for stage in facts["stages"]:
        del stage["seconds"], stage["notices"]
        for block in stage["blocks"]:
            del block["seconds"]
    for evaluation in facts["evaluations"]:
        del evaluation["seconds"]
    return facts


def partial(out: Path) -> Path:
    return out.parent / f".{out.name}.partial"


def same_result(out: Path, reference: Path, run: RunRecord, whole: RunRecord) -> None:
    """Prove that an interrupted run ended like one that was not, and left nothing behind."""
    assert weights_of(out) == weights_of(reference)
    assert facts_of(run) == facts_of(whole)
    assert run == RunRecord.model_validate_json((out / "run.json").read_bytes())
    assert [name for name in os.listdir(out.parent) if name.startswith(f".{out.name}")] == []
    assert "state" not in os.listdir(out)


# --- the same bits ---


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("method", [method.name for method in methods.every()])
def test_every_method_goes_on(
    options: dict[str, Any], tmp_path: Path, method: str, at: int
) -> None:
    options |= {"method": method}
    if method == "magnitude":
        options["calibration"] = None
    if method == "wanda++":
        options |= {"preset": "paper", "regional": {"rounds": 2, "samples": 4}}
    whole = secateur.prune(**options, out=tmp_path / "whole")
    with stopped(at):
        secateur.prune(**options, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    told = Told()
    run = secateur.prune(**options, out=tmp_path / "out", progress=told)
    assert told.blocks == list(range(at, BLOCKS))
    same_result(tmp_path / "out", tmp_path / "whole", run, whole)


def test_a_run_in_one_pass_goes_on(options: dict[str, Any], tmp_path: Path) -> None:
    options |= {"method": "sparsegpt", "schedule": "matrix"}
    whole = secateur.prune(**options, out=tmp_path / "whole")
    with stopped(2):
        secateur.prune(**options, out=tmp_path / "out")
    with pytest.raises(RecipeError, match="schedule matrix, not block"):
        secateur.prune(**options | {"schedule": "block"}, out=tmp_path / "out")
    run = secateur.prune(**options, out=tmp_path / "out")
    same_result(tmp_path / "out", tmp_path / "whole", run, whole)


@pytest.mark.parametrize("family", ["gpt2", "opt", "mistral", "mixtral"])
def test_other_families_and_many_stops(
    options: dict[str, Any], tmp_path: Path, family: str
) -> None:
    depth: dict[str, Any] = {"num_hidden_layers": BLOCKS} if family == "mixtral" else {}
    options["model"] = save(make_model(family, **depth), tmp_path / "model")
    whole = secateur.prune(**options, out=tmp_path / "whole")
    for at in (1, 1, 2, 2):
        with stopped(at):
            secateur.prune(**options, out=tmp_path / "out")
    run = secateur.prune(**options, out=tmp_path / "out")
    same_result(tmp_path / "out", tmp_path / "whole", run, whole)


def test_a_model_that_was_loaded_whole(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise NotStreamableError

    monkeypatch.setattr(opening, "StreamedModel", refuse)
    options["model"] = save(make_model("gpt2", dtype=torch.bfloat16), tmp_path / "model")
    options["dtype"] = "float32"
    whole = secateur.prune(**options, out=tmp_path / "whole")
    assert not whole.streamed
    with stopped(2):
        secateur.prune(**options, out=tmp_path / "out")
    told = Told()
    run = secateur.prune(**options, out=tmp_path / "out", progress=told)
    assert told.blocks == [2]
    same_result(tmp_path / "out", tmp_path / "whole", run, whole)


def test_held_out_text_goes_on_too(
    options: dict[str, Any], tmp_path: Path, text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options |= {"text": str(text_folder), "windows": 5, "also_text": str(options["calibration"])}
    whole = secateur.prune(**options, out=tmp_path / "whole")
    with stopped(2):
        secateur.prune(**options, out=tmp_path / "out")
    monkeypatch.delattr(dense_passes, "pass_through")  # the dense model is not run again
    run = secateur.prune(**options, out=tmp_path / "out")
    same_result(tmp_path / "out", tmp_path / "whole", run, whole)
    assert run.evaluations[0].perplexity == whole.evaluations[0].perplexity


@pytest.mark.parametrize("kept", [None, "gradients.safetensors"])
@pytest.mark.parametrize("at", [0, 2])
def test_gradients_are_not_computed_again(
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kept: str | None,
    at: int,
) -> None:
    options["method"] = "gblm"
    whole = secateur.prune(**options, out=tmp_path / "whole")
    if kept is not None:
        options["save_gradients"] = str(tmp_path / kept)
    with stopped(at):
        secateur.prune(**options, out=tmp_path / "out")
    monkeypatch.delattr(dense_passes, "full_gradients")
    run = secateur.prune(**options, out=tmp_path / "out")
    same_result(tmp_path / "out", tmp_path / "whole", run, whole)


def test_the_record_adds_up_the_time(options: dict[str, Any], tmp_path: Path) -> None:
    with stopped(2):
        secateur.prune(**options, out=tmp_path / "out")
    block = partial(tmp_path / "out") / "state" / "block-00001.json"
    write_facts(block, {**read_facts(block), "seconds": 1000.0})
    began = time.perf_counter()
    run = secateur.prune(**options, out=tmp_path / "out")
    assert 1000 < run.seconds < 1000 + time.perf_counter() - began


def test_names_and_places_do_not_matter(options: dict[str, Any], tmp_path: Path) -> None:
    whole = secateur.prune(**options, out=tmp_path / "whole")
    with stopped(1):
        secateur.prune(**options, out=tmp_path / "out")
    shutil.copytree(options["model"], tmp_path / "moved")
    shutil.copyfile(options["calibration"], tmp_path / "moved.safetensors")
    options |= {"model": tmp_path / "moved", "calibration": tmp_path / "moved.safetensors"}
    partial(tmp_path / "out").rename(partial(tmp_path / "new"))
    told = Told()
    run = secateur.prune(**options, out=tmp_path / "new", progress=told)
    assert told.blocks == [1, 2]
    assert weights_of(tmp_path / "new") == weights_of(tmp_path / "whole")
    assert run.files == whole.files


def test_a_further_text_may_lie_elsewhere(options: dict[str, Any], tmp_path: Path) -> None:
    text, also = options["calibration"], tmp_path / "also.safetensors"
    save_file({"input_ids": make_tokens(seed=1)}, also)
    options |= {"text": str(text), "out": tmp_path / "out"}
    with stopped(1):
        secateur.prune(**options, also_text=[str(also)])
    moved = also.rename(tmp_path / "moved.safetensors")
    told = Told()
    run = secateur.prune(**options, also_text=[str(moved)], progress=told)
    assert told.blocks == [1, 2]
    assert len(run.evaluations) == 2


# --- what is said, what is kept ---


def test_an_interrupt_says_how_to_go_on(
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [
        "prune", options["model"], "--calibration", options["calibration"], "--method", "wanda",
        "--sequence-length", 32, "--samples", 8, "--out", tmp_path / "out",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["secateur", *map(str, arguments)])
    real = sweep.new_weights

    def new_weights(block: Any, *args: Any) -> Any:
        if block.index == 1:
            raise KeyboardInterrupt
        return real(block, *args)

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "new_weights", new_weights)
        with pytest.raises(SystemExit) as leave:
            cli.main()
    assert leave.value.code == 130
    *events, last = capsys.readouterr().err.splitlines()
    assert last == "interrupted"
    assert json.loads(events[-1])["text"] == (
        f"1 finished blocks are kept in {partial(tmp_path / 'out')}: the same command goes on from"
        " there, --restart gives them up"
    )
    with pytest.raises(SystemExit) as leave:
        cli.main()
    assert not leave.value.code
    assert (
        "going on with what an earlier run has left: 1 finished blocks" in capsys.readouterr().err
    )


def test_nothing_finished_leaves_nothing(options: dict[str, Any], tmp_path: Path) -> None:
    with stopped(0):
        secateur.prune(**options, out=tmp_path / "new" / "out")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("fault", [ZeroDivisionError, NumericalError, MemoryError])
def test_finished_blocks_stay_whatever_happens(
    options: dict[str, Any], tmp_path: Path, fault: type[BaseException]
) -> None:
    with stopped(2, fault):
        secateur.prune(**options, out=tmp_path / "out")
    assert os.listdir(tmp_path) == [".out.partial"]


def test_an_interrupted_overwrite_keeps_the_old_result(
    options: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    secateur.prune(**options, out=out)
    before = fingerprint(out)
    with stopped(1):
        secateur.prune(**{**options, "pattern": "1:4"}, out=out, overwrite=True)
    assert fingerprint(out) == before
    run = secateur.prune(**{**options, "pattern": "1:4"}, out=out, overwrite=True)
    assert run.sparsity == 0.75
    assert os.listdir(tmp_path) == ["out"]


def test_state_is_bounded(options: dict[str, Any], tmp_path: Path) -> None:
    """One file of hidden states whatever the depth, and small records."""
    options["model"] = save(make_model("llama", num_hidden_layers=6), tmp_path / "model")
    sizes, hidden = [], 8 * 32 * 32 * 4

    class Watch(Quiet):
        def block(self, **facts: Any) -> None:
            wait_until_finished(tmp_path / "out", facts["block"])
            files = list((partial(tmp_path / "out") / "state").iterdir())
            streams = [path for path in files if path.name.startswith("stream-")]
            assert len(streams) == 1
            assert hidden <= streams[0].stat().st_size < hidden + 2000
            sizes.append(sum(path.stat().st_size for path in files))

    secateur.prune(**options, out=tmp_path / "out", progress=Watch())
    assert len(sizes) == 6
    assert max(sizes) < hidden + 6 * 5000


# --- what is refused ---


def other_weights(folder: Path) -> Path:
    tensors = load_file(folder / "model.safetensors")
    tensors[UP][3, 5] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, "seed 0, not 1"),
        ({"pattern": "4:8"}, "pattern 2:4, not 4:8"),
        ({"samples": 7}, "samples 8, not 7 | calibration tokens"),
        ({"batch_size": 2}, "batch_size 3, not 2"),
        ({"method": "magnitude", "calibration": None}, "method wanda, not magnitude"),
        ({"parameters": {"competition": "layer"}}, "parameters.competition row, not layer"),
        ({"dtype": "bfloat16"}, "precision float32, not bfloat16"),
        ({"calibration": "other tokens"}, "calibration tokens"),
        ({"model": "other weights"}, "source weights"),
        ({"text": "held out"}, "held-out tokens none, not"),
    ],
)
def test_another_run_is_refused(
    options: dict[str, Any], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with stopped(2):
        secateur.prune(**options, out=tmp_path / "out")
    if changes.get("calibration") == "other tokens":
        save_file({"input_ids": make_tokens(seed=1)}, tmp_path / "other.safetensors")
        changes = {"calibration": tmp_path / "other.safetensors"}
    if "model" in changes:
        changes = {"model": other_weights(shutil.copytree(options["model"], tmp_path / "other"))}
    if "text" in changes:
        changes = {"text": str(options["calibration"])}
    before = fingerprint(tmp_path)
    with pytest.raises(RecipeError, match="an unfinished run with 2 finished blocks had") as caught:
        secateur.prune(**{**options, **changes}, out=tmp_path / "out")
    assert said in str(caught.value)
    assert "try the same command as before to continue it, --restart" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert fingerprint(tmp_path) == before
    run = secateur.prune(**{**options, **changes}, out=tmp_path / "out", restart=True)
    assert len(run.blocks) == BLOCKS
    assert not partial(tmp_path / "out").exists()


def test_another_machine_is_a_notice(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopped(1):
        secateur.prune(**options, out=tmp_path / "out")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    run = secateur.prune(**options, out=tmp_path / "out")
    (line,) = run.notices
    assert "begun with threads 1, not 2: its bits may differ" in line


def test_two_at_once(options: dict[str, Any], tmp_path: Path) -> None:
    said = []

    class Second(Quiet):
        def block(self, **facts: Any) -> None:
            with pytest.raises(OutputError) as caught:
                secateur.prune(**options, out=tmp_path / "out", restart=True)
            said.append(str(caught.value))

    run = secateur.prune(**options, out=tmp_path / "out", progress=Second())
    assert len(run.blocks) == len(said) == BLOCKS
    assert all("another run is writing here" in line for line in said)


def spoil(name: str) -> Callable[[Path], object]:
    return lambda state: (state / name).write_bytes((state / name).read_bytes()[:40])


@pytest.mark.parametrize(
    "damage",
    [
        spoil("block-00001.json"),
        spoil("stream-00002.safetensors"),
        spoil("identity.json"),
        lambda state: (state / "stream-00002.safetensors").unlink(),
        lambda state: (state.parent / f"model-00002-of-0000{BLOCKS + 1}.safetensors").unlink(),
        lambda state: (state / "block-00000.json").write_text("[]"),
    ],
)
def test_damaged_state_is_refused_and_restart_helps(
    options: dict[str, Any], tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    with stopped(2):
        secateur.prune(**options, out=tmp_path / "out")
    damage(partial(tmp_path / "out") / "state")
    before = fingerprint(tmp_path)
    with pytest.raises(CheckpointError, match=r"an unfinished run .*try --restart") as caught:
        secateur.prune(**options, out=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert fingerprint(tmp_path) == before  # a person may still mend it
    assert secateur.prune(**options, out=tmp_path / "out", restart=True).sparsity == 0.5


# --- real crashes ---


def prune_and_die(options: dict[str, Any], out: Path, at: int, after: bool) -> bool:
    """In a child that ends, as by SIGKILL, at its `at`-th rename; whether it came so far."""
    child = os.fork()
    if child == 0:  # nothing of the test may run on here
        count, rename, replace = 0, Path.rename, Path.replace

        def dying(move: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
            def moving(self: Path, target: Path) -> Path:
                nonlocal count
                count += 1
                if count == at and not after:
                    os._exit(9)
                done = move(self, target)
                if count == at:
                    os._exit(9)
                return done

            return moving

        try:
            Path.rename = dying(rename)  # type: ignore[assignment]
            Path.replace = dying(replace)  # type: ignore[assignment]
            secateur.prune(**options, out=out)
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 9)
    return code == 9


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("after", [False, True])
def test_death_at_every_rename(options: dict[str, Any], tmp_path: Path, after: bool) -> None:
    """Between any two renames the state is whole: a dead run goes on, and ends in the same bits."""
    secateur.prune(**options, out=tmp_path / "whole")
    wanted = weights_of(tmp_path / "whole")
    at = 1
    while prune_and_die(options, tmp_path / str(at), at, after):
        out = tmp_path / str(at)
        if not out.exists():  # the last rename is the one that makes it whole
            secateur.prune(**options, out=out)
        else:
            with pytest.raises(OutputError, match="exists and is not empty"):
                secateur.prune(**options, out=out)
        assert weights_of(out) == wanted, at
        assert not partial(out).exists()
        at += 1
    assert at > 3 * BLOCKS  # a shard, the hidden states and the record of every block


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.01)


def test_sigkill(options: dict[str, Any], tmp_path: Path) -> None:
    """The command itself, killed."""
    options["model"] = save(make_model("llama", num_hidden_layers=12), tmp_path / "model")
    options |= {"method": "wanda++"}
    whole = secateur.prune(**options, out=tmp_path / "whole")
    command = [
        sys.executable, "-m", "secateur", "prune", options["model"], "--method", "wanda++",
        "--calibration", options["calibration"], "--sequence-length", "32", "--samples", "8",
        "--batch-size", "3", "--out", tmp_path / "out",
    ]  # fmt: skip
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=one_thread) as process:
        wait_for(partial(tmp_path / "out") / "state" / "block-00003.json", process)
        process.send_signal(signal.SIGKILL)
    told = Told()
    run = secateur.prune(**options, out=tmp_path / "out", progress=told)
    assert told.blocks[0] >= 4
    same_result(tmp_path / "out", tmp_path / "whole", run, whole)


# --- a full disk ---


@contextmanager
def small_disk(at: Path, bytes_: int) -> Iterator[None]:
    """A file system of its own, in memory, where that may be made."""
    at.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={bytes_}", "tmpfs", str(at)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(at)], check=True)


def fill(path: Path) -> None:
    """Take all the space that there is."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(b"\0" * 4096):
            pass
    free = os.statvfs(path.parent)
    assert free.f_bavail == 0


def test_a_full_disk_keeps_what_is_finished(options: dict[str, Any], tmp_path: Path) -> None:
    whole = secateur.prune(**options, out=tmp_path / "whole")
    before = fingerprint(options["model"])
    needed = sum(path.stat().st_size for path in (tmp_path / "whole").iterdir())
    with small_disk(tmp_path / "disk", 4 * needed):
        out, ballast = tmp_path / "disk" / "out", tmp_path / "disk" / "ballast"

        class Fill(Quiet):
            def block(self, **facts: Any) -> None:
                if facts["block"] == 1:
                    wait_until_finished(out, 1)
                    fill(ballast)

        with pytest.raises(OutputError, match=r"No space left.*try freeing space, and the same"):
            secateur.prune(**options, out=out, progress=Fill())
        assert not out.exists()
        assert fingerprint(options["model"]) == before
        ballast.unlink()
        told = Told()
        run = secateur.prune(**options, out=out, progress=told)
        assert told.blocks == [2]
        same_result(out, tmp_path / "whole", run, whole)


def test_a_quota_keeps_what_is_finished(options: dict[str, Any], tmp_path: Path) -> None:
    whole = secateur.prune(**options, out=tmp_path / "whole")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Forbid(Quiet):
        def block(self, **facts: Any) -> None:
            if facts["block"] == 0:
                wait_until_finished(tmp_path / "out", 0)
                resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))

    try:
        with pytest.raises(OutputError, match=r"cannot be written.*try freeing space"):
            secateur.prune(**options, out=tmp_path / "out", progress=Forbid())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    told = Told()
    run = secateur.prune(**options, out=tmp_path / "out", progress=told)
    assert told.blocks == [1, 2]
    same_result(tmp_path / "out", tmp_path / "whole", run, whole)


@pytest.mark.parametrize("dense_first", [0, 1])
@pytest.mark.parametrize("whole", [False, True])
def test_a_mixture_goes_on(
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: bool,
    dense_first: int,
) -> None:
    """Experts, of which some are left dense, and a block in which nothing is pruned."""
    options["model"] = save(make_model("mixtral", num_hidden_layers=3), tmp_path / "model")
    options |= {"dense_first": dense_first, "exclude": [r"experts\.2\."]}
    if whole:
        monkeypatch.setattr(opening, "StreamedModel", _not_streamable)
    reference = secateur.prune(**options, out=tmp_path / "whole")
    assert reference.streamed is not whole
    with stopped(2):
        secateur.prune(**options, out=tmp_path / "out")
    told = Told()
    run = secateur.prune(**options, out=tmp_path / "out", progress=told)
    assert told.blocks == [2]
    same_result(tmp_path / "out", tmp_path / "whole", run, reference)


def _not_streamable(*_: Any) -> None:
    raise NotStreamableError("told so")
