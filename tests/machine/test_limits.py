"""Bounds and paths: one line for what is too large, or can be no path."""

from pathlib import Path

import pytest

from secateur.errors import CheckpointError, DataError
from secateur.machine.limits import MOST_JSON_BYTES, at_most
from secateur.machine.paths import as_path


def test_a_size_at_its_bound_passes_and_one_above_is_refused() -> None:
    at_most(MOST_JSON_BYTES, MOST_JSON_BYTES, "bytes of JSON", where="index")
    with pytest.raises(CheckpointError, match="64000001 bytes of JSON in index; wanted at most 64"):
        at_most(MOST_JSON_BYTES, MOST_JSON_BYTES + 1, "bytes of JSON", where="index")


@pytest.mark.parametrize(
    "given",
    ["~nosuchuser/model", "x" * 5000, "a\0b", "a/\udcff"],
    ids=["user", "long", "null", "utf8"],
)
def test_what_can_be_no_path_is_one_short_line(given: str) -> None:
    with pytest.raises(DataError, match="can be no path") as caught:
        as_path(given, fault=DataError)
    assert len(str(caught.value)) < 250
    assert "\n" not in str(caught.value)


def test_a_path_need_not_exist(tmp_path: Path) -> None:
    assert as_path(str(tmp_path / "not there"), fault=DataError) == tmp_path / "not there"
