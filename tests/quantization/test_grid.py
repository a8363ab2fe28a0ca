"""Schemes as people write them, and grids against their formulas written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from secateur.errors import RecipeError
from secateur.quantization import LevelGrid, Scheme, fitted, parse_scheme, round_to_nearest
from secateur.quantization.grid import REACHES

SCHEMES = ["w4a16:g32", "w4a16:row", "w8a16", "w8a16:g32", "w4a16:g32:asym", "w8a16:asym", "fp8"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def weights(rows: int = 8, width: int = 64, seed: int = 0) -> Any:
    """Half of them are pruned, a group of 32 is all zeros, and one is far from symmetric."""
    weight = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    weight[:, ::2] = 0
    weight[0, :32] = 0
    weight[1] = weight[1].abs()
    return weight


@pytest.mark.parametrize(
    ("text", "scheme", "spelled"),
    [
        ("w4a16", Scheme("w4a16", 128), "w4a16"),
        ("W4A16:g128", Scheme("w4a16", 128), "w4a16"),
        ("w4a16:g64:asym", Scheme("w4a16", 64, symmetric=False), "w4a16:g64:asym"),
        ("w4a16:asym:row", Scheme("w4a16", None, symmetric=False), "w4a16:row:asym"),
        ("w8a16", Scheme("w8a16"), "w8a16"),
        ("w8a16:g32", Scheme("w8a16", 32), "w8a16:g32"),
        ("fp8", Scheme("fp8"), "fp8"),
    ],
)
def test_a_scheme_is_read_and_spelled(text: str, scheme: Scheme, spelled: str) -> None:
    assert parse_scheme(text) == scheme
    assert str(scheme) == spelled
    assert parse_scheme(spelled) == scheme


@pytest.mark.parametrize(
    "text", ["", "w3a16", "w4a16:g48", "fp8:g64", "fp8:asym", "w4a16:g32:row", "w4a16:asym:asym",
             "int4", "w4a16:"]
)  # fmt: skip
def test_what_is_no_scheme_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"no scheme .* wanted w4a16, w8a16 or fp8"):
        parse_scheme(text)


@pytest.mark.parametrize(
    ("widths", "group"),
    [([4096, 11008], 128), ([576, 1536], 64), ([1216], 64), ([96, 4096], 32), ([1000, 4096], None)],
)
def test_groups_fill_the_rows_of_every_matrix(widths: list[int], group: int | None) -> None:
    assert fitted(parse_scheme("w4a16"), widths).group == group
    assert fitted(parse_scheme("w4a16:g32"), widths).group == (None if group is None else 32)
    assert fitted(parse_scheme("w8a16"), widths) == parse_scheme("w8a16")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", SCHEMES)
def test_scales_and_zero_points_are_those_of_the_formulas(
    text: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secateur.quantization.grid.REACHES", (1.0,))
    scheme, weight = parse_scheme(text), weights()
    rounded = round_to_nearest(weight, scheme, dtype)
    group = scheme.group or weight.shape[1]
    lowest, highest = scheme.range
    for row, numbers in enumerate(weight):
        for number, part in enumerate(numbers.split(group)):
            scale = rounded.scale[row, number]
            low, high = min(part.min().item(), 0.0), max(part.max().item(), 0.0)
            if low == high:
                assert scale == 1
                continue
            reach = {True: max(-low, high) / 448, False: max(-low, high) / (2**scheme.bits - 1) * 2}
            wanted = reach[scheme.floating] if scheme.symmetric else (high - low) / (
                2**scheme.bits - 1
            )  # fmt: skip
            torch.testing.assert_close(scale, torch.tensor(wanted).to(dtype))
            if rounded.zero is not None:
                zero = rounded.zero[row, number].item()
                assert lowest <= zero <= highest
                assert zero == max(lowest, min(highest, round(lowest - low / scale.item())))


def lost(numbers: list[float], costs: list[float], ends: tuple[float, float], text: str) -> float:
    """The weighted squared error of a group on the grid between two ends, one number at a time."""
    scheme, (low, high) = parse_scheme(text), ends
    lowest, highest = scheme.range
    scale = (high - low) / (highest - lowest)
    if scheme.symmetric:
        scale = max(-low, high) * 2 / (highest - lowest)
    zero = 0 if scheme.symmetric else max(lowest, min(highest, round(lowest - low / scale)))
    amount = 0.0
    for number, cost in zip(numbers, costs, strict=True):
        level = max(lowest, min(highest, round(number / scale + zero)))
        amount += cost * ((level - zero) * scale - number) ** 2
    return amount


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("text", [text for text in SCHEMES if text != "fp8"])
def test_of_all_reaches_the_one_of_least_squared_error_is_taken(text: str, weighted: bool) -> None:
    scheme, weight = parse_scheme(text), weights().double()
    group = scheme.group or weight.shape[1]
    costs = torch.rand(weight.shape[1], generator=torch.Generator().manual_seed(1)).double() ** 4
    costs = costs if weighted else torch.ones_like(costs)
    grouped = weight.float().view(len(weight), -1, group)
    grid = LevelGrid.of(
        grouped,
        scheme,
        torch.float32,
        importance=costs.float().view(-1, group),
    )
    found = grid.values(grid.levels(grouped)).double().view(weight.shape)
    for row, numbers in enumerate(weight):
        for part in range(0, weight.shape[1], group):
            inside = numbers[part : part + group].tolist()
            cost = costs[part : part + group].tolist()
            low, high = min(*inside, 0.0), max(*inside, 0.0)
            if low == high:
                continue  # a group of zeros
            tried = [lost(inside, cost, (low * share, high * share), text) for share in REACHES]
            error = found[row, part : part + group] - numbers[part : part + group]
            least = float(error.square() @ costs[part : part + group])
            assert least == pytest.approx(min(tried), rel=1e-4)
            assert min(tried) < max(tried)


def test_a_grid_in_float8_is_as_long_as_the_weights_reach() -> None:
    weight = weights()
    scale = round_to_nearest(weight, parse_scheme("fp8"), torch.float32).scale
    torch.testing.assert_close(scale, weight.abs().amax(1, keepdim=True) / 448)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", SCHEMES)
def test_every_weight_is_the_nearest_of_all_values_and_zero_stays_zero(
    text: str, dtype: torch.dtype
) -> None:
    scheme, weight = parse_scheme(text), weights()
    rounded = round_to_nearest(weight, scheme, dtype)
    assert rounded.weight.dtype == dtype
    assert bool((rounded.weight[weight == 0] == 0).all())
    lowest, highest = scheme.range
    if scheme.floating:
        every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
        levels = every[~every.float().isnan()]
    else:
        levels = torch.arange(lowest, highest + 1).to(torch.int8)
    group = scheme.group or weight.shape[1]
    zeros = rounded.zero
    for row in range(len(weight)):
        for column in range(weight.shape[1]):
            place = (row, column // group)
            grid = LevelGrid(scheme, rounded.scale[place], None if zeros is None else zeros[place])
            values, wanted = grid.values(levels).float(), weight[row, column]
            nearest = (values - wanted).abs().min()
            found = (rounded.weight[row, column].float() - wanted).abs()
            # values are rounded to `dtype`: two may be as near as that
            slack = torch.finfo(dtype).eps * wanted.abs()
            assert found <= nearest + slack


def test_the_smallest_weights_of_a_dtype_have_a_grid() -> None:
    weight = torch.full((1, 32), 1e-7)
    weight[0, 1] = -1e-7
    rounded = round_to_nearest(weight, parse_scheme("w4a16:row"), torch.float16)
    assert bool((rounded.scale > 0).all())
    assert rounded.weight[0, 0] > 0 > rounded.weight[0, 1]
