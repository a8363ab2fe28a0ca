"""Every method and command on an accelerator, of which there is none: on the stand-in.

The rows run in a process of their own (`rows.py`), since PyTorch keeps what the stand-in registers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from secateur.methods import every
from standin import rows
from standin.building import why_not

CEILINGS = Path(__file__).parents[2] / "benchmarks" / "ceilings.py"
ROWS = [f"{kind}: {name}" for kind in rows.KINDS for name in rows.rows_of(kind)]

WAITS = {
    "magnitude": 81,  # 77.5 counted
    "wanda": 88,  # 84.5
    "wanda++-rgs": 135,  # 130.5
    "wanda++-ro": 99,  # 94.5
    "wanda++": 146,  # 140.5
    "sparsegpt": 109,  # 104.5
    "alps": 192,  # 184.5
    "alps-ro": 202,  # 194.5
    "gblm": 133,  # 128.0
}
"""Method -> how often the host may wait for the device per block: what was counted, and a few.

For seven matrices, in two blocks, which bear half each of what is done once in a run."""

GROWING = {
    "blocks/call.py": "once in a run: masks and rotary tables of every batch are compared",
    "blocks/hollow.py": "once in a run, for every batch: the model itself looks at its mask",
    "blocks/stream.py": "the model itself looks at its mask, for every sequence before the head",
    "methods/alps.py": "every third iteration, until the mask stays as it is",
}
"""Files whose waits may grow with the size of what is pruned, and why."""

Outcomes = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """How every row went. The first use on a machine compiles for a minute."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    done = subprocess.run(
        [sys.executable, rows.__file__, tmp_path_factory.mktemp("standin")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        check=False,
    )
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, done.stderr
    return {facts["row"]: facts for facts in told}


@pytest.mark.parametrize("row", ROWS)
def test_the_row_holds(outcomes: Outcomes, row: str) -> None:
    fault = outcomes[row]["fault"]
    assert fault is None, fault


@pytest.mark.parametrize("method", [method.name for method in every()])
def test_the_host_seldom_waits(outcomes: Outcomes, method: str) -> None:
    facts = outcomes[f"cuda: {method} in memory"]
    assert facts["waits"] <= WAITS[method], facts["lines"]


@pytest.mark.parametrize("method", [method.name for method in every()])
def test_waits_do_not_grow_with_sequences_steps_or_columns(outcomes: Outcomes, method: str) -> None:
    few, many = (outcomes[f"cuda: {method} {size}"] for size in ("in memory", "with more"))
    grown = {
        file: count
        for file, count in many["files"].items()
        if count > few["files"].get(file, 0) and file not in GROWING
    }
    assert grown == {}, many["lines"]


def test_apple_has_a_kernel_for_every_operator(outcomes: Outcomes) -> None:
    """By PyTorch's own list; others run if the user sets PYTORCH_ENABLE_MPS_FALLBACK=1."""
    lacking = {
        operator
        for method in every()
        for operator in outcomes[f"mps: {method.name} in memory"].get("lacking", ())
    }
    assert lacking == set()


def test_every_kind_runs_every_method() -> None:
    for kind in rows.KINDS:
        for method in every():
            assert f"{method.name} in memory" in rows.rows_of(kind)


def test_the_estimate_of_device_memory_is_within_a_tenth() -> None:
    """A block of a Llama 7B under 8 GiB, on the stand-in without numbers.

    With fewer sequences the optimiser ends before its moments and gradients are there together.
    """
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    methods = ["wanda", "wanda++-rgs", "alps-ro"]
    chosen = ["--size", "7b", "--samples", "16", "--methods", ",".join(methods)]
    done = subprocess.run(
        [sys.executable, CEILINGS, *chosen], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows_told = [line.split("|")[1:-1] for line in done.stdout.splitlines() if " % |" in line]
    assert [row[0].strip() for row in rows_told] == methods
    for row in rows_told:
        assert abs(float(row[4].removesuffix(" % "))) <= 10, row
        assert row[5].strip() == "fits", row
