"""The package without what only POSIX has: it is imported, checks a model, writes one.

A process of its own blocks the modules and takes away the attributes that Windows lacks before
anything is imported; the rest of the standard library, and what others install, stay as they are.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

WITHOUT_POSIX = '''
import importlib.abc, os, signal, sys
import ctypes, multiprocessing, selectors, socket, subprocess, tempfile, threading  # have their own

# What others need, whose own ways around it are theirs to test.
import datasets, filelock, huggingface_hub, peft, psutil, torch, transformers, accelerate, pydantic
import rich.console, typer, xxhash, safetensors.torch, greenlet, pyarrow, yaml

BLOCKED = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "readline"}


class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in BLOCKED:
            raise ModuleNotFoundError(f"{name} is not there on Windows", name=name)
        return None


sys.meta_path.insert(0, Blocker())
for name in BLOCKED:
    sys.modules.pop(name, None)


def own_calls_only(real, refuse):
    """Refuses a caller that lies in the package."""

    def call(*args, **kwargs):
        frame = sys._getframe(1)
        if frame.f_globals.get("__name__", "").partition(".")[0] == "secateur":
            refuse(*args, **kwargs)
        return real(*args, **kwargs)

    return call


def refuse_folder(path, *args, **kwargs):
    if os.path.isdir(path):
        raise PermissionError(13, "no folder is opened on Windows", path)


def refuse_none(name, *args, **kwargs):
    if name is None:
        raise TypeError("no library is called None on Windows")


os.open = own_calls_only(os.open, refuse_folder)
ctypes.CDLL = own_calls_only(ctypes.CDLL, refuse_none)
for name in ("fork", "forkpty", "getuid", "getgid", "getpgid", "killpg", "mkfifo", "statvfs",
             "sched_getaffinity", "fchmod", "fchown", "chown", "O_DIRECTORY"):
    vars(os).pop(name, None)
for name in ("SIGKILL", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGCHLD", "SIGALRM", "alarm", "setitimer"):
    vars(signal).pop(name, None)
import errno
vars(errno).pop("EDQUOT", None)
sys.platform = "win32"  # what the package itself asks; the others have been imported
'''

PLANTED = """
for code in ("import fcntl", "import resource", "import os; os.fork",
             "import ctypes; ctypes.CDLL(None)", "import os; os.open('.', os.O_RDONLY)"):
    try:
        exec(code, {"__name__": "secateur.planted"})
    except (ImportError, AttributeError, TypeError, PermissionError):
        continue
    raise AssertionError(f"{code} was not refused")
"""

USE = """
from pathlib import Path
import secateur
from secateur.record.check import check_folder

proof = check_folder("builtin", None)
assert proof.weights > 1_000_000 and proof.complaint is None
out = Path(sys.argv[1])
run = secateur.prune("builtin", method="magnitude", pattern="2:4", out=out)
assert run.peak_memory_bytes > 0
assert check_folder(str(out), None).complaint is None
assert [path.name for path in out.parent.iterdir()] == [out.name]
sys.argv = ["secateur", "check", "builtin"]
from secateur.cli import main
main()
"""


def test_without_posix_models_are_checked_and_pruned(tmp_path: Path) -> None:
    code = WITHOUT_POSIX + PLANTED + USE
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "self_attn.q_proj" in done.stdout
