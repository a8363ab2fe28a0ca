"""Compiles a Triton kernel for a GPU that is not here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


def compile_for(
    capability: int,
    kernel: Any,
    pointers: Mapping[str, str],
    constants: Mapping[str, Any],
    small: Collection[str] = (),
    **options: Any,
) -> Any:
    """The kernel for one of NVIDIA's compute capabilities, with all stages of its code.

    Args:
        capability: 80, 90.
        kernel: what `triton.jit` made.
        pointers: parameter -> type of what it points to; the rest are 32-bit integers.
        constants: parameter -> its value, of those known when it is compiled.
        small: parameters that 16 does not divide.
        options: such as num_warps.
    """
    names = kernel.arg_names
    source = ASTSource(
        kernel,
        {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={
            (index,): [["tt.divisibility", 16]]
            for index, name in enumerate(names)
            if name not in constants and name not in small
        },
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
