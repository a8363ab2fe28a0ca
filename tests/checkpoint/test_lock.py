"""One run at a time in a result folder; what a killed one leaves behind stops nobody."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from secateur.checkpoint.lock import OutputLock
from secateur.errors import OutputError

HOLD = """
import sys, time
from pathlib import Path
from secateur.checkpoint.lock import OutputLock
lock = OutputLock(Path(sys.argv[1]))
lock.take()
print("held", flush=True)
time.sleep(60)
"""


def test_another_process_is_refused_until_it_is_killed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", HOLD, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match="another run is writing here") as caught:
            OutputLock(out).take()
        assert "\n" not in str(caught.value)
        process.send_signal(signal.SIGKILL)
    assert [left.name for left in tmp_path.iterdir()] == [".out.lock"]  # the dead process's
    lock = OutputLock(out)
    lock.take()
    assert lock.held
    with pytest.raises(OutputError, match="another run is writing here"):
        OutputLock(out).take()
    lock.let_go()
    assert list(tmp_path.iterdir()) == []
    assert not lock.held


def test_a_file_that_is_no_lock_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / ".out.lock"
    path.write_text("combination 1-2-3")
    with pytest.raises(OutputError, match="is in the way"):
        OutputLock(tmp_path / "out").take()
    assert path.read_text() == "combination 1-2-3"
    (tmp_path / ".link.lock").symlink_to(path)
    with pytest.raises(OutputError, match="is in the way"):
        OutputLock(tmp_path / "link").take()
    assert path.read_text() == "combination 1-2-3"


def test_other_results_in_the_same_folder_are_free(tmp_path: Path) -> None:
    locks = [OutputLock(tmp_path / name) for name in ("one", "two")]
    for lock in locks:
        lock.take()
    for lock in locks:
        lock.let_go()
    assert list(tmp_path.iterdir()) == []
