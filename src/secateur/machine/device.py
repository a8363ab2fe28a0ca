"""Chooses where a run computes, and in what precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch

from secateur.errors import RecipeError
from secateur.machine import processes
from secateur.machine.accelerator import COLLECTIVES, kind_here, make_current, names_here


def choose_device(name: str) -> torch.device:
    """The device called `name`: "cpu", "cuda", "cuda:1", "mps", "xpu", whatever torch has here.

    "auto" is the accelerator if there is one.
    Of several processes on a host each takes an accelerator of its own.

    Raises:
        RecipeError: it does not exist here.
    """
    kind, several = kind_here(), processes.count() > 1
    shared = kind if kind in COLLECTIVES else None  # the kind that several processes can compute on
    if name == "auto":
        name = (shared if several else kind) or "cpu"
    if several and name == shared:
        name = f"{shared}:{processes.local()}"
    elif several and kind is not None and name.partition(":")[0] == kind:
        raise RecipeError(
            f"device {name[:40]} for each of {processes.count()} processes",
            wanted=f"auto, {shared} or cpu" if shared else "auto or cpu",
        )
    there = ["cpu", *names_here()]
    if {kind: f"{kind}:0", "cpu:0": "cpu"}.get(name, name) not in there:
        raise RecipeError(f"device {name[:40]!r} is not there", wanted=" or ".join(there))
    device = torch.device(name)
    if several:
        make_current(device)  # where NCCL, and a kernel that is not told, will be
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """The computing precision; None is the checkpoint's own.

    "auto" computes in float32 on a CPU, where half precision is slow and rounds the hidden states,
    and in the checkpoint's own dtype on an accelerator.
    """
    if name == "auto":
        return torch.float32 if device.type == "cpu" else None
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def multiplies_bfloat16() -> bool:
    """Whether the processor multiplies matrices in bfloat16 by itself, and so faster."""
    ask = getattr(torch.cpu, "get_capabilities", None)  # not in every torch
    capabilities: Mapping[str, object] = {} if ask is None else ask()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


@contextmanager
def plain_computing() -> Iterator[None]:
    """Inside, torch computes what it is told and nothing else: what the caller set is set aside.

    Autocast, or matrix products of float32 in less, would compute in another precision than the one
    recorded, `inference_mode` takes no gradients, and other defaults than float32 on the CPU change
    what is made without saying where.
    """
    dtype, place = torch.get_default_dtype(), torch.get_default_device()
    with ExitStack() as aside:
        aside.enter_context(torch.inference_mode(False))
        for kind in {"cpu", kind_here() or "cpu"}:
            aside.enter_context(torch.autocast(kind, enabled=False))
        if place.type != "cpu":
            aside.enter_context(torch.device("cpu"))
        if dtype != torch.float32:
            torch.set_default_dtype(torch.float32)
            aside.callback(torch.set_default_dtype, dtype)
        for backend in ("cuda", "mkldnn"):
            products = getattr(torch.backends, backend).matmul
            if (precision := products.fp32_precision) not in ("none", "ieee"):
                products.fp32_precision = "ieee"
                aside.callback(setattr, products, "fp32_precision", precision)
        yield
