"""What differs between accelerators, as far as it shows without one."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch

from secateur.machine.accelerator import products_in_tf32

CUDA = torch.device("cuda")


def test_tf32_is_for_nvidia_alone_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with products_in_tf32(torch.device("cpu")):
        assert matmul.fp32_precision == before
    with suppress(ZeroDivisionError), products_in_tf32(CUDA):
        assert matmul.fp32_precision == "tf32"
        _ = 1 / 0
    assert matmul.fp32_precision == before
    monkeypatch.setattr(torch.version, "cuda", None)  # a build for AMD's, which say "cuda" too
    with products_in_tf32(CUDA):
        assert matmul.fp32_precision == before


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_the_users_own_choice_is_as_it_was(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the older of PyTorch's two ways, which it does not let one mix."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    chosen = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        with products_in_tf32(CUDA):
            pass
        assert torch.get_float32_matmul_precision() == precision
        assert torch.backends.cuda.matmul.allow_tf32 == (precision == "high")
    finally:
        torch.set_float32_matmul_precision(chosen)
