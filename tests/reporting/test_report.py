"""The report: which runs are compared, the numbers by hand, and that no text becomes markup."""

from __future__ import annotations

import csv
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from records import (
    HOSTILE,
    KINDS,
    make_evaluation,
    make_record,
    make_recovery,
    make_sample,
    make_study,
    make_tasks,
)
from secateur.errors import OutputError
from secateur.recipe import Recipe
from secateur.recipe.yaml_file import read_yaml
from secateur.record import RunRecord
from secateur.reporting import comparing_alone, write_comparison, write_report
from secateur.reporting.charts import RatedName, dot_plot, span_of
from secateur.reporting.comparison import Spread
from secateur.reporting.damage import error_by_block, matrix_groups, seconds_by_phase
from secateur.reporting.formats import as_csv, as_latex, as_markdown
from secateur.reporting.grouping import side_by_side
from secateur.reporting.page import is_report, render
from secateur.reporting.reproduce import recipe_of
from secateur.reporting.scale import Axis, near, spread_out
from secateur.reporting.sizes import perplexity_by_size
from secateur.reporting.table import Cell, table_of
from secateur.reporting.zeroshot import task_columns
from tiny import Command

# --- the comparison ---

about: Any = pytest.approx
"""Of any type, so that it can stand in a record that is compared."""


def test_mean_spread_and_damage_by_hand() -> None:
    """Dense 10; Wanda 14 and 16; Wanda++ 11 and 13: removes 3/4 and 3/6."""
    records = [make_record("wanda", seed=seed, perplexity=ppl) for seed, ppl in ((0, 14), (1, 16))]
    records += [
        make_record("wanda++", seed=seed, perplexity=ppl, error=0.1)
        for seed, ppl in ((0, 11), (1, 13))
    ]
    (found,) = side_by_side(records)
    wanda, wandapp = found.rows
    assert (wanda.name, wandapp.name) == ("wanda", "wanda++")
    assert wanda.scores[0].perplexity == Spread(15, 1, 2)
    assert wanda.scores[0].removed is None
    assert wandapp.scores[0].perplexity == Spread(12, 1, 2)
    assert wandapp.scores[0].removed == Spread(0.625, 0.125, 2)
    assert wandapp.scores[0].divergence == Spread(0.12, about(0.01), 2)
    assert wandapp.output_error == Spread(about(0.075), 0, 2)  # mean of 0.1 and 0.05
    assert wandapp.seconds == 10.5
    assert found.texts[0].dense == 10
    assert found.best("2:4", 0) is wandapp


def test_a_recovered_model_is_a_row_of_its_own() -> None:
    """Dense 10, Wanda 14, recovered 12: half of the damage, in the time of both."""
    pruned = make_record("wanda", perplexity=14)
    (found,) = side_by_side([pruned, make_recovery(pruned, 12)])
    wanda, recovered = found.rows
    assert (wanda.name, recovered.name) == ("wanda", "wanda (recovered, lm)")
    assert wanda.scores[0].perplexity.mean == 14
    assert recovered.scores[0].perplexity.mean == 12
    assert recovered.scores[0].removed == Spread(0.5, None, 1)
    assert recovered.seconds == pruned.seconds + 5
    assert (wanda.output_error, recovered.output_error) == (
        Spread(about(0.15), None, 1),
        None,
    )
    page = render([pruned, make_recovery(pruned, 12)])
    assert "wanda (recovered, lm)" in page


def test_tasks_are_shown_beside_the_dense_model() -> None:
    page = render([make_record("wanda", tasks=(make_tasks(0.61, 0.72),)), make_record("wanda++")])
    assert "Zero-shot tasks" in page
    for cell in ("continuation acc", "0.6100 ± 0.0500", "0.7200 ± 0.0400", "0.1100 ± 0.0300"):
        assert cell in page
    assert "Zero-shot tasks" not in render([make_record("wanda")])


