"""Calibration on several texts, from the command to the record, the report and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import secateur
from secateur.recipe import Recipe
from secateur.record import RunRecord, read_record
from secateur.reporting import side_by_side, table_of
from secateur.reporting.reproduce import recipe_of
from tiny import Command

SIZES: dict[str, Any] = {"method": "wanda", "samples": 8, "sequence_length": 32}


@pytest.fixture(scope="module")
def sources(text_folder: Path, tokens_file: Path) -> list[str]:
    return [str(text_folder), "self", str(tokens_file)]


@pytest.fixture(scope="module")
def measured(llama_folder: Path, sources: list[str], tokens_file: Path) -> RunRecord:
    """A run on a mixture, by the door; one of its texts is measured, too."""
    return secateur.prune(
        llama_folder, calibration=sources, shares=[2, 1, 1], written=4, text=tokens_file, **SIZES
    )


def test_the_command_does_what_the_door_does(
    command: Command, llama_folder: Path, sources: list[str], measured: RunRecord, tmp_path: Path
) -> None:
    given = [part for source in sources for part in ("--calibration", source)]
    sizes = ["--method", "wanda", "--samples", 8, "--sequence-length", 32, "--shares", "2,1,1"]
    words = ["prune", llama_folder, *given, *sizes, "--written", 4, "--out", tmp_path / "out"]
    outcome = command(*words, "--dry-run")
    said = f"4 {sources[0]} (excerpts) + 2 self (written) + 2 {sources[2]} (given)"
    assert said in outcome.out.replace("\n", " ")
    assert command(*words).status == 0
    record = read_record(tmp_path / "out")
    assert record is not None
    assert record.calibration == measured.calibration
    assert record.recipe["calibration"] == sources


def test_the_record_tells_of_every_part(measured: RunRecord, sources: list[str]) -> None:
    whole: Any = measured.calibration
    assert [part.source for part in whole.parts] == sources
    assert [part.sequences for part in whole.parts] == [4, 2, 2]
    assert (whole.sequences, whole.kind, whole.source) == (12, "mixture", " + ".join(sources))
    again = RunRecord.model_validate_json(measured.model_dump_json())
    assert again == measured
    assert Recipe.build(again.recipe).sources == tuple(sources)
    (line,) = measured.notices
    assert line.startswith(f"the calibration text {sources[2]} and the held-out text")


def test_a_list_of_one_is_that_text() -> None:
    recipe = Recipe.build({"model": "m", "calibration": ["c"]})
    assert recipe == Recipe.build({"model": "m", "calibration": "c"})
    assert (recipe.calibration, recipe.sources, recipe.shares) == ("c", ("c",), None)


def test_a_comparison_goes_on_with_the_same_mixture_only(
    llama_folder: Path, sources: list[str], tokens_file: Path, tmp_path: Path
) -> None:
    def compare(shares: str, out: str) -> secateur.reporting.ComparisonResult:
        return secateur.compare(
            llama_folder, out=tmp_path / out, methods=["wanda"], text=tokens_file, shares=shares,
            calibration=sources[::2], samples=4, sequence_length=32,
        )  # fmt: skip

    first, again = compare("3,1", "a"), compare("3,1", "a")
    assert [run.created for run in again.records] == [run.created for run in first.records]
    with pytest.raises(secateur.SecateurError, match=r"this run has shares .*3.*as asked now"):
        compare("1,3", "a")
    other = compare("1,3", "b")
    recipe = recipe_of(side_by_side(other.records)[0], side_by_side(other.records)[0].rows[0])
    again_in_yaml = Recipe.build(yaml.safe_load(recipe.yaml))
    assert (again_in_yaml.sources, again_in_yaml.shares) == (tuple(sources[::2]), (1, 3))
    (both,) = side_by_side([*first.records, *other.records])
    names = [line.name for _, line in table_of(both).lines]
    assert any("(3:1)" in name for name in names)
    assert any("(1:3)" in name for name in names)
    page = first.report.read_text()
    assert f"{sources[0]}: 3 sequences of 32 tokens (excerpts) + {sources[2]}: 1 sequences" in page
