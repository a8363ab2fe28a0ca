"""The packed kernel: right in Triton's interpreter, and compiled for GPUs that are not here."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.inference.tile import MOST_VECTORS, Tile, candidates

triton = pytest.importorskip("triton", reason="triton is not installed")
compile_for = pytest.importorskip("compiled").compile_for
kernel = pytest.importorskip("secateur.inference.kernel")

LARGEST = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 5e-3}
"""Relative error: sums are float32, and what is left is the rounding of the result."""


BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "kernel.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def interpreted() -> list[str]:
    """What one interpreter printed: the errors of `interpreted.py`, then a run of the benchmark."""
    script = Path(__file__).parents[1] / "interpreted.py"
    done = run(script, BENCHMARK, "--interpret", "--vectors", 3)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def errors(interpreted: list[str]) -> dict[str, float]:
    """Case -> relative error."""
    by_case: dict[str, float] = json.loads(interpreted[0])
    return by_case


@pytest.mark.parametrize("dtype", LARGEST)
def test_the_interpreted_kernel_is_right(errors: dict[str, float], dtype: str) -> None:
    mine = {case: error for case, error in errors.items() if case.startswith(dtype)}
    assert len(mine) >= 3
    wrong = {case: error for case, error in mine.items() if not error < LARGEST[dtype]}
    assert wrong == {}
    assert errors[f"{dtype} unpacked"] == 0


# What is compiled for a GPU that is not here: that it compiles, fits, and reads 16 bytes at once.

POINTERS = {"x": "*bf16", "mask": "*u8", "values": "*bf16", "y": "*fp32"}


def compiled(capability: int, vectors: int) -> dict[str, Any]:
    """Facts about the kernel's code for a GPU of a compute capability, and its first tile."""
    tile = candidates(vectors)[0]
    constants = {
        "VECTORS": 16 if tile.dot else vectors, "ROWS": tile.rows, "GROUPS": tile.groups,
        "DOT": tile.dot, "STAGES": tile.stages, "EXACT": False,
    }  # fmt: skip
    made = compile_for(
        capability, kernel._multiply, POINTERS, constants, {"vectors"},
        num_warps=tile.warps, enable_fp_fusion=True,
    )  # fmt: skip
    ptx = made.asm["ptx"]
    return {
        "machine code": len(made.asm["cubin"]),
        "shared": made.metadata.shared,
        "wide": ptx.count(".cg.shared.global") + ptx.count("ld.global.v4"),
        "tensor cores": "mma" in ptx,
    }


@pytest.mark.parametrize("vectors", [1, 16])
@pytest.mark.parametrize("capability", [80, 90])
def test_it_compiles_for_gpus(
    capability: int, vectors: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    facts = compiled(capability, vectors)
    assert any(tmp_path.iterdir())  # made now, not found in a cache of this machine
    assert facts["machine code"] > 0
    assert facts["shared"] <= 99 * 1024  # what the smallest of Ampere and Ada have
    assert facts["wide"] > 0
    assert facts["tensor cores"] == (vectors == 16)


def test_the_benchmark_runs_interpreted(interpreted: list[str]) -> None:
    printed = "\n".join(interpreted[1:])
    assert printed.count("right") == 4
    assert interpreted[-1] == "interpreted: nothing was timed"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_benchmark_needs_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(BENCHMARK)])
    with torch.random.fork_rng(devices=[]), pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(BENCHMARK), run_name="__main__")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: this needs a GPU with CUDA; try --interpret on a CPU\n"


WITHOUT = """
import sys
sys.modules["triton"] = None
import torch, secateur
from secateur.inference import PackedLinear
from secateur.machine.kernels import has_triton, kernel_runs
dense = torch.nn.Linear(8, 3)
dense.weight.data[:, ::2] = 0
x = torch.randn(2, 8)
assert torch.equal(PackedLinear.from_linear(dense)(x), dense(x))
torch.version.cuda = "13.0"  # as in a build for GPUs
assert not has_triton()
assert not kernel_runs(torch.device("cuda"), torch.float32)
"""


def test_without_triton_layers_unpack() -> None:
    done = run("-c", WITHOUT)
    assert done.returncode == 0, done.stderr


def power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


@pytest.mark.parametrize("vectors", [1, 2, 3, 4, 5, 16, MOST_VECTORS])
def test_candidates_are_tiles_that_the_kernel_can_have(vectors: int) -> None:
    for tile in candidates(vectors):
        assert power_of_two(tile.rows)
        assert power_of_two(tile.groups)
        assert not tile.dot or (tile.rows >= 16 and tile.groups >= 4)
    assert len(set(candidates(vectors))) == len(candidates(vectors)) > 3


@pytest.mark.parametrize("groups", [1, 25, 1024, 2752])
@pytest.mark.parametrize("splits", [1, 2, 7])
def test_splits_cover_every_group_and_share_no_tile(groups: int, splits: int) -> None:
    share = Tile(4, 8, splits=splits).share(groups)
    assert share % 8 == 0
    assert share * splits >= groups