def test_tasks_are_columns_of_the_table_with_the_dense_model_on_top() -> None:
    """Two seeds of Wanda scored 0.6 and 0.62, the recovered model of the first 0.7, dense 0.72."""
    first = make_record("wanda", seed=0, tasks=(make_tasks(0.6, 0.72),))
    second = make_record("wanda", seed=1, tasks=(make_tasks(0.62, 0.72),))
    recovered = make_recovery(first, 11).model_copy(update={"tasks": (make_tasks(0.7, 0.72),)})
    (found,) = side_by_side([first, second, recovered, make_record("magnitude")])
    table = table_of(found)
    place = table.heads.index("continuation acc")
    assert table.dense is not None
    assert table.dense.cells[place] == Cell("0.7200", "0.0400")
    assert [(line.name, line.cells[place]) for _, line in table.lines][1:] == [
        ("magnitude", Cell()),
        ("wanda", Cell("0.6100", "0.0500")),
        ("wanda (recovered, lm)", Cell("0.7000", "0.0500")),
    ]
    assert "standard error over questions" in table.notes[-1]
    assert "| 0.6100 ± 0.0500 |" in as_markdown([found])
    assert "$0.6100 \\pm 0.0500$" in as_latex([found])
    other = side_by_side([make_record("gblm", recipe={"model": "models/otter"})])
    rows = list(csv.DictReader(io.StringIO(as_csv([found, *other]))))
    heads = ("continuation_acc", "continuation_acc_standard_error", "dense_continuation_acc")
    assert [[row[head] for head in heads] for row in rows] == [
        ["", "", "0.72"], ["0.61", "0.05", "0.72"], ["0.7", "0.05", "0.72"], ["", "", ""],
    ]  # fmt: skip
    assert "0.7000 ± 0.0500" in render([first, second, recovered])


def test_other_questions_of_a_task_are_a_column_of_their_own() -> None:
    few = make_tasks(0.6, 0.72)
    (score,) = few.scores
    norm = score.model_copy(update={"metric": "acc_norm", "value": 0.65})
    many = score.model_copy(update={"documents": 500, "value": 0.5})
    (found,) = side_by_side([
        make_record("wanda", tasks=(few.model_copy(update={"scores": (score, norm)}),)),
        make_record("gblm", tasks=(few.model_copy(update={"scores": (many,)}),)),
    ])  # fmt: skip
    heads = [
        "continuation acc (100 questions, 0 shots, version 1)",
        "continuation acc (500 questions, 0 shots, version 1)",
    ]
    assert [head for head in table_of(found).heads if "continuation" in head] == heads
    assert [column.label for column in task_columns(found)] == [
        heads[0], "continuation acc_norm", heads[1],
    ]  # fmt: skip


def test_three_seeds_have_a_standard_deviation() -> None:
    found = Spread.of([1.0, 2.0, 6.0])
    assert found == Spread(3, about(7**0.5), 3)
    assert Spread.of([4.0]) == Spread(4, None, 1)
    assert Spread.of([]) is None


def test_damage_is_removed_at_the_same_seed_only() -> None:
    records = [
        make_record("wanda", seed=0, perplexity=14),
        make_record("gblm", seed=0, perplexity=12),
    ]
    records += [make_record("gblm", seed=1, perplexity=11)]
    (found,) = side_by_side(records)
    assert found.rows[1].scores[0].removed == Spread(0.5, None, 1)
    (without,) = side_by_side(records[1:])
    assert without.rows[0].scores[0].removed is None


def test_no_damage_leaves_nothing_to_remove() -> None:
    (found,) = side_by_side(
        [make_record("wanda", perplexity=9.5), make_record("gblm", perplexity=12)]
    )
    assert found.rows[1].scores[0].removed is None


def test_rows_stand_by_sparsity_and_by_the_age_of_the_method() -> None:
    records = [
        make_record(method, pattern)
        for pattern in ("80%", "0.5", "4:8", "2:4")
        for method in ("wanda++", "novel", "magnitude")
    ]
    (found,) = side_by_side(records)
    assert list(found.patterns) == ["2:4", "4:8", "50%", "80%"]
    assert [row.method for row in found.patterns["50%"]] == ["magnitude", "wanda++", "novel"]


def test_other_models_texts_and_unmeasured_runs_are_kept_apart() -> None:
    other = make_evaluation(12, token_sha256="b" * 64)
    records = [
        make_record("wanda"),
        make_record("gblm"),
        make_record("wanda", recipe={"model": "models/other"}),
        make_record("wanda", evaluations=(other,)),
        make_record("sparsegpt", perplexity=None),
    ]
    found = side_by_side(records)
    assert [len(group.rows) for group in found] == [2, 1, 1, 1]
    page = render(records)
    assert "4 comparisons" in page
    assert "Their numbers do not compare" in page


