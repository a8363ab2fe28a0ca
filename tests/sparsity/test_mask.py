"""keep_mask against a plain Python selection, weight by weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.sparsity import Competition, NofM, Unstructured, audit, keep_mask, parse_pattern


def by_hand(score: Tensor, pattern: Any, competition: Competition) -> Any:
    """Sort every group of rivals by (-score, position) and keep the first ones."""
    rows, columns = score.shape
    keep = torch.zeros(rows, columns, dtype=torch.bool)
    if isinstance(pattern, NofM):
        groups = [
            [(row, start + offset) for offset in range(pattern.m)]
            for row in range(rows)
            for start in range(0, columns, pattern.m)
        ]
        kept = [pattern.n] * len(groups)
    elif competition is Competition.ROW:
        groups = [[(row, column) for column in range(columns)] for row in range(rows)]
        kept = [columns - int(pattern.ratio * columns + 1e-6)] * rows
    else:
        groups = [[(row, column) for row in range(rows) for column in range(columns)]]
        kept = [rows * columns - int(pattern.ratio * rows * columns + 1e-6)]
    for group, count in zip(groups, kept, strict=True):
        best = sorted(group, key=lambda place: (-float(score[place]), place))
        for place in best[:count]:
            keep[place] = True
    return keep


PATTERNS = ["2:4", "4:8", "1:4", "3:4", "1:2", "50%", "30%", "70%", "87.5%"]


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("competition", list(Competition))
@pytest.mark.parametrize("values", [3, 1_000_000])  # 3 distinct values: nearly all are ties
def test_selection_equals_sorting_by_hand(text: str, competition: Competition, values: Any) -> None:
    generator = torch.Generator().manual_seed(values)
    score = torch.randint(0, values, (5, 24), generator=generator).float()
    pattern = parse_pattern(text)
    assert torch.equal(keep_mask(score, pattern, competition), by_hand(score, pattern, competition))


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 6),
    groups=st.integers(1, 6),
    m=st.integers(2, 9),
    data=st.data(),
)
def test_n_of_m_is_exact_for_every_n_and_m(
    rows: int, groups: int, m: int, data: st.DataObject
) -> None:
    n = data.draw(st.integers(1, m - 1))
    numbers = st.floats(0, 4, width=16)
    score = torch.tensor(
        data.draw(st.lists(numbers, min_size=rows * groups * m, max_size=rows * groups * m))
    ).view(rows, groups * m)
    pattern = NofM(n, m)
    keep = keep_mask(score, pattern)
    assert torch.equal(keep, by_hand(score, pattern, Competition.ROW))
    assert (keep.view(rows, groups, m).sum(-1) == n).all()


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(1, 5), columns=st.integers(2, 40), data=st.data())
def test_every_row_keeps_the_same_count(rows: int, columns: int, data: st.DataObject) -> None:
    ratio = data.draw(st.floats(0.01, 0.99))
    score = torch.randint(0, 4, (rows, columns)).float()
    keep = keep_mask(score, Unstructured(ratio))
    assert set(keep.sum(1).tolist()) == {columns - int(ratio * columns + 1e-6)}


def test_equal_scores_keep_the_first() -> None:
    keep = keep_mask(torch.ones(2, 8), NofM(2, 4))
    assert keep.tolist() == [[True, True, False, False] * 2] * 2
    keep = keep_mask(torch.ones(2, 8), Unstructured(0.5))
    assert keep.tolist() == [[True] * 4 + [False] * 4] * 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_precision_of_the_score_does_not_matter(dtype: torch.dtype) -> None:
    score = torch.randperm(96).reshape(4, 24).to(dtype)
    for text in ("2:4", "50%"):
        keep = keep_mask(score, parse_pattern(text))
        assert keep.dtype == torch.bool
        assert torch.equal(keep, keep_mask(score.double(), parse_pattern(text)))


def test_audit_counts_zeros_and_names_violations() -> None:
    weight = torch.tensor([[1.0, 0, 0, 2, 3, 4, 5, 0], [0, 0, 0, 0, 1, 0, 1, 0]])
    found = audit(weight, NofM(2, 4))
    assert (found.rows, found.columns, found.zeros, found.weights) == (2, 8, 9, 16)
    assert found.violations == 1  # 3, 4, 5 stand in one group
    assert not found.holds
    assert audit(weight, NofM(3, 4)).holds
    assert audit(weight, Unstructured(0.5)).holds  # 9 zeros of 8 wanted
    assert audit(weight, Unstructured(0.75)).violations == 3
    assert audit(weight).holds
    assert audit(weight).sparsity == 9 / 16


def test_audit_refuses_groups_that_do_not_fill_the_row() -> None:
    assert not audit(torch.zeros(2, 6), NofM(2, 4)).holds


def test_negative_zero_is_a_zero() -> None:
    assert audit(torch.tensor([[-0.0, 1.0]])).zeros == 1
