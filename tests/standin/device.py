"""An accelerator for machines without one: as strict as the real one, and it counts.

    with Standin("cuda") as gpu:                 # or "mps", "xpu"
        model.to("cuda"); ...
        gpu.table("wait")                        # what made the host wait, by line of our code
        gpu.peak                                 # bytes

Tensors "on the device" lie in main memory and are computed by the CPU's kernels (device.cpp), so
that results can be compared bit for bit. Raised is what PyTorch raises: tensors of two devices in
one operator, `.numpy()` on a device tensor, a CPU generator for a device tensor, float64 on MPS,
memory beyond the limit. Not imitated: streams, pinned memory, Triton, CUDA graphs, speed.

`torch.accelerator` asks it, as it asks any; `torch.cuda`, `torch.xpu` and `torch.mps` are patched
where they ask a library that is not there.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NamedTuple, Self
from unittest import mock

import accelerate.utils.imports
import torch
import torchgen
import transformers.utils.import_utils
import yaml

import secateur
from standin.building import load

OURS = f"{Path(secateur.__file__).parent}/"
NAME = "Stand-in"
MEMORY = 24 * 2**30


class Event(NamedTuple):
    """What was told, how often, and with how many bytes in all.

    Kinds are "wait" (the host waits for a value), "h2d", "h2d-async", "d2h", "sync", "empty_cache".
    """

    times: int
    kind: str
    operator: str
    place: str
    size: int


class Standin:
    """The device in place of none, for as long as the context lasts.

    Args:
        name: "cuda", "mps" or "xpu".
        limit: bytes of its memory.
        float64: whether an "xpu" has it; "cuda" does, "mps" does not.
    """

    def __init__(self, name: str = "cuda", limit: int = MEMORY, float64: bool = True) -> None:
        self.device, self.name, self.limit, self.float64 = _device(), name, limit, float64
        self._times: Counter[tuple[str, str, str]] = Counter()
        self._bytes: Counter[tuple[str, str, str]] = Counter()
        self._patches = ExitStack()

    @property
    def peak(self) -> int:
        """Most bytes of device 0 that were in use."""
        return int(self.device.memory(0)[1])

    @property
    def in_use(self) -> int:
        """Bytes of device 0 that are in use."""
        return int(self.device.memory(0)[0])

    @property
    def launches(self) -> Counter[str]:
        """Operator -> kernels launched, about."""
        return Counter(self.device.launches())

    def reset(self) -> None:
        """Count anew."""
        self._times.clear()
        self._bytes.clear()
        self.device.forget_launches()
        for index in range(self.device.devices):
            self.device.reset_peak(index)

    def table(self, *kinds: str) -> list[Event]:
        """What happened of these kinds (all if none is named), the most frequent first."""
        told = [
            Event(times, *what, self._bytes[what])
            for what, times in self._times.items()
            if not kinds or what[0] in kinds
        ]
        return sorted(told, reverse=True)

    def tell(self, kind: str, operator: str, size: int) -> None:
        """Count one event, of `size` bytes, at the line of our code that is at work."""
        what = kind, operator, _place()
        self._times[what] += 1
        self._bytes[what] += size

    def __enter__(self) -> Self:
        self.device.listen(self.tell)
        for index in range(self.device.devices):
            self.device.limit(index, self.limit)
            self.device.reset_peak(index)
        self.device.be(self.name)
        _ask_again()
        patches = {"cuda": _of_cuda, "mps": _of_mps, "xpu": _of_xpu}[self.name](self)
        for target, value in patches.items():
            self._patches.enter_context(mock.patch(f"torch.{target}", value, create=True))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._patches.close()
        self.device.be("")
        _ask_again()
        self.device.listen(_nobody)


def _ask_again() -> None:
    """Let transformers and accelerate forget which accelerators they found."""
    for module in (transformers.utils.import_utils, accelerate.utils.imports):
        for name, function in vars(module).items():
            if name.startswith("is_") and hasattr(function, "cache_clear"):
                function.cache_clear()


def _nobody(kind: str, operator: str, size: int) -> None:
    """Hears what no stand-in listens to."""


@functools.cache
def _device() -> Any:
    device = load()
    device.lenient(_lenient())
    return device


@functools.cache
def operators() -> list[dict[str, Any]]:
    """PyTorch's own list of its operators, as it comes with it."""
    path = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    listed: list[dict[str, Any]] = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    return listed


def name_of(operator: dict[str, Any]) -> str:
    """The name of one of `operators`, as in `launches` but for "aten::"."""
    return str(operator["func"]).partition("(")[0]


def _lenient() -> list[str]:
    """Operators to which PyTorch lets 0-dimensional tensors from the CPU, by its own list."""
    free = {name_of(entry) for entry in operators() if entry.get("device_check") == "NoCheck"}
    # a structured operator's variants are checked as the one they delegate to
    free |= {name_of(entry) for entry in operators() if entry.get("structured_delegate") in free}
    return [f"aten::{name}" for name in free]