def test_settings_make_rows_of_their_own() -> None:
    records = [
        make_record("wanda++", recipe={"regional": {"rounds": 5, "step": 0.35}}),
        make_record("wanda++", seed=1, recipe={"regional": {"rounds": 5, "step": 0.35}}),
        make_record("wanda++", recipe={"preset": "paper", "regional": {"rounds": 5, "step": None}}),
        make_record("wanda", recipe={"preset": "paper"}),  # has no regional optimiser
        make_record("wanda", seed=1),
    ]
    (found,) = side_by_side(records)
    assert [(row.name, len(row.runs)) for row in found.rows] == [
        ("wanda", 2),
        ("wanda++ (preset=auto)", 2),
        ("wanda++ (preset=paper)", 1),
    ]


MERGED_ONCE = [
    {"schedule": "matrix"},
    {"exclude": ["mlp"]},
    {"include": ["mlp"]},
    {"blocks": "1-"},
    {"dense_first": 1},
    {"patterns": {"mlp": "4:8"}},
    {"route_all": True},
    {"expert_tokens": 8},
    {"written": 64},
]
"""Settings that the report once took for no difference."""


@pytest.mark.parametrize("changes", MERGED_ONCE, ids=lambda changes: next(iter(changes)))
def test_a_run_with_another_setting_is_another_row_and_no_baseline(
    changes: dict[str, Any],
) -> None:
    """Dense 10, Wanda 14 with the setting: GBLM's 12 without it removes nothing of that."""
    other = make_record("wanda", perplexity=14, recipe=changes)
    gblm = make_record("gblm", perplexity=12)
    (found,) = side_by_side([other, gblm])
    assert [row.scores[0].removed for row in found.rows] == [None, None]
    wanda = make_record("wanda", perplexity=13, created="2026-02-01T00:00:00+00:00")
    (found,) = side_by_side([other, gblm, wanda])
    ((name, _),) = changes.items()
    plain, changed, last = found.rows
    assert plain.name == ("wanda (expert_tokens=32)" if name == "expert_tokens" else
                          "wanda (schedule=block)" if name == "schedule" else "wanda")  # fmt: skip
    assert changed.name.startswith(f"wanda ({name}=")
    assert len(changed.name) < 40
    removed = last.scores[0].removed
    assert removed is not None
    assert (removed.mean, removed.spread, removed.count) == (pytest.approx(1 / 3), None, 1)


def test_rows_of_any_method_tell_what_they_pruned_and_only_the_same_compete() -> None:
    """The least pruned scores lowest, but nothing pruned what it did."""
    records = [
        make_record("magnitude", perplexity=11, recipe={"dense_first": 1}),
        make_record("sparsegpt", perplexity=13, recipe={"exclude": []}),
        make_record("wanda", perplexity=10.5, recipe={"exclude": ["mlp"]}),
    ]
    (alone,) = side_by_side(records)
    names = ["magnitude (dense_first=1)", "wanda (exclude=mlp)", "sparsegpt"]
    assert sorted(row.name for row in alone.rows) == sorted(names)
    assert alone.best("2:4", 0) is None
    assert "**1" not in as_markdown([alone])
    assert "do not compare" in as_markdown([alone])
    settings = {line["setting"] for line in csv.DictReader(io.StringIO(as_csv([alone])))}
    assert settings == {"", "dense_first=1", "exclude=mlp"}

    gblm = make_record("gblm", perplexity=12, recipe={"patterns": {"experts": "1:4"}})
    (found,) = side_by_side([*records, gblm])  # its pattern concerns no matrix of this model
    best = found.best("2:4", 0)
    assert best is not None
    assert best.name == "gblm (patterns=experts=1:4)"
    marked = {line.name for _, line in table_of(found).lines if line.cells[0].best}
    assert marked == {best.name}
    assert "has the lowest perplexity of the 2 rows that pruned the same, 12.00" in render(
        [*records, gblm]
    )

    wanda = make_record("wanda", perplexity=12, recipe={"exclude": ["mlp"]})
    other = make_record("gblm", perplexity=14, recipe={"exclude": ["mlp"]})
    (same,) = side_by_side([wanda, other])
    assert {row.name for row in same.rows} == {"gblm", "wanda"}
    assert same.best("2:4", 0) is not None
    assert "do not compare" not in as_markdown([same])


