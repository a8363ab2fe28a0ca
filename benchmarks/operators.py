"""Where the seconds of some work go, by kind of torch operator.

    products    matrix products
    attention   torch's fused attention, whose two products are not told from its softmax
    factors     Cholesky factors and inverses
    optimiser   fused steps of Adam
    between     everything else that torch does: norms, activations, sums, masks, copies
    Python      what is left of the wall clock: between the operators

The profiler itself takes time, some microseconds for each operator, most of it in the last.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

KINDS = {
    "products": ("mm", "addmm", "bmm", "baddbmm", "dot", "mv"),
    "attention": ("_scaled_dot_product",),
    "factors": ("cholesky", "linalg_cholesky", "linalg_eigh", "linalg_solve_triangular"),
    "optimiser": ("_fused_adam",),
}
"""Beginnings of operators' names; those of `products` are whole names."""
BETWEEN, PYTHON = "between", "Python"


def by_kind(work: Callable[[], object]) -> dict[str, float]:
    """Seconds by kind while `work` is done once, on the CPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        began = time.perf_counter()
        work()
        whole = time.perf_counter() - began
    found = dict.fromkeys((*KINDS, BETWEEN), 0.0)
    for event in profile.key_averages():
        space, _, name = event.key.partition("::")
        if space == "aten":
            found[kind_of(name.removesuffix("_"))] += event.self_cpu_time_total / 1e6
    return {**found, PYTHON: max(0.0, whole - sum(found.values()))}


def kind_of(name: str) -> str:
    """Of an operator, by its name without a namespace."""
    for kind, names in KINDS.items():
        if name in names or (kind != "products" and name.startswith(names)):
            return kind
    return BETWEEN
