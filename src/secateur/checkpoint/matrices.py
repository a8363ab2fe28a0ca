"""Finds the prunable matrices of a block and shows each as W [out, in], however it is stored.

torch.nn.Linear      weight [out, in]
transformers Conv1D  weight [in, out] (GPT-2): seen transposed
fused experts        one parameter [experts, out, in], or [experts, in, out]: a matrix per expert

Fused experts are the modules that transformers runs by `ALL_EXPERTS_FUNCTIONS`: two projections,
`gate_up_proj` (or `up_proj` where there is no gate) and `down_proj`. Gate and up are one matrix, as
they lie in memory, one above the other or row by row in turn: a row's importance is its own.

Routers stay as they are. They are small, and they decide which expert sees which token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from secateur.checkpoint.structure import Blocks
from secateur.errors import ModelError

MINIMUM_COVERAGE = 0.75
"""Least share of a block's matrix parameters that must be prunable. Below it the sparsity of the
matrices would not be that of the model, and a layer of some new kind is probably overlooked; what
is left dense above it (a tenth in a small RecurrentGemma) is listed by `left_dense.py`."""


@dataclass(frozen=True)
class Matrix:
    """One prunable matrix of one block.

    Attributes:
        name: its own within the block: "self_attn.q_proj.weight", "mlp.experts.3.down_proj".
        parameter: that of the parameter it lies in, within the block: "mlp.experts.down_proj".
        owner: the module that multiplies by it.
        transposed: whether it is stored as [in, out].
        expert: which expert of a fused parameter it is of; None for a parameter of its own.
    """

    name: str
    parameter: str
    owner: nn.Module
    transposed: bool
    expert: int | None = None

    @property
    def kind(self) -> str:
        """The address within the block, the same for every block and expert: "self_attn.q_proj"."""
        return self.parameter.removesuffix(".weight")

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        rows, columns = self.read().shape
        return rows, columns

    @property
    def address(self) -> tuple[int, int, int]:
        """The address of the matrix in memory: the same for two matrices that are one."""
        stored = self._stored
        if stored.is_meta:
            return id(self.stored_in), 0, self.expert or 0
        return stored.untyped_storage().data_ptr(), int(stored.storage_offset()), 0

    def read(self) -> Tensor:
        """W [out, in], a view of the parameter's memory without gradient."""
        return self.within(self.whole)

    def within(self, parameter: Tensor) -> Tensor:
        """W [out, in] of a value of the whole parameter, a view of its memory."""
        stored = parameter if self.expert is None else parameter[self.expert]
        return stored.T if self.transposed else stored

    def write(self, weight: Tensor) -> None:
        """Overwrite the parameter with W [out, in], cast to the parameter's dtype."""
        with torch.no_grad():
            self.read().copy_(weight)

    def as_stored(self, weight: Tensor) -> Tensor:
        """W [out, in] in the orientation of the parameter."""
        return weight.T if self.transposed else weight

    @property
    def stored_in(self) -> Tensor:
        """The parameter that it is, or is a part of."""
        parameter: Tensor = getattr(self.owner, self.parameter.rpartition(".")[2])
        return parameter

    @property
    def whole(self) -> Tensor:
        """The same without gradient."""
        return self.stored_in.detach()

    @property
    def _stored(self) -> Tensor:
        return self.whole if self.expert is None else self.whole[self.expert]


def is_fused_experts(module: nn.Module) -> bool:
    """Whether a module keeps its experts in 3-D parameters, as `ALL_EXPERTS_FUNCTIONS` wants it."""
    layout = ("num_experts", "is_transposed", "has_gate", "has_bias")
    down = getattr(module, "down_proj", None)
    return all(hasattr(module, name) for name in layout) and isinstance(down, nn.Parameter)


def first_projection(experts: nn.Module) -> str:
    """The parameter of fused experts that reads their input."""
    return "gate_up_proj" if experts.has_gate else "up_proj"


def find_matrices(block: nn.Module) -> tuple[Matrix, ...]:
    """Every matrix of a block that can be pruned, in the order of its modules.

    Raises:
        ModelError: they make up less than `MINIMUM_COVERAGE` of the block's matrix parameters, so
            that the sparsity reported would not be the sparsity of the model.
    """
    by_address: dict[tuple[int, int, int], Matrix] = {}
    routers = find_routers(block)
    for name, module in block.named_modules():
        if name not in routers:
            for matrix in _matrices_of(name, module):
                by_address.setdefault(matrix.address, matrix)  # shared weights once
    matrices = tuple(by_address.values())
    covered = sum(torch.Size(matrix.shape).numel() for matrix in matrices)
    present = sum(weight.numel() for weight in block.parameters() if weight.dim() >= 2)
    if covered < MINIMUM_COVERAGE * present or not matrices:
        known = {matrix.parameter for matrix in matrices}
        left_out = [
            name
            for name, weight in block.named_parameters()
            if weight.dim() >= 2 and name not in known
        ]
        raise ModelError(
            f"only {1000 * covered // max(1, present) / 10:g}% of the block's matrix parameters can"
            " be pruned"
            f" (not: {', '.join(left_out[:4])})",
            where=type(block).__name__,
            wanted=f"at least {MINIMUM_COVERAGE:.0%}",
        )
    return matrices