def test_sequences_that_an_effort_implies_are_no_other_run_than_wandas() -> None:
    best = {"effort": "best", "regional": {"rounds": 4}, "written": 48}  # three for each of 16
    (found,) = side_by_side(
        [make_record("wanda", perplexity=14), make_record("wanda++", perplexity=12, recipe=best)]
    )
    assert found.rows[1].scores[0].removed == Spread(0.5, None, 1)


def test_two_names_of_the_same_calibration_are_one_row() -> None:
    records = [make_record("wanda", seed=seed) for seed in (0, 1)]
    moved = [
        make_record("wanda", seed=seed, recipe={"calibration": "moved"}, created="2026-02-01")
        for seed in (0, 1)
    ]
    (found,) = side_by_side([*records, *moved])
    (row,) = found.rows
    assert row.runs == tuple(moved)
    tokens = make_evaluation(1, token_sha256="f" * 64).protocol
    (found,) = side_by_side(
        [records[0], make_record("wanda", created="2026-02", calibration=tokens)]
    )
    assert len(found.rows) == 2
    assert all("calibration.tokens=" in row.name for row in found.rows)


def test_a_copy_counts_once_and_a_repeat_is_told() -> None:
    record = make_record()
    beside_the_model = record.model_copy(
        update={"evaluations": (), "settings": {**record.settings, "out": "elsewhere"}}
    )
    (found,) = side_by_side([beside_the_model, record, record])
    assert found.runs == (record,)
    assert found.notices == ()
    again = make_record(perplexity=13, created="2026-02-01T00:00:00+00:00")
    (found,) = side_by_side([again, record])
    assert found.runs == (again,)
    assert "the latest is shown" in found.notices[0]


def test_what_makes_a_difference_doubtful_is_told() -> None:
    records = [
        make_record("wanda"),
        make_record("gblm", calibration=make_evaluation(1, token_sha256="f" * 64).protocol),
        make_record("sparsegpt", evaluations=(make_evaluation(12, dense=10.2),), device="cuda:0"),
    ]
    (found,) = side_by_side(records)
    assert [notice.split()[0] for notice in found.notices] == ["Runs", "The", "Runs"]
    assert "from 10.00 to 10.20" in found.notices[1]
    page = render(records)
    assert all(notice in page for notice in found.notices)


def test_findings_say_what_the_spread_does_not_separate() -> None:
    page = render(
        [make_record("wanda", seed=seed, perplexity=12 + seed) for seed in (0, 1)]
        + [make_record("gblm", seed=seed, perplexity=12.5 + seed) for seed in (0, 1)]
        + [make_record("wanda", "50%"), make_record("gblm", "50%", perplexity=11)]
    )
    assert "wanda has the lowest perplexity, 12.50 ± 0.50; dense 10.00." in page
    assert "The spread does not separate it from gblm." in page
    assert "gblm has the lowest perplexity, 11.00 (one seed); dense 10.00. It removes 50 %" in page


# --- damage, sparsity, time ---


def test_damage_by_block_and_kind_is_the_mean_over_seeds() -> None:
    (found,) = side_by_side([make_record(seed=0, error=0.2), make_record(seed=1, error=0.4)])
    (row,) = found.rows
    assert error_by_block(row) == (about(0.3), about(0.15))
    by_place = {(place.block, place.kind): place for place in matrix_groups(row)}
    assert list(by_place) == [(block, kind) for block in (0, 1) for kind in KINDS]
    assert by_place[1, "mlp.down_proj"].output_error == about(0.15)
    assert by_place[1, "mlp.down_proj"].sparsity == 0.5
    assert by_place[1, "mlp.down_proj"].matrices == 1
    assert seconds_by_phase(row) == {
        "load": 1, "observe": 2, "prune": 4, "propagate": 1, "other": 2.5
    }  # fmt: skip


