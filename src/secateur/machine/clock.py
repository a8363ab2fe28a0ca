"""Measures what the phases of a run take."""

from __future__ import annotations

import time

import torch

from secateur.machine.accelerator import wait_for


class Clock:
    """Wall seconds between laps; waits for the device so that its work is counted.

    Attributes:
        device: where the work is done.
        seconds: phase -> what it took, all its laps together.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Count what was done since the last lap as `name`."""
        wait_for(self.device)
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
