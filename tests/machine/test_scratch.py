"""Files for the length of a process are gone with it, however it ends."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path

import pytest

from secateur.errors import OutputError
from secateur.machine.scratch import scratch_folder


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def started(tmp_path: Path) -> int:
    """A process that holds a folder with a file in it."""
    before = len(list(tmp_path.glob("*/gradients/half")))
    child = os.fork()
    if child == 0:  # nothing of the test may run on here
        status = 1
        try:
            with scratch_folder() as folder:
                (folder / "gradients").mkdir()
                (folder / "gradients" / "half").write_text("written")
                time.sleep(60)
        except SystemExit as leave:
            status = leave.code if isinstance(leave.code, int) else 1
        finally:
            os._exit(status)
    end = time.monotonic() + 60
    while len(list(tmp_path.glob("*/gradients/half"))) == before:
        assert time.monotonic() < end
        time.sleep(0.01)
    return child


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end(tmp_path: Path, number: int) -> None:
    child = started(tmp_path)
    os.kill(child, number)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + number
    assert os.listdir(tmp_path) == []


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_kill_is_tidied_up_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "secateur-scratch-mine").mkdir()  # without a lock beside it: nobody knows whose
    alive, child = started(tmp_path), started(tmp_path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(list(tmp_path.glob("*/gradients/half"))) == 2
    with scratch_folder() as folder:
        assert len(list(tmp_path.glob("*/gradients/half"))) == 1  # the living one's
        assert folder.is_dir()
    os.kill(alive, signal.SIGTERM)
    os.waitpid(alive, 0)
    assert os.listdir(tmp_path) == ["secateur-scratch-mine"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), scratch_folder():
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_place_that_is_none() -> None:
    with (
        pytest.raises(OutputError, match=r"no folder for temporary files.*try setting TMPDIR"),
        scratch_folder(Path("/proc")),
    ):
        raise AssertionError