def test_experts_are_taken_together() -> None:
    record = make_record(blocks=1)
    (block,) = record.blocks
    named = [f"model.layers.0.mlp.experts.{index}.up_proj.weight" for index in (0, 1)]
    matrices = tuple(
        matrix.model_copy(update={"name": name})
        for matrix, name in zip(block.matrices, named, strict=True)
    )
    (stage,) = record.stages
    stage = stage.model_copy(update={"blocks": (block.model_copy(update={"matrices": matrices}),)})
    record = record.model_copy(update={"stages": (stage,)})
    (found,) = side_by_side([record])
    (place,) = matrix_groups(found.rows[0])
    assert (place.kind, place.matrices) == ("mlp.experts.*.up_proj", 2)


def test_a_matrix_that_fails_is_named() -> None:
    record = make_record()
    facts = record.model_dump(mode="json")
    facts["stages"][0]["blocks"][1]["matrices"][0] |= {"zeros": 15, "holds": False}
    page = render([RunRecord.model_validate(facts)])
    assert "fails in 1 of 4: model.layers.1.self_attn.q_proj.weight" in page
    assert "46.8750 fails" in page
    assert "all 4" in render([record])


# --- text ---


def test_markdown_has_every_number() -> None:
    lines = as_markdown(side_by_side(make_study())).splitlines()
    assert lines[0] == "**heron, pruned: perplexity on heldout (24 windows of 128 tokens)**"
    assert lines[4].startswith("|  | dense | 10.00 |")
    assert lines[5].startswith("| 2:4 | magnitude | 5000.00 ± 0.10 | -1.25e+05 ± 3119 |")
    assert lines[6].startswith(
        "| 2:4 | wanda | 14.00 ± 0.10 |  | 0.1400 ± 0.0010 | 0.1500 ± 0.0000"
    )
    assert lines[7].startswith("| 2:4 | wanda++ | **11.00 ± 0.10** | 75 ± 2 |")
    assert "± is the standard deviation over 3 seeds." in lines[-1]
    assert len({line.count("|") for line in lines[2:11]}) == 1


def test_latex_is_balanced_and_escaped() -> None:
    text = as_latex(side_by_side([make_record("wanda_50%&{", "50%"), make_record("gblm", "50%")]))
    assert r"wanda\_50\%\&\{ & $\mathbf{12.00}$" in text
    assert r"50\% & gblm & $\mathbf{12.00}$" in text
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 4
    assert len({line.replace(r"\&", "").count("&") for line in rows}) == 1


def test_csv_is_unrounded_with_a_line_for_every_text() -> None:
    evaluations = (make_evaluation(12.123456789), make_evaluation(13, token_sha256="b" * 64))
    lines = list(
        csv.DictReader(io.StringIO(as_csv(side_by_side([make_record(evaluations=evaluations)]))))
    )
    assert [line["perplexity"] for line in lines] == ["12.123456789", "13.0"]
    assert [line["token_sha256"][0] for line in lines] == ["a", "b"]
    (line,) = csv.DictReader(io.StringIO(as_csv(side_by_side([make_record(perplexity=None)]))))
    assert (line["perplexity"], line["method"], line["seconds"]) == ("", "wanda", "10.0")


# --- charts ---


def test_perplexity_is_drawn_by_bytes() -> None:
    """A line per pattern, a point per precision by its best method; dense by the bytes it has."""
    sized = [
        make_record("wanda", perplexity=14, weight_bytes=200, packed_bytes=120),
        make_record("sparsegpt", perplexity=12, weight_bytes=200, packed_bytes=120),
        make_record("sparsegpt", perplexity=13, weight_bytes=80, packed_bytes=70,
                    recipe={"quantize": "w4a16:g64"}),
        make_record("magnitude", "dense", perplexity=11, weight_bytes=80, packed_bytes=80,
                    recipe={"quantize": "w4a16:g64"}),
        make_record("magnitude", perplexity=1e9, weight_bytes=100, packed_bytes=90,
                    recipe={"quantize": "w8a16"}),
    ]  # fmt: skip
    (found,) = side_by_side(sized)
    figure = perplexity_by_size(found, 0)
    assert figure is not None
    (panel,), (grid,) = figure.panels, figure.grids
    curves = {curve.name: [word for _, _, word in curve.marks] for curve in panel.narrow.curves}
    scheme = "w4a16:g64"
    assert curves == {"dense": [scheme, ""], "2:4": [scheme, ""]}  # the third is off the scale
    assert figure.legend
    ends = {curve.name: curve.end[0] for curve in panel.narrow.curves}
    assert ends["dense"] > ends["2:4"]
    assert [(name, cells[:2], cells[4]) for name, cells in grid.rows] == [
        ("dense", ("as they are", ""), "10.00"),
        ("dense", ("w4a16:g64", "magnitude"), "11.00"),
        ("2:4", ("as they are", "sparsegpt"), "12.00"),
        ("2:4", ("w8a16", "magnitude"), "1e+09"),
        ("2:4", ("w4a16:g64", "sparsegpt"), "13.00"),
    ]
    assert "dense 10.00" in render(sized)
    (unsized,) = side_by_side([make_record("wanda"), make_record("wanda", "4:8")])
    assert perplexity_by_size(unsized, 0) is None
    (mixed,) = side_by_side([*sized, make_record("alps", perplexity=11)])
    assert perplexity_by_size(mixed, 0) == figure
    (alone,) = side_by_side(sized[:2])
    assert perplexity_by_size(alone, 0) is None


