"""A line for every run of `real.py`: what it was, on what machine, and what else was at work there.

OUT/log.jsonl grows only. Of a run that was done or tried more than once, the last line counts.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import results
import torch

from secateur.machine import waiting
from secateur.machine.facts import now
from secateur.progress import JsonLines
from secateur.record import RunRecord


class Log:
    """Told of every run; knows those before.

    Args:
        out: folder of all results.
        device: that is measured.

    Attributes:
        last: run's folder below `out` -> its last line.
    """

    def __init__(self, out: Path, device: torch.device) -> None:
        self._out, self._path, self._device = out, out / "log.jsonl", device
        self._facts: dict[str, Any] = {}
        self.last: dict[str, dict[str, Any]] = {}
        if self._path.is_file():
            for line in self._path.read_text().splitlines():
                entry = json.loads(line)
                self.last[entry["run"]] = entry
        self._began = _Clock()

    def say(self, text: str) -> None:
        """One line on standard error."""
        print(f"{now()[11:19]} {text}", file=sys.stderr, flush=True)

    def begin(self, folder: Path) -> None:
        """A run begins, if it is not done already."""
        self._began = _Clock()
        if not (folder / "run.json").is_file():
            self.say(f"{self._name(folder)} ...")

    def done(self, folder: Path, record: RunRecord, *, repeated: bool) -> None:
        """A run is done, now or before."""
        measured = ", ".join(
            f"{Path(one.protocol.source).name} {one.perplexity:.2f}" for one in record.evaluations
        )
        if repeated:
            self.say(f"{self._name(folder)}: {measured} (done before)")
            return
        self.say(f"{self._name(folder)}: {measured}; {record.seconds:.0f} s")
        self.add(folder, "done", seconds=record.seconds)

    def failed(self, folder: Path, fault: Exception) -> None:
        """A run failed, or cannot be done."""
        why = f"{type(fault).__name__}: {fault}"
        self.say(f"{self._name(folder)} FAILED: {why}")
        self.add(folder, "failed", why=why)

    def add(self, folder: Path, status: str, **facts: Any) -> None:
        """Write a line; its clock runs since `begin`."""
        entry = {
            "run": self._name(folder), "status": status, **facts, **self._began.told(),
            **self._machine(), "date": now(), "load": round(psutil.getloadavg()[0], 2),
        }  # fmt: skip
        self.last[entry["run"]] = entry
        self._out.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def entry(self, folder: Path) -> dict[str, Any] | None:
        """The last line of a run, if it has one."""
        return self.last.get(self._name(folder))

    def _name(self, folder: Path) -> str:
        return str(folder.relative_to(self._out)).replace("/runs/", "/")

    def _machine(self) -> dict[str, Any]:
        if not self._facts:
            self._facts = {**results.facts(self._device), "commit": results.commit()}
        return self._facts


class Notices(JsonLines):
    """Every notice of a run once; what else it tells is for a `waiting.Watch` to say.

    Args:
        log: that says them.
    """

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log
        self._noticed: set[str] = set()

    def block(self, **facts: Any) -> None:
        """One more block is done."""
        waiting.innermost().block()

    def notice(self, text: str) -> None:
        """Something to know, told once."""
        if text not in self._noticed:
            self._noticed.add(text)
            self._log.say(f"  notice: {text}")


class _Clock:
    """Seconds by the clock, of this process on all cores, and of all other programs."""

    def __init__(self) -> None:
        self._then = self._read()

    def told(self) -> dict[str, float]:
        """Since it was made: `wall` and `worked` in seconds; `others` in cores, on average."""
        wall, worked, busy = (
            now - then for now, then in zip(self._read(), self._then, strict=True)
        )
        others = max(0.0, busy - worked) / max(wall, 1e-9)
        return {"wall": round(wall, 2), "worked": round(worked, 2), "others": round(others, 2)}

    @staticmethod
    def _read() -> tuple[float, float, float]:
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0) + getattr(times, "steal", 0.0)
        # guest times are counted in user and nice already
        guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        return time.perf_counter(), time.process_time(), sum(times) - idle - guests