def find_all_matrices(blocks: Blocks) -> list[tuple[Matrix, ...]]:
    """The matrices of every block; one that several blocks share belongs to the first of them."""
    taken: set[tuple[int, int, int]] = set()
    every = []
    for block in blocks.modules:
        matrices = find_matrices(block)
        new = tuple(matrix for matrix in matrices if matrix.address not in taken)
        taken.update(matrix.address for matrix in new)
        every.append(new)
    return every


def with_weights(
    matrices: Iterable[Matrix], weights: Mapping[str, Tensor], dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The parameters of some matrices, with new weights in them.

    Args:
        matrices: whose parameters are wanted.
        weights: by matrix name, [out, in]; those of one parameter are of one dtype.
        dtype: of the result; None keeps that of the weights.

    Returns:
        by parameter name within the block, in the orientation stored; gradients pass through. An
        expert that is not among `matrices` keeps its own.
    """
    stored: dict[str, Tensor] = {}
    experts: dict[str, list[Tensor]] = {}
    for matrix in matrices:
        weight = matrix.as_stored(weights[matrix.name])
        weight = weight if dtype is None else weight.to(dtype)
        if matrix.expert is None:
            stored[matrix.parameter] = weight
        else:
            if matrix.parameter not in experts:
                experts[matrix.parameter] = list(matrix.whole.to(weight.device).to(weight.dtype))
            experts[matrix.parameter][matrix.expert] = weight
    return {**stored, **{name: torch.stack(parts) for name, parts in experts.items()}}


def _matrices_of(name: str, module: nn.Module) -> Iterator[Matrix]:
    """The matrices that a module itself multiplies by."""
    if isinstance(module, nn.Linear | Conv1D):
        weight = f"{name}.weight"
        yield Matrix(weight, weight, module, isinstance(module, Conv1D))
    elif is_fused_experts(module):
        for parameter in (first_projection(module), "down_proj"):
            for expert in range(module.num_experts):  # type: ignore[arg-type]
                yield Matrix(
                    f"{name}.{expert}.{parameter}",
                    f"{name}.{parameter}",
                    module,
                    bool(module.is_transposed),
                    expert,
                )


def find_routers(block: nn.Module) -> set[str]:
    """Names of the linear layers that choose among experts, or weigh a shared one.

    They stand beside fused experts: a module that transformers calls a router, or what ends in one
    number for each expert, or in one, and does not lead back to the width that it reads. Attention
    and the layers of a shared expert do lead back, however many numbers they have in between.
    """
    routers: set[str] = set()
    for name, experts in block.named_modules():
        if is_fused_experts(experts):
            beside = name.rpartition(".")[0]
            parent = block.get_submodule(beside)
            alone = [layer for layer in parent.children() if isinstance(layer, nn.Linear)]
            for inner, child in parent.named_children():
                if child is not experts and _chooses(child, experts, alone):
                    path = f"{beside}.{inner}".lstrip(".")
                    routers |= {
                        f"{path}.{deeper}".rstrip(".")
                        for deeper, layer in child.named_modules()
                        if isinstance(layer, nn.Linear)
                    }
    return routers


def _chooses(child: nn.Module, experts: nn.Module, alone: list[nn.Linear]) -> bool:
    """Whether a module or layer beside fused experts is their router.

    Args:
        child: what stands there.
        experts: the fused experts.
        alone: the linear layers that stand beside them in no module of their own.
    """
    if is_router(child):
        return True
    layers = [layer for layer in child.modules() if isinstance(layer, nn.Linear)]
    if not any(layer.out_features in (1, experts.num_experts) for layer in layers):
        return False
    if child is not layers[0]:
        width = layers[0].in_features
        return len(layers) == 1 or all(layer.out_features != width for layer in layers)
    back = (layers[0].out_features, layers[0].in_features)
    return not any(
        (other.in_features, other.out_features) == back for other in alone if other is not child
    )


def is_router(module: nn.Module) -> bool:
    """Whether transformers calls a module a router."""
    return "router" in type(module).__name__.lower()
