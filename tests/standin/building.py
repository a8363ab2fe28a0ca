"""Compiles the stand-in, once for a machine and a version of PyTorch.

The compiled file lies in the user's cache, under a hash of all that it depends on. Of several
processes one compiles and the others wait.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch.utils import cpp_extension

SOURCE = Path(__file__).with_name("device.cpp")
NAME = "secateur_standin"
FLAGS = ["-O1"]
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
"""Where programs lie: those that pip installed first, ninja among them."""


def why_not() -> str | None:
    """The reason for which this machine cannot have the stand-in; None if it can."""
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None:
        return f"this build of PyTorch is for {accelerator.type} itself"
    if sys.platform != "linux":
        return f"the stand-in is not made for {sys.platform}"
    if shutil.which(os.environ.get("CXX", "c++"), path=PATH) is None:
        return "there is no C++ compiler"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's headers are not installed"
    return None if shutil.which("ninja", path=PATH) else "there is no ninja"


def compiled_file() -> Path:
    """Where the compiled stand-in lies, or will lie: .so."""
    parts = [torch.__version__, sys.version, platform.machine(), *FLAGS]
    digest = hashlib.sha256(SOURCE.read_bytes() + "\n".join(parts).encode()).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if not os.access(cache if cache.exists() else cache.parent, os.W_OK):
        cache = Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"
    return cache / "secateur-standin" / digest[:16] / f"{NAME}.so"


@functools.cache
def load() -> Any:
    """The compiled device, from now to the end of the process; the first time takes a minute.

    Its kernels stay registered, and PyTorch's autograd keeps to the devices that there were when it
    first ran: so in a process of its own, before anything else is done.
    """
    file = compiled_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        if not file.exists():
            return _compile(file)
    spec = importlib.util.spec_from_file_location(NAME, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compile(file: Path) -> Any:
    """Compile to `file`, which appears when it is whole; PyTorch loads what it compiles."""
    os.environ["PATH"] = PATH
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        module = cpp_extension.load(
            NAME, [str(SOURCE)], extra_cflags=FLAGS, build_directory=folder, with_cuda=False
        )
        os.replace(Path(folder) / file.name, file)
    return module
