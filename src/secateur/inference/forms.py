"""The three forms a linear layer can take: dense, semi-structured, packed; or why it cannot.

dense            `nn.Linear` as it is
semi-structured  `nn.Linear` whose weight is PyTorch's own 2:4 tensor, which the sparse tensor cores
                 of NVIDIA GPUs from Ampere on multiply: half the arithmetic, 56 % of the bytes
packed           `PackedLinear`, whose kernel reads 56 % of the bytes

A form that a layer cannot take is no error: the layer stays dense, and the report says why.
"""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import nn

from secateur.inference.packed_linear import PackedLinear
from secateur.machine.kernels import kernel_runs

Form = Literal["dense", "semi-structured", "packed"]
FORMS: tuple[Form, ...] = ("dense", "semi-structured", "packed")
TENSOR_CORE_DTYPES = (torch.float16, torch.bfloat16)
"""The sparse tensor cores have no float32: they would round such weights to TF32."""


class UnfitError(Exception):
    """A layer cannot take a form; the text says why. Never leaves this folder."""


def convert(linear: nn.Linear, form: Form) -> nn.Module:
    """A layer of another form with the same weights; `linear` stays as it is.

    Args:
        linear: whose matrix is 2:4.
        form: the form wanted.

    Raises:
        UnfitError: the layer cannot take that form.
    """
    if form == "dense":
        return linear
    if form == "packed":
        if not kernel_runs(linear.weight.device, linear.weight.dtype):
            raise UnfitError("the kernel needs CUDA, Triton and 16 or 32 bit floats")
        return PackedLinear.from_linear(linear)
    return _semi_structured(linear)


def _semi_structured(linear: nn.Linear) -> nn.Linear:
    weight = linear.weight.detach()
    if weight.dtype not in TENSOR_CORE_DTYPES:
        raise UnfitError(f"no sparse tensor core for {str(weight.dtype).removeprefix('torch.')}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that it is a prototype, once a process
            sparse = torch.sparse.to_sparse_semi_structured(weight.contiguous())
    except (RuntimeError, NotImplementedError) as fault:  # the shape, the GPU or the build
        raise UnfitError(str(fault).partition("\n")[0].removeprefix("Error ")) from fault
    rows, columns = weight.shape
    converted = nn.Linear(columns, rows, bias=False, device="meta", dtype=weight.dtype)
    converted.weight = nn.Parameter(sparse, requires_grad=False)
    converted.bias = linear.bias
    return converted.train(linear.training)
