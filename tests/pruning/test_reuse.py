"""What runs share is made once, and every run has the seconds that it would take alone."""

from __future__ import annotations

import time

import pytest

from secateur.pruning import reuse
from secateur.pruning.reuse import Entry, Made, Stopwatch


def test_an_entry_makes_a_thing_once_for_a_key_and_remembers_the_last_key_only() -> None:
    entry, made = Entry[str, list[str]](), list[str]()

    def make(key: str) -> Made[list[str]]:
        return entry.once(key, lambda: [made.append(key) or key])

    first, again = make("a"), make("a")
    assert not first.reused
    assert again.reused
    assert again.value is first.value
    assert again.seconds == first.seconds
    assert not make("b").reused
    assert not make("a").reused
    assert made == ["a", "b", "a"]
    entry.forget()
    assert not make("a").reused


def test_an_entry_lets_go_of_the_last_thing_before_it_makes_another() -> None:
    entry = Entry[int, int]()
    entry.once(1, lambda: 1)

    def fail() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        entry.once(2, fail)
    assert not entry.once(1, lambda: 1).reused


@pytest.mark.parametrize(
    ("measuring", "reused", "seconds"),
    [
        (False, False, 5.0),  # it did the work itself
        (False, True, 5.0 + 3.0),  # another run did it
        (True, False, 5.0 - 3.0),  # what it took to be measured is no work of pruning
        (True, True, 5.0),
    ],
)
def test_a_run_has_the_seconds_that_it_would_take_alone(
    measuring: bool, reused: bool, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([100.0, 105.0])
    monkeypatch.setattr(reuse.time, "perf_counter", lambda: next(now))
    watch = Stopwatch()
    made = Made("tokens", 3.0, reused)
    assert (watch.measuring(made) if measuring else watch.pruning(made)) == "tokens"
    assert watch.seconds == seconds


def test_seconds_of_an_entry_are_those_of_making_it() -> None:
    made = Entry[int, None]().once(0, lambda: time.sleep(0.02))
    assert 0.02 <= made.seconds < 10
