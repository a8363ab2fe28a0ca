"""The packed kernel: right in Triton's interpreter, and compiled for GPUs that are not here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from secateur.inference.tile import MOST_VECTORS, Tile, candidates

pytest.importorskip("triton", reason="triton is not installed")

LARGEST = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 5e-3}
"""Relative error: sums are float32, and what is left is the rounding of the result."""


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    """Case -> relative error, from one interpreter for all of them."""
    script = Path(__file__).parents[1] / "interpreted.py"
    done = run(script)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("dtype", LARGEST)
def test_the_interpreted_kernel_is_right(errors: dict[str, float], dtype: str) -> None:
    mine = {case: error for case, error in errors.items() if case.startswith(dtype)}
    assert len(mine) >= 3
    wrong = {case: error for case, error in mine.items() if not error < LARGEST[dtype]}
    assert wrong == {}
    assert errors[f"{dtype} unpacked"] == 0


# What is compiled for a GPU that is not here: that it compiles, fits, and reads 16 bytes at once.

COMPILE = """
import json, sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
from secateur.inference import kernel
from secateur.inference.tile import candidates

names = kernel._multiply.arg_names
pointers = {"x": "*bf16", "mask": "*u8", "values": "*bf16", "y": "*fp32"}
even = [["tt.divisibility", 16]]


def compiled(capability, vectors):
    tile = candidates(vectors)[0]
    constants = {
        "VECTORS": 16 if tile.dot else vectors, "ROWS": tile.rows, "GROUPS": tile.groups,
        "DOT": tile.dot, "STAGES": tile.stages, "EXACT": False,
    }
    source = ASTSource(
        kernel._multiply,
        {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(place,): even for place, name in enumerate(names)
               if name not in constants and name != "vectors"},
    )
    made = triton.compile(
        source, target=GPUTarget("cuda", capability, 32),
        options={"num_warps": tile.warps, "enable_fp_fusion": True},
    )
    ptx = made.asm["ptx"]
    return {
        "machine code": len(made.asm["cubin"]), "shared": made.metadata.shared,
        "wide": ptx.count(".cg.shared.global") + ptx.count("ld.global.v4"),
        "tensor cores": "mma" in ptx,
    }


print(json.dumps({f"{gpu} {vectors}": compiled(gpu, vectors)
                  for gpu in (80, 90) for vectors in (1, 16)}))
"""


def test_it_compiles_for_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    (tmp_path / "compiled.py").write_text(COMPILE)
    done = run(tmp_path / "compiled.py")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"80 1", "80 16", "90 1", "90 16"}
    for name, facts in found.items():
        assert facts["machine code"] > 0
        assert facts["shared"] <= 99 * 1024  # what the smallest of Ampere and Ada have
        assert facts["wide"] > 0
        assert facts["tensor cores"] == name.endswith("16")


BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "kernel.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_the_benchmark_runs_interpreted() -> None:
    done = run(BENCHMARK, "--interpret", "--vectors", 3)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("right") == 4
    assert done.stdout.endswith("interpreted: nothing was timed\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_benchmark_needs_a_gpu() -> None:
    done = run(BENCHMARK)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: this needs a GPU with CUDA; try --interpret on a CPU\n"


WITHOUT = """
import sys
sys.modules["triton"] = None
import torch, secateur
from secateur.inference import PackedLinear
from secateur.inference.packed_linear import kernel_runs
dense = torch.nn.Linear(8, 3)
dense.weight.data[:, ::2] = 0
x = torch.randn(2, 8)
assert torch.equal(PackedLinear.from_linear(dense)(x), dense(x))
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
