"""A record that a stranger made is refused on one line, or shown without doing anything."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from records import make_record, make_recovery, make_sample, make_tasks
from secateur.errors import CheckpointError, SecateurError
from secateur.machine import limits
from secateur.record import RunRecord, find_records, read_record
from secateur.reporting import side_by_side, write_report
from secateur.reporting.formats import as_csv, as_latex, as_markdown
from secateur.reporting.page import render

GONE = object()
WRONG = (GONE, None, 10**30, ["a"], "9" * 6000)
"""What takes the place of every value in turn."""
COMMANDING = "=\x1b[2J"


@pytest.fixture(scope="module")
def facts() -> Any:
    """A record with something under every key, as plain values."""
    record = make_recovery(make_record("wanda++", blocks=1, sample=make_sample("x")), 11.0)
    return record.model_copy(update={"tasks": (make_tasks(0.5, 0.6),)}).model_dump(mode="json")


def keys(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value; of a list the first stands for all."""
    if above:
        yield above
    members = value.items() if isinstance(value, dict) else enumerate(value[:1])
    for key, member in members:
        if isinstance(member, dict | list):
            yield from keys(member, (*above, key))
        else:
            yield (*above, key)


def changed(facts: Any, way: tuple[Any, ...], new: Any) -> Any:
    copied = json.loads(json.dumps(facts))
    inner = copied
    for key in way[:-1]:
        inner = inner[key]
    if new is GONE:
        del inner[way[-1]]
    else:
        inner[way[-1]] = new
    return copied


def test_a_wrong_value_under_any_key_is_one_line_or_shown(facts: Any, tmp_path: Path) -> None:
    path, refused, shown = tmp_path / "run.json", 0, 0
    for way in keys(facts):
        for new in WRONG:
            path.write_text(json.dumps(changed(facts, way, new)))
            line = ""
            try:
                write_report(find_records([path]), None, "csv")
            except SecateurError as fault:
                line = str(fault)
            assert len(line) < 600, (way, new)
            refused += bool(line)
            shown += not line
    assert min(refused, shown) > 100


def test_no_text_of_a_record_commands_anything(facts: Any) -> None:
    """Neither the terminal that a table goes to, nor the spreadsheet that it is opened in."""
    seen = 0
    for way in keys(facts):
        try:
            record = RunRecord.model_validate(changed(facts, way, COMMANDING))
            compared = side_by_side([record])
        except (ValueError, SecateurError):
            continue
        texts = [as_csv(compared), as_markdown(compared), as_latex(compared)]
        cells = [cell for line in csv.reader(io.StringIO(texts[0])) for cell in line]
        assert not any(cell.startswith(("=", "+", "-", "@")) for cell in cells), way
        assert not any("\x1b" in text for text in texts), way
        seen += any("\\x1b" in text for text in texts)
    assert seen > 5
    sample = {**facts["sample"], "pruned": COMMANDING}
    assert "\x1b" not in render([RunRecord.model_validate({**facts, "sample": sample})])


@pytest.mark.parametrize(
    ("way", "new", "said"),
    [
        (("stages", 0, "settings", "include"), 5, "stages.0.settings: include=5"),
        (("stages", 0, "settings", "patterns"), [], "stages.0.settings: patterns=[]"),
        (("stages", 0, "settings", "dense_first"), "x", "dense_first='x'"),
        (("settings", "samples"), "many", "settings: samples='many'"),
        (("files",), {"../../etc/passwd": "a"}, "wanted the name of a file in the folder"),
        (("files",), {"/etc/passwd": "a"}, "wanted the name of a file in the folder"),
        (("files",), {"n" * 300: "a"}, "wanted the name of a file in the folder"),
        (("files",), {"a\0b": "a"}, "wanted the name of a file in the folder"),
        (("stages", 0, "blocks", 0, "matrices", 0, "rows"), -4, "matrices.0.rows"),
        (("seconds",), 1e308, "seconds"),
    ],
)
def test_the_key_is_named(facts: Any, tmp_path: Path, way: Any, new: Any, said: str) -> None:
    (tmp_path / "run.json").write_text(json.dumps(changed(facts, way, new)))
    with pytest.raises(CheckpointError) as fault:
        read_record(tmp_path)
    assert said in str(fault.value)
    assert str(tmp_path / "run.json") in str(fault.value)


def test_a_record_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.record.record.MOST_JSON_BYTES", 100)
    (tmp_path / "run.json").write_text(" " * 101)
    with pytest.raises(CheckpointError, match="101 bytes of JSON"):
        read_record(tmp_path)
    assert limits.MOST_JSON_BYTES == 64_000_000


def test_a_pattern_in_an_old_record_gets_its_one_spelling(facts: Any) -> None:
    told = changed(facts, ("stages", 0, "settings", "pattern"), "0.50")
    assert RunRecord.model_validate(told).recipe["pattern"] == "50%"


def test_a_report_is_linear_in_blocks(facts: Any) -> None:
    """A thousand blocks with as many kinds of matrices took minutes."""
    (stage,) = facts["stages"]
    block = stage["blocks"][0]
    blocks = [
        {**block, "index": n, "matrices": [{**block["matrices"][0], "name": f"k{n}x.w"}]}
        for n in range(1000)
    ]
    record = RunRecord.model_validate({**facts, "stages": [{**stage, "blocks": blocks}]})
    began = time.process_time()
    render([record])
    assert time.process_time() - began < 10
