"""SparseGPT's columns: by halves, by a kernel in Triton's interpreter, and without it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import stretches
from secateur.methods import columns
from secateur.methods.columns import Columns, solve_columns
from secateur.sparsity import NofM

compile_for = pytest.importorskip("compiled", reason="triton is not installed").compile_for
kernel = pytest.importorskip("secateur.methods.columns_kernel")


def by_column(one: Columns) -> Columns:
    """Column after column in float64, as the algorithm is written."""
    current, goes = one.current.double(), one.pruned.clone()
    for j in range(len(current)):
        if isinstance(one.pattern, NofM) and j % one.pattern.m == 0:
            group = slice(j, j + one.pattern.m)
            score = current[group] ** 2 / one.scale[group, None].double()
            order = score.argsort(dim=0, descending=True, stable=True)
            goes[group] = torch.ones_like(score, dtype=goes.dtype).scatter_(
                0, order[: one.pattern.n], 0
            )
        current[j + 1 :] -= torch.outer(one.factor[j, j + 1 :].double(), current[j] * goes[j])
    return Columns(
        current.float(), goes, (current * goes).float(), one.factor, one.scale, one.pattern
    )


@pytest.mark.parametrize("case", stretches.CASES, ids=str)
def test_halves_are_column_after_column(case: tuple[str, int, int]) -> None:
    one = stretches.make(*case)
    wanted = by_column(one)
    columns.by_halves(one)
    assert torch.equal(one.pruned, wanted.pruned)
    torch.testing.assert_close(one.current, wanted.current, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.lost, wanted.lost, rtol=1e-4, atol=1e-5)


def test_the_interpreted_kernel_does_what_halves_do() -> None:
    script = Path(__file__).parents[1] / "interpreted_columns.py"
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 2 * len(stretches.CASES) + 3
    wrong = {case: (far, moved) for case, (far, moved) in found.items() if far > 1e-4 or moved}
    assert wrong == {}


def test_a_kernel_that_does_not_run_is_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU without a compiler: here the fault is Triton's own, for want of a GPU."""
    monkeypatch.setattr(columns, "kernel_runs", lambda *_: True)
    monkeypatch.setattr(columns, "_FAULTS", {})
    first, second = (stretches.make("2:4", 32, 5) for _ in range(2))
    told = solve_columns(first)
    assert told is not None
    assert told.startswith("solved without a kernel, which takes longer: ")
    assert "driver" in told
    assert solve_columns(second) is None
    wanted = by_column(stretches.make("2:4", 32, 5))
    for one in (first, second):
        torch.testing.assert_close(one.current, wanted.current, rtol=1e-4, atol=1e-5)


def test_a_kernel_that_is_wrong_is_not_relied_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "kernel_runs", lambda *_: True)
    monkeypatch.setattr(columns, "_FAULTS", {})
    monkeypatch.setattr(columns, "by_kernel", lambda one: one.current.mul_(1.01))
    one = stretches.make("2:4", 32, 5)
    assert solve_columns(one) == (
        "solved without a kernel, which takes longer: its results differ from plain PyTorch's"
    )
    wanted = by_column(stretches.make("2:4", 32, 5))
    torch.testing.assert_close(one.current, wanted.current, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("choose", [True, False])
@pytest.mark.parametrize("capability", [80, 90])
def test_it_compiles_for_gpus(
    capability: int, choose: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    pointers = ("current", "pruned", "lost", "factor", "scale")
    constants = {"WIDTH": 128, "ROWS": 4, "CHOOSE": choose}
    made = compile_for(
        capability, kernel._prune_columns, dict.fromkeys(pointers, "*fp32"), constants,
        {"group", "kept"}, num_warps=1, enable_fp_fusion=True,
    )  # fmt: skip
    assert len(made.asm["cubin"]) > 0
    assert "shfl.sync" in made.asm["ptx"]  # sums over columns pass from thread to thread
    assert made.metadata.shared <= 1024  # nothing else does