def test_a_value_far_out_does_not_squash_the_rest() -> None:
    values = [Spread(value, None, 1) for value in (5000.0, 14.0, 11.0, float("inf"))]
    span = span_of(values, 10)
    assert 9 < span[0] < 10
    assert 14 < span[1] < 15
    texts = ["5000", "14", "11", "inf"]
    rows = [RatedName("abcd"[i], i, values[i], texts[i]) for i in range(4)]
    chart = dot_plot(rows, 10, span)
    assert [dot.x is None for dot in chart.dots] == [True, False, False, True]
    assert near([11, 16], 10) == [11, 16]
    assert near([], 10) == []


def test_labels_keep_their_distance_and_stay_inside() -> None:
    assert spread_out([100, 100, 101], 14, 0, 110) == [82, 96, 110]
    assert spread_out([5, 50], 14, 0, 110) == [5, 50]
    assert spread_out([0, 0, 0], 14, 0, 10) == [0, 5, 10]


def test_ticks_are_round() -> None:
    labels = [tick.label for tick in Axis(9.7, 14.2, 0, 100).ticks(3)]
    assert labels == ["10", "12", "14"]
    assert [tick.label for tick in Axis(0, 0.42, 0, 100).ticks(4)] == ["0.0", "0.2", "0.4"]


# --- the page ---


