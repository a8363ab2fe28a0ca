from __future__ import annotations

from typing import Any

import pytest

from secateur.errors import PatternError
from secateur.sparsity import NofM, Structures, Unstructured, parse_pattern


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("50%", Unstructured(0.5)),
        ("0.5", Unstructured(0.5)),
        (0.5, Unstructured(0.5)),
        (".25", Unstructured(0.25)),
        ("62.5 %".replace(" ", ""), Unstructured(0.625)),
        (" 2:4 ", NofM(2, 4)),
        ("4:8", NofM(4, 8)),
        ("1:16", NofM(1, 16)),
        (NofM(2, 4), NofM(2, 4)),
        ("blocks-6", Structures("blocks", count=6)),
        (" blocks-20%", Structures("blocks", share=0.2)),
    ],
)
def test_what_people_write(text: str, pattern: Any) -> None:
    assert parse_pattern(text) == pattern


@pytest.mark.parametrize("text", ["2:4", "0.0008684445512583742", "50%", "4:8", "62.5%", "33%",
                                  "blocks-6", "blocks-12.5%"])  # fmt: skip
def test_a_pattern_reads_its_own_name(text: str) -> None:
    assert str(parse_pattern(text)) == text
    assert parse_pattern(str(parse_pattern(text))) == parse_pattern(text)


@pytest.mark.parametrize(
    "text",
    ["0%", "100%", "0", "1", "50", "150%", "4:2", "4:4", "0:4", "abc", "", "2:", ":4", "-0.5",
     "2:4:8", "1e-1", "nan", "inf", "٢:٤", "blocks", "blocks-", "blocks-0", "blocks-0%",
     "blocks-100%", "blocks-1.5", "blocks--1", "layers-2", "blocks-٢"],
)  # fmt: skip
def test_what_is_refused(text: str) -> None:
    with pytest.raises(PatternError) as fault:
        parse_pattern(text)
    assert "\n" not in str(fault.value)
    assert "wanted" in str(fault.value)


def test_groups_must_fill_the_input_dimension() -> None:
    NofM(3, 6).check_fits(192, "q_proj")
    with pytest.raises(PatternError, match=r"groups of 7 do not divide the 192 inputs in q_proj"):
        NofM(3, 7).check_fits(192, "q_proj")


def test_a_ratio_that_prunes_nothing_is_refused() -> None:
    Unstructured(0.5).check_fits(2, "q_proj")
    with pytest.raises(PatternError, match="prunes 0 of 8 weights"):
        Unstructured(0.1).check_fits(8, "q_proj")


@pytest.mark.parametrize(
    ("ratio", "count", "pruned"), [(0.5, 7, 3), (0.7, 10, 7), (0.3, 10, 3), (0.29, 100, 29)]
)
def test_counts_do_not_suffer_from_binary_fractions(ratio: float, count: int, pruned: Any) -> None:
    assert Unstructured(ratio).pruned_of(count) == pruned


@pytest.mark.parametrize(("text", "sparsity"), [("2:4", 0.5), ("1:4", 0.75), ("30%", 0.3)])
def test_sparsity_is_the_share_of_zeros(text: str, sparsity: float) -> None:
    assert parse_pattern(text).sparsity == pytest.approx(sparsity)


@pytest.mark.parametrize(
    ("text", "total", "removed"),
    [("blocks-6", 30, 6), ("blocks-20%", 30, 6), ("blocks-33%", 10, 3)],
)
def test_structures_are_counted_among_those_there_are(text: str, total: int, removed: int) -> None:
    pattern = parse_pattern(text)
    assert isinstance(pattern, Structures)
    assert pattern.removed_of(total) == removed


@pytest.mark.parametrize(("text", "total"), [("blocks-6", 6), ("blocks-1", 1), ("blocks-1%", 30)])
def test_some_structures_go_and_some_stay(text: str, total: int) -> None:
    pattern = parse_pattern(text)
    assert isinstance(pattern, Structures)
    with pytest.raises(PatternError, match=f"of {total} blocks"):
        pattern.removed_of(total)
