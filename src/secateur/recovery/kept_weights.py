"""The weights themselves are trained: all that pruning left, or norms and biases alone.

    W_used = stored(W)   where the sparse model's is not zero
             0           where it is

    W       float32, of a matrix, norm or bias of the blocks; where it begins is the sparse model
    stored  rounds to the dtype of the checkpoint; its gradient passes through

Every forward pass computes with `W_used`, and `W_used` is what is written. Embeddings, the head and
the last norm stay as they are. Norms and biases alone are as few parameters as small adapters, and
nothing of the shape of a matrix is remembered for them.

Source: norms and biases, PERP, arXiv 2312.15230.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from secateur.errors import NumericalError
from secateur.recovery.rounding import as_stored

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class KeptWeights:
    """A model whose own parameters are trained, every zero of a matrix held.

    Args:
        model: the sparse model, whole; it is frozen, and not changed.
        names: of the parameters, from `find_trained`.
        stored_dtype: gives the dtype that a parameter has on disk.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        names: Collection[str],
        stored_dtype: Callable[[str], torch.dtype],
    ) -> None:
        self.base = model
        begun = {name: model.get_parameter(name).detach() for name in names}
        self.factors = {name: nn.Parameter(value.float().clone()) for name, value in begun.items()}
        self._keep = {
            name: (value != 0).to(value.dtype) for name, value in begun.items() if value.ndim > 1
        }
        self._dtypes = {name: stored_dtype(name) for name in names}

    def __call__(self, **inputs: Any) -> Any:
        """Compute as the model does, with the weights as they are now."""
        used = {name: self._used(name) for name in self.factors}
        return functional_call(self.base, used, (), inputs)

    def parameters(self) -> int:
        """How many numbers are trained; those of a pruned weight are none."""
        return sum(
            int(torch.count_nonzero(self._keep[name])) if name in self._keep else factor.numel()
            for name, factor in self.factors.items()
        )

    @torch.no_grad()
    def stored(self) -> dict[str, Tensor]:
        """Every trained parameter by its name, as it is stored.

        Raises:
            NumericalError: one is not finite.
        """
        used = {name: self._used(name).to(self._dtypes[name]) for name in self.factors}
        stored = {name: (weight + 0.0).cpu() for name, weight in used.items()}  # no zero is -0
        for name, value in stored.items():
            if not bool(torch.isfinite(value).all()):
                raise NumericalError("a trained weight is not finite", where=name)
        return stored

    def _used(self, name: str) -> Tensor:
        weight = as_stored(self.factors[name], self._dtypes[name])
        weight = weight.to(self.base.get_parameter(name).dtype)  # that of what is stored, or wider
        return weight * self._keep[name] if name in self._keep else weight  # faster than `where`
