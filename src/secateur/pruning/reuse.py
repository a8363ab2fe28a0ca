"""What the runs of a comparison have in common, made once; and the seconds of each as if alone.

Every entry remembers the last thing that was made, and what it was made of: the runs come in an
order in which that is enough.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor

from secateur.blocks.observe import Observation
from secateur.blocks.stream import Stream
from secateur.checkpoint import BlockModel
from secateur.checkpoint.gradient_store import GradientFile
from secateur.data import ImageBatch, TokenBatch, Tokenizer
from secateur.recipe import Bos
from secateur.statistics import Need

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True)
class Made(Generic[V]):
    """Something that was made, by this run or by an earlier one.

    Attributes:
        value: what was made.
        seconds: wall time that making it took.
        reused: whether it was made for an earlier run.
    """

    value: V
    seconds: float
    reused: bool


class Entry(Generic[K, V]):
    """One thing that runs share: the last one made, by a key of all that it depends on."""

    def __init__(self) -> None:
        self._last: tuple[K, Made[V]] | None = None

    def once(self, key: K, make: Callable[[], V]) -> Made[V]:
        """What `make` gives, or gave the last time if the key was the same."""
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        self._last = None  # let go of the last one before there are two
        began = time.perf_counter()
        value = make()
        seconds = time.perf_counter() - began
        self._last = key, Made(value, seconds, reused=True)
        return Made(value, seconds, reused=False)

    def forget(self) -> None:
        """Make it anew the next time."""
        self._last = None


@dataclass(frozen=True)
class CalibrationKey:
    """What decides the calibration of a run; the fields are those of the recipe."""

    sources: tuple[str, ...]
    shares: tuple[float, ...] | None
    column: str | None
    images: str | None
    samples: int
    sequence_length: int
    seed: int
    chosen_written: int
    bos: Bos


@dataclass(frozen=True)
class HeldOutKey:
    """What decides the held-out windows of a run; the fields are those of the recipe."""

    texts: tuple[str, ...]
    windows: int | None
    sequence_length: int
    bos: Bos


@dataclass(frozen=True)
class ModelKey:
    """What decides how a model is opened; without a dtype in that of the checkpoint."""

    folder: Path
    device: torch.device
    dtype: torch.dtype | None


@dataclass(frozen=True)
class DenseKey:
    """What decides the held-out windows behind the dense model: of every text, in order.

    Attributes:
        tokens: SHA-256 of the tokens.
        batch_sizes: windows that run through a block together.
        host: they wait in main memory.
    """

    tokens: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    host: bool


@dataclass(frozen=True)
class FirstBlockKey:
    """What decides the observation of the first block.

    Attributes:
        calibration: SHA-256 of the sequences.
        batches: into which they are divided.
        route_all, expert_tokens: of the plan.
        host: activations wait in main memory.
    """

    calibration: str
    batches: int
    route_all: bool
    expert_tokens: int
    host: bool


@dataclass(frozen=True)
class GradientsKey:
    """What decides a file of full-model gradients.

    Attributes:
        path: of the file.
        facts: what they are made of, in the order in which they are written down.
    """

    path: Path
    facts: tuple[tuple[str, str], ...]


class SharedWork:
    """What runs of one model have in common; a run alone has one that nobody else looks into.

    Args:
        folder: for files that outlast one run; None lets every run keep its own.
        needs: the statistics that any of the runs needs of the first block, which is dense and
            sees the same inputs in all of them; none for a run alone.

    Attributes:
        model: opened.
        tokenizer: by the model's folder, or why there is none.
        calibration: sequences or images; None for methods that need none.
        heldout: the windows of every text.
        dense: the same windows after the last block of the dense model.
        first_block: what was gathered of block 0.
        gradients: of the full model.
        error_factors: of every block, by the SHA-256 of the calibration.
    """

    def __init__(self, folder: Path | None = None, needs: frozenset[Need] = frozenset()) -> None:
        self.folder = folder
        self.needs = needs
        self.model = Entry[ModelKey, BlockModel]()
        self.tokenizer = Entry[Path, Tokenizer]()
        self.calibration = Entry[CalibrationKey, TokenBatch | ImageBatch | None]()
        self.heldout = Entry[HeldOutKey, tuple[TokenBatch, ...]]()
        self.dense = Entry[DenseKey, list[Stream]]()
        self.first_block = Entry[FirstBlockKey, Observation]()
        self.gradients = Entry[GradientsKey, GradientFile]()
        self.error_factors = Entry[str, list[Tensor]]()


class Stopwatch:
    """The wall seconds of a run as it would take them alone, and not to be measured.

    It runs from when it is made. What is shared goes through `pruning` or `measuring`, which hand
    it on and add what another run spent on it, or take off what this run spent to be measured.
    """

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def pruning(self, made: Made[V]) -> V:
        """Hand on something that belongs to the work of pruning."""
        if made.reused:
            self._began -= made.seconds
        return made.value

    def measuring(self, made: Made[V]) -> V:
        """Hand on something that only measures the run."""
        if not made.reused:
            self._began += made.seconds
        return made.value

    @property
    def seconds(self) -> float:
        """Seconds that the run has taken so far."""
        return time.perf_counter() - self._began