class Outline(HTMLParser):
    """Tags, headings, ids and attributes of a page; complains about tags that do not close."""

    VOID = frozenset({"meta", "link", "br", "path", "rect"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.headings: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes
        self.ids += [value for name, value in attributes if name == "id" and value]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, text: str) -> None:
        if self._open and self._open[-1] in ("h1", "h2", "h3"):
            self.headings.append(text)


SECTIONS = [
    "Results",
    "Perplexity by method and pattern",
    "Where the damage happens",
    "By matrix",
    "What the models write",
    "Sparsity, matrix by matrix",
    "Time and memory",
    "How to reproduce it",
    "Methods and terms",
]


def test_a_study_has_every_section() -> None:
    outline = Outline(render(make_study()))
    assert outline.headings[0] == "heron, pruned by 3 methods to 2:4 and 50%"
    assert [head for head in SECTIONS if head not in outline.headings] == []
    assert len(outline.ids) == len(set(outline.ids))


def test_one_run_without_numbers_leaves_sections_out() -> None:
    record = make_record("magnitude", perplexity=None, error=None, calibration=None)
    facts = record.model_dump(mode="json")
    for block in facts["stages"][0]["blocks"]:
        for matrix in block["matrices"]:
            matrix["output_error"] = None
    outline = Outline(render([RunRecord.model_validate(facts)]))
    left_out = {*SECTIONS[1:5]}
    assert [head for head in SECTIONS if head in outline.headings] == [
        head for head in SECTIONS if head not in left_out
    ]
    assert "None" not in "".join(outline.headings)


def test_the_same_records_make_the_same_bytes_in_any_order() -> None:
    study = make_study()
    assert render(study) == render(list(reversed(study)))


def test_no_text_becomes_markup() -> None:
    evaluation = make_evaluation(12, source=f"texts/{HOSTILE}")
    sample = make_sample("a").model_copy(update={"pruned": HOSTILE, "prompt": HOSTILE})
    record = make_record(
        HOSTILE,
        evaluations=(evaluation,),
        recipe={"model": HOSTILE, "parameters": {HOSTILE: HOSTILE}, "calibration": HOSTILE},
        architecture=HOSTILE,
        sample=sample,
        notices=(HOSTILE,),
        machine={HOSTILE: HOSTILE},
        versions={HOSTILE: HOSTILE},
    )
    harmless = render([make_record(sample=make_sample("a"), notices=("one",))])
    page = render([record])
    tags, expected = Outline(page).tags, Outline(harmless).tags
    assert tags.count("script") == expected.count("script") == 1
    assert "img" not in tags
    assert not [name for name, _ in Outline(page).attributes if name.startswith("on")]
    assert "{{ 7 * 7 }}" in page


def test_the_page_fetches_nothing() -> None:
    page = render(make_study())
    outline = Outline(page)
    assert not {"iframe", "object", "embed", "img", "base", "form"} & set(outline.tags)
    assert [value for name, value in outline.attributes if name == "src"] == []
    links = {value for name, value in outline.attributes if name == "href" and value}
    assert all(link.startswith(("https://arxiv.org/abs/", "#", "data:,")) for link in links)
    assert "default-src 'none'" in page
    assert "url(" not in page
    assert "@import" not in page


def test_a_recipe_can_be_run_again(tmp_path: Path) -> None:
    """What the page shows, read as the command reads it, is the recipe of the run."""
    values = {
        "model": "./heron", "method": "wanda++", "pattern": "2:4", "calibration": "c4",
        "parameters": {"alpha": 1e-5}, "regional": {"rounds": 3},
    }  # fmt: skip
    whole = Recipe.build(values).spelled_out()
    (found,) = side_by_side([make_record("wanda++", recipe={**whole, "out": "x y", "seed": 3})])
    shown = recipe_of(found, found.rows[0])
    path = tmp_path / "recipe.yaml"
    path.write_text(shown.yaml, encoding="utf-8")
    again = Recipe.build(read_yaml(path)).spelled_out()
    assert again == whole
    assert shown.commands[0] == "secateur prune --recipe wanda++-2of4.yaml --seed 3 --out 'x y'"
    assert shown.commands[1].startswith("secateur evaluate 'x y' --text texts/heldout")
    assert yaml.safe_load(shown.yaml)["pattern"] == "2:4"


def test_a_recipe_of_stages_can_be_run_again(tmp_path: Path) -> None:
    stages = [
        {"method": "sparsegpt", "include": "mlp"},
        {"method": "wanda++", "pattern": "50%", "regional": {"rounds": 3}},
    ]
    values = {"model": "./heron", "calibration": "c4", "seed": 3, "stages": stages}
    recipe = Recipe.build({**values, "device": "cuda:7", "out": "o", "overwrite": True})
    made = make_record()
    record = made.model_copy(
        update={
            "settings": recipe.run_options(),
            "stages": tuple(
                made.stages[0].model_copy(update={"settings": stage.stage_options()})
                for stage in recipe.stages
            ),
        }
    )
    (found,) = side_by_side([record])
    repetition = recipe_of(found, found.rows[0])
    path = tmp_path / "recipe.yaml"
    path.write_text(repetition.yaml, encoding="utf-8")
    again = Recipe.build({**read_yaml(path), "seed": 3})
    assert again.spelled_out() == Recipe.build(values).spelled_out()
    assert repetition.commands[0].endswith("--seed 3 --out o")
    assert not {"device", "out", "overwrite", "seed"} & yaml.safe_load(repetition.yaml).keys()


# --- the command ---


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs in folders of their own, and what is none: a hidden, unfinished folder."""
    for name, method in (("a", "wanda"), ("b/c", "gblm"), (".d.partial", "broken")):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        text = "{" if method == "broken" else make_record(method).model_dump_json()
        (folder / "run.json").write_text(text, encoding="utf-8")
    return tmp_path / "runs"


def test_the_command_writes_a_page(command: Command, runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "page.html"
    assert command("report", runs, "--out", out) == (0, f"written to {out}\n", "")
    page = out.read_text(encoding="utf-8")
    assert "wanda" in page
    assert "gblm" in page
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]


def test_files_and_folders_are_read_once(command: Command, runs: Path) -> None:
    status, text, _ = command(
        "report", runs, runs / "a", runs / "a" / "run.json", "--format", "csv"
    )
    assert status == 0
    assert [line["method"] for line in csv.DictReader(io.StringIO(text))] == ["wanda", "gblm"]


@pytest.mark.parametrize("form", ["markdown", "latex", "csv"])
def test_text_goes_to_standard_output_or_a_file(
    command: Command, runs: Path, tmp_path: Path, form: str
) -> None:
    status, text, _ = command("report", runs, "--format", form)
    assert status == 0
    assert "gblm" in text
    out = tmp_path / "table.txt"
    assert command("report", runs, "--format", form, "--out", out)[1] == f"written to {out}\n"
    assert out.read_text(encoding="utf-8") == text


def test_without_out_the_page_lies_here(
    command: Command,
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("report", runs)[1] == "written to report.html\n"
    assert (tmp_path / "report.html").is_file()


def test_the_command_refuses_in_one_line(command: Command, runs: Path, tmp_path: Path) -> None:
    def line(*arguments: object) -> str:
        status, out, err = command("report", *arguments, "--out", tmp_path / "page.html")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert not (tmp_path / "page.html").exists()
        return err

    (tmp_path / "empty").mkdir()
    assert "no run.json in" in line(tmp_path / "empty")
    assert "no such file or folder" in line(tmp_path / "nowhere")
    path = runs / "a" / "run.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    (stage,) = whole["stages"]
    for damaged, said in (
        ("{", "cannot be read"),
        ('{"format": "secateur/run/99"}', "format"),
        (json.dumps({**whole, "settings": {"model": "m"}}), "names no seed"),
        (json.dumps({**whole, "stages": [{**stage, "settings": {}}]}), "names no method"),
        (json.dumps({**whole, "stages": [{**stage, "blocks": []}]}), "counts no matrix"),
    ):
        path.write_text(damaged, encoding="utf-8")
        refused = line(runs)
        assert said in refused
        assert str(path) in refused


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(OutputError, match="no file can be written here: it is a folder"):
        write_report([make_record()], tmp_path / "folder.html")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.html"]


def test_a_file_that_is_no_report_is_not_overwritten(
    command: Command, runs: Path, tmp_path: Path
) -> None:
    for name in ("weights.safetensors", "run.json", "notes.md", "table.csv", "page.html"):
        (tmp_path / name).write_text("precious")
        status, out, err = command("report", runs, "--out", tmp_path / name)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "the file exists" in err
        assert (tmp_path / name).read_text() == "precious"
    status, _, err = command("report", runs, "--out", runs, "--format", "csv")
    assert (status, err.count("\n")) == (2, 1)
    assert "it is a folder" in err
    for form in ("html", "markdown", "latex", "csv"):
        for _ in range(2):  # an earlier report is replaced
            assert command("report", runs, "--out", tmp_path / form, "--format", form)[0] == 0
    assert command("report", runs, "--out", tmp_path / "notes.md", "--overwrite")[0] == 0


def test_a_comparison_replaces_reports_only(tmp_path: Path) -> None:
    records = [make_record(), make_record("gblm")]
    for _ in range(2):
        with comparing_alone(tmp_path / "table", overwrite=False):
            write_comparison(records, tmp_path / "table")
    (tmp_path / "table" / "table.md").write_text("my notes on the table")
    with (
        pytest.raises(OutputError, match=r"the file exists in .*table\.md; try moving it away"),
        comparing_alone(tmp_path / "table", overwrite=False),
    ):
        raise AssertionError
    with pytest.raises(OutputError, match=r"table\.md"):  # or it was put there meanwhile
        write_comparison(records, tmp_path / "table")
    assert (tmp_path / "table" / "table.md").read_text() == "my notes on the table"
    with comparing_alone(tmp_path / "table", overwrite=True):
        with (
            pytest.raises(OutputError, match="another run is writing here"),
            comparing_alone(tmp_path / "table", overwrite=True),
        ):
            raise AssertionError
        write_comparison(records, tmp_path / "table", overwrite=True)
    assert is_report(tmp_path / "table" / "table.md")
