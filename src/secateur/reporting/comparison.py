"""Runs side by side: one row per method, pattern and setting, with mean and spread over seeds.

spread = half the range of two runs, the sample standard deviation of three or more
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from secateur.data import Protocol
from secateur.record import RunRecord
from secateur.sparsity import NOTHING_PRUNED


@dataclass(frozen=True)
class Spread:
    """A number over seeds.

    Attributes:
        mean: over the runs.
        spread: half the range of two, standard deviation of more, None of one.
        count: how many runs.
    """

    mean: float
    spread: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Mean and spread; None of nothing."""
        if not values:
            return None
        spread = None
        if len(values) == 2:
            spread = abs(values[0] - values[1]) / 2
        elif len(values) > 2:
            spread = statistics.stdev(values)
        return cls(statistics.fmean(values), spread, len(values))


@dataclass(frozen=True)
class Text:
    """A held-out text that all runs of a comparison were measured on.

    Attributes:
        label: its name, short and unlike the others'.
        protocol: how it was cut, and its hash.
        dense: perplexity of the dense model, if it was measured.
    """

    label: str
    protocol: Protocol
    dense: float | None


@dataclass(frozen=True)
class Score:
    """What a row scored on one text.

    Attributes:
        perplexity, divergence: over seeds; divergence in nats per token from the dense model.
        standard_error: of the perplexity, over windows of text: mean over seeds.
        removed: share of Wanda's damage that the method removes, over the seeds that both have;
            None of Wanda itself, and where it did none.
    """

    perplexity: Spread
    standard_error: float
    divergence: Spread | None
    removed: Spread | None


@dataclass(frozen=True)
class Row:
    """One method at one pattern in one setting.

    Attributes:
        method, pattern: their names.
        setting: what tells it from other rows of the method, such as "preset=paper"; mostly "".
        runs: by seed.
        scores: in the order of the comparison's texts.
        pruned: which matrix was pruned to which pattern, as text: the same of rows that compare.
    """

    method: str
    pattern: str
    setting: str
    runs: tuple[RunRecord, ...]
    scores: tuple[Score, ...]
    pruned: str

    @property
    def name(self) -> str:
        """Method and setting; of the pattern dense the setting, for no method did anything."""
        method = "no pruning" if self.pattern == NOTHING_PRUNED else self.method
        return f"{method} ({self.setting})" if self.setting else method

    @property
    def output_error(self) -> Spread | None:
        """Mean over blocks of the relative output error."""
        errors = (run.mean_output_error for run in self.runs)
        return Spread.of([error for error in errors if error is not None])

    @property
    def seconds(self) -> float:
        """Wall time of a run, the mean over seeds."""
        return statistics.fmean(run.seconds for run in self.runs)

    @property
    def peak_memory_bytes(self) -> int:
        """Largest resident memory of any of the runs' processes."""
        return max(run.peak_memory_bytes for run in self.runs)

    @property
    def scheme(self) -> str | None:
        """What the weights are rounded to; None if they are not quantised."""
        return self.runs[0].quantize

    @property
    def weight_bytes(self) -> int | None:
        """Bytes of all weights in the files; None if they are not known."""
        return self.runs[0].weight_bytes

    @property
    def packed_bytes(self) -> int | None:
        """The same if zeros were not stored."""
        return self.runs[0].packed_bytes

    @property
    def peak_device_memory_bytes(self) -> int | None:
        """Largest memory on the accelerator."""
        peaks = [run.peak_device_memory_bytes for run in self.runs]
        return max((amount for amount in peaks if amount is not None), default=None)


@dataclass(frozen=True)
class Comparison:
    """Runs that can be compared: one model, the same tokens.

    Attributes:
        model, architecture: of the dense model.
        weights: prunable ones.
        texts: what all runs were measured on; may be none.
        rows: by pattern, then method, oldest paper first.
        notices: why a difference between rows may not be the methods' own.
    """

    model: str
    architecture: str
    weights: int
    texts: tuple[Text, ...]
    rows: tuple[Row, ...]
    notices: tuple[str, ...]

    @property
    def patterns(self) -> dict[str, tuple[Row, ...]]:
        """The rows of every pattern."""
        names = dict.fromkeys(row.pattern for row in self.rows)
        return {name: tuple(row for row in self.rows if row.pattern == name) for name in names}

    @property
    def runs(self) -> tuple[RunRecord, ...]:
        """All runs."""
        return tuple(run for row in self.rows for run in row.runs)

    @property
    def prunes_alike(self) -> bool:
        """Whether the rows of every pattern pruned the same."""
        return all(len({row.pruned for row in rows}) == 1 for rows in self.patterns.values())

    def best(self, pattern: str, text: int) -> Row | None:
        """The row of the lowest mean perplexity; None where there is nothing to choose.

        Only rows that pruned the same compare: of several such groups the largest is chosen from.
        """
        groups: dict[str, list[Row]] = {}
        for row in self.patterns[pattern]:
            if row.scores:
                groups.setdefault(row.pruned, []).append(row)
        rows, *others = sorted(groups.values(), key=len, reverse=True) or [[]]
        if len(rows) < 2 or (others and len(others[0]) == len(rows)):
            return None
        return min(rows, key=lambda row: row.scores[text].perplexity.mean)
