"""Values and mask: whatever the matrix, what is packed comes back bit for bit, or is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor

from secateur.errors import PatternError
from secateur.packing import Bitmask, PackedForm, find_form, pack_matrix, unpack_matrix
from secateur.packing.matrix import packed_bytes
from secateur.sparsity import NofM

WORD = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
DTYPES = list(WORD)
BITMASK = Bitmask()


def bits(weight: Tensor) -> Tensor:
    return weight.contiguous().view(WORD[weight.dtype])


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit: NaN is itself, and -0.0 is not 0.0."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def any_bits(rows: int, columns: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Every bit pattern may occur: NaNs with payloads, infinities, subnormals, -0.0."""
    generator = torch.Generator().manual_seed(seed)
    word = WORD[dtype]
    span = torch.iinfo(word)
    drawn = torch.randint(span.min, span.max, (rows, columns), generator=generator, dtype=word)
    return torch.where(drawn == 0, 1, drawn).view(dtype)


def pruned(weight: Tensor, n: int, m: int, seed: int) -> Tensor:
    """N of every M kept, at random; the rest +0.0."""
    rows, columns = weight.shape
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(rows, columns // m, m, generator=generator).argsort(-1)
    dropped = torch.zeros(rows, columns // m, m, dtype=torch.bool)
    dropped.scatter_(-1, order[..., n:], True)
    words = bits(weight).clone()
    words[dropped.view(rows, columns)] = 0
    return words.view(weight.dtype)


def by_loop(weight: Tensor, form: PackedForm) -> tuple[list[int], list[int]]:
    """Kept words and mask bytes, one weight at a time, as the page on the format says."""
    kept, mask = [], []
    for row in bits(weight).tolist():
        keep = [word != 0 for word in row]
        if isinstance(form, NofM):
            for start in range(0, len(row), form.m):
                for index in range(start, start + form.m):
                    if sum(keep[start : start + form.m]) < form.n and not keep[index]:
                        keep[index] = True
        kept += [word for word, stays in zip(row, keep, strict=True) if stays]
        keep += [False] * (-len(keep) % 8)
        mask += [
            sum(keep[start + bit] << bit for bit in range(8)) for start in range(0, len(keep), 8)
        ]
    return kept, mask


@given(
    rows=some.integers(1, 9),
    columns=some.integers(1, 70),
    dtype=some.sampled_from(DTYPES),
    density=some.floats(0, 1),
    seed=some.integers(0, 2**31),
)
@settings(max_examples=150, deadline=None)
def test_a_bitmask_gives_every_matrix_back(
    rows: int, columns: int, dtype: torch.dtype, density: float, seed: int
) -> None:
    weight = any_bits(rows, columns, dtype, seed)
    generator = torch.Generator().manual_seed(seed)
    words = bits(weight).clone()
    words[torch.rand(rows, columns, generator=generator) >= density] = 0
    weight = words.view(dtype)
    values, mask = pack_matrix(weight, BITMASK)
    assert (bits(values).tolist(), mask.flatten().tolist()) == by_loop(weight, BITMASK)
    assert same(unpack_matrix(values, mask, columns, BITMASK), weight)


@given(
    rows=some.integers(1, 6),
    groups=some.integers(1, 9),
    form=some.sampled_from([(1, 2), (1, 4), (2, 4), (3, 4), (4, 8), (3, 6), (2, 5), (5, 12)]),
    dtype=some.sampled_from(DTYPES),
    more_zeros=some.booleans(),
    seed=some.integers(0, 2**31),
)
@settings(max_examples=150, deadline=None)
def test_n_of_m_gives_every_such_matrix_back(
    rows: int, groups: int, form: tuple[int, int], dtype: torch.dtype, more_zeros: bool, seed: int
) -> None:
    n, m = form
    weight = pruned(any_bits(rows, groups * m, dtype, seed), n, m, seed)
    if more_zeros:
        generator = torch.Generator().manual_seed(seed)
        weight.view(WORD[dtype])[torch.rand(weight.shape, generator=generator) < 0.4] = 0
    values, mask = pack_matrix(weight, NofM(n, m))
    assert values.shape == (rows, groups * n)
    assert mask.shape == (rows, -(-groups * m // 8))
    assert (bits(values).flatten().tolist(), mask.flatten().tolist()) == by_loop(weight, NofM(n, m))
    assert same(unpack_matrix(values, mask, groups * m, NofM(n, m)), weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", ["1:4", "2:4", "4:8", "2:8", "8:16"])
def test_the_form_is_found(dtype: torch.dtype, pattern: str) -> None:
    n, m = map(int, pattern.split(":"))
    weight = pruned(any_bits(64, 64, dtype, 0), n, m, 0)
    assert find_form(weight) == NofM(n, m)
    weight[5, : m - 1] = torch.tensor([1.0] * (m - 1))  # one group too full
    assert find_form(weight) == BITMASK


def test_negative_zeros_are_weights() -> None:
    """Multiplying by a mask leaves -0.0 behind: that is not N:M, and is never cut to it."""
    weight = pruned(any_bits(32, 64, torch.bfloat16, 1), 2, 4, 1)
    weight[bits(weight) == 0] = -0.0
    assert find_form(weight) is None
    with pytest.raises(PatternError, match="more than 2 weights of 4"):
        pack_matrix(weight, NofM(2, 4))


def test_what_saves_nothing_stays_dense() -> None:
    dense = any_bits(32, 64, torch.bfloat16, 2)
    assert find_form(dense) is None
    assert find_form(dense.double()) is None
    assert find_form(dense[:0]) is None
    few_zeros = dense.clone()
    few_zeros[:, :4] = 0  # 1 of 16: exactly what the mask costs
    assert find_form(few_zeros) is None
    few_zeros[0, 4] = 0
    assert find_form(few_zeros) == BITMASK


def test_all_zeros() -> None:
    weight = torch.zeros(8, 24)
    assert find_form(weight) == BITMASK  # N:M would keep a zero of every group
    values, mask = pack_matrix(weight, BITMASK)
    assert values.shape == (0,)
    assert same(unpack_matrix(values, mask, 24, BITMASK), weight)


def test_one_bitmask_in_n_of_m_costs_little() -> None:
    """A few kept weights that happen to be zero do not take the pattern from a matrix."""
    weight = pruned(any_bits(64, 64, torch.float16, 3), 2, 4, 3)
    weight[0, :16] = 0
    assert find_form(weight) == NofM(2, 4)
    weight[:, :16] = 0
    assert find_form(weight) == BITMASK


def test_the_size_is_what_was_said() -> None:
    weight = pruned(any_bits(64, 64, torch.bfloat16, 4), 2, 4, 4)
    values, mask = pack_matrix(weight, NofM(2, 4))
    assert values.nbytes + mask.nbytes == packed_bytes(weight, 64 * 32)
    assert (values.nbytes + mask.nbytes) / weight.nbytes == 0.5625


def test_a_transposed_view_is_packed_as_it_is_seen() -> None:
    weight = pruned(any_bits(24, 16, torch.float32, 5), 2, 4, 5)
    values, mask = pack_matrix(weight.T.contiguous().T, NofM(2, 4))
    assert same(unpack_matrix(values, mask, 16, NofM(2, 4)), weight)


@pytest.mark.parametrize("form", [NofM(2, 4), BITMASK], ids=str)
def test_impossible_packings_are_refused(form: PackedForm) -> None:
    weight = pruned(any_bits(3, 12, torch.bfloat16, 6), 2, 4, 6)
    values, mask = pack_matrix(weight, form)
    assert mask.shape == (3, 2)
    full = mask.clone()
    full[1, 0] = 255
    past = mask.clone()
    past[2, 1] |= 128
    for other_values, other_mask, said in (
        (values, full, "groups of 4 do not keep 2|values of shape"),
        (values, past, "bits past the end of a row"),
        (values, mask[:, :1], "a mask of uint8"),
        (values, mask.int(), "a mask of int32"),
        (values[:-1], mask, "values of shape"),
    ):
        with pytest.raises(PatternError, match=said):
            unpack_matrix(other_values, other_mask, 12, form)
    with pytest.raises(PatternError):
        unpack_matrix(values, mask, 20, form)


def test_a_pattern_that_does_not_divide_is_refused() -> None:
    with pytest.raises(PatternError, match="groups of 4 do not divide"):
        pack_matrix(torch.ones(2, 6), NofM(2, 4))