def without_kernel(launched: Counter[str], backend: str) -> set[str]:
    """Those of some operators that PyTorch's list has no kernel for: "MPS"."""
    listed = {name_of(entry): entry for entry in operators()}
    lacking = set()
    for operator in launched:
        entry = listed[operator.removeprefix("aten::")]
        entry = listed[entry.get("structured_delegate", name_of(entry))]
        keys = {key.strip() for keys in entry.get("dispatch", {}) for key in keys.split(",")}
        if keys and backend not in keys and not any(key.startswith("Composite") for key in keys):
            lacking.add(operator)
    return lacking


def _of_cuda(standin: Standin) -> dict[str, Any]:
    """What stands in place of functions of torch.cuda."""
    device, properties = standin.device, _properties(standin)
    common = {f"cuda.{name}": value for name, value in _common(standin).items()}
    return {
        **common,
        "cuda.memory_allocated": torch.accelerator.memory_allocated,
        "cuda.memory_reserved": torch.accelerator.memory_reserved,
        "cuda.max_memory_allocated": torch.accelerator.max_memory_allocated,
        "cuda.max_memory_reserved": torch.accelerator.max_memory_reserved,
        "cuda.reset_peak_memory_stats": torch.accelerator.reset_peak_memory_stats,
        "cuda.mem_get_info": torch.accelerator.get_memory_info,
        "cuda.current_device": lambda: int(device.current()),
        "cuda.get_device_capability": lambda of=None: (8, 0),
        "cuda.get_device_properties": lambda of=None: properties,
        "cuda.get_device_name": lambda of=None: NAME,
        "cuda.is_bf16_supported": lambda including_emulation=True: True,
    }


def _of_xpu(standin: Standin) -> dict[str, Any]:
    """What stands in place of functions of torch.xpu."""
    properties = _properties(standin)
    common = {f"xpu.{name}": value for name, value in _common(standin).items()}
    return {
        **common,
        "xpu._is_compiled": lambda: True,
        "xpu.current_device": lambda: int(standin.device.current()),
        "xpu.get_device_properties": lambda of=None: properties,
        "xpu.get_device_name": lambda of=None: NAME,
        "xpu.is_bf16_supported": lambda including_emulation=True: True,
    }


def _of_mps(standin: Standin) -> dict[str, Any]:
    """What stands in place of functions of torch.mps; its generator is the CPU's."""
    return {
        "_C._has_mps": True,
        "_C._mps_is_available": lambda: True,
        "_C._mps_get_name": lambda: NAME,
        "mps._get_default_mps_generator": lambda: torch.default_generator,
        "mps.synchronize": torch.accelerator.synchronize,
        "mps.empty_cache": torch.accelerator.empty_cache,
        "mps.current_allocated_memory": lambda: standin.in_use,
        "mps.driver_allocated_memory": lambda: standin.in_use,
        "mps.recommended_max_memory": lambda: standin.limit,
    }


def _common(standin: Standin) -> dict[str, Any]:
    """What torch.cuda and torch.xpu have both; draws on the device are from the CPU's generator."""
    devices = standin.device.devices
    states: dict[int, torch.Tensor] = {
        i: torch.zeros(16, dtype=torch.uint8) for i in range(devices)
    }

    def index(of: Any) -> int:
        found = of if isinstance(of, int) else torch.device(of).index
        return int(standin.device.current()) if found is None else found

    def nothing(*_: Any) -> None:
        """Seeds and begins nothing."""

    def state(of: Any = standin.name) -> torch.Tensor:
        return states[index(of)].clone()

    def restore(new: torch.Tensor, of: Any = standin.name) -> None:
        states[index(of)] = new

    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": nothing,
        "init": nothing,
        "device_count": lambda: devices,
        "set_device": torch.accelerator.set_device_index,
        "synchronize": torch.accelerator.synchronize,
        "empty_cache": torch.accelerator.empty_cache,
        "manual_seed": nothing,
        "manual_seed_all": nothing,
        "get_rng_state": state,
        "set_rng_state": restore,
        "Event": _event(standin.tell),
    }


def _properties(standin: Standin) -> Any:
    properties = mock.Mock(
        major=8, minor=0, total_memory=standin.limit, multi_processor_count=108,
        has_fp64=standin.float64,
    )  # fmt: skip
    properties.name = NAME
    return properties


def _event(tell: Callable[[str, str, int], None]) -> type:
    class Marker:
        """torch.cuda.Event, of a device on which nothing takes time."""

        def __init__(self, enable_timing: bool = False, **_: Any) -> None: ...

        def record(self, stream: Any = None) -> None: ...

        def synchronize(self) -> None:
            tell("sync", "Event.synchronize", 0)

        def elapsed_time(self, other: Any) -> float:
            return 1.0

    return Marker


def _place() -> str:
    """The line of our code that is at work; of another library's, if none of ours is."""
    frame: FrameType | None = sys._getframe()
    outer = None  # in the autograd engine's own threads there is no other
    while frame is not None:
        name = frame.f_code.co_filename
        if OURS in name:
            return f"{name.rpartition(OURS)[2]}:{frame.f_lineno}"
        if outer is None and "site-packages" in name:
            outer = f"{'/'.join(Path(name).parts[-2:])}:{frame.f_lineno}"
        frame = frame.f_back
    return outer or "outside of our code"
