"""All that decides a recovery, in one frozen record that is checked as a whole.

The default rate was measured on a Llama 192 wide (docs/decisions/0008). LoRA is commonly given 1e-4
at 4096; a rate that is too high shows in the validation loss, and the best state is what is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from secateur.errors import RecipeError, closest

OUTSIDE = frozenset({"out", "overwrite", "resume", "device", "heldout", "windows",
                     "trust_remote_code"})  # fmt: skip
"""Settings that change nothing in what is trained, so that a run can go on with other ones."""


class Recovery(BaseModel):
    """One recovery of a pruned model. Make it with `Recovery.build`, which names what is wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str
    """Folder of the sparse model, or a hub name."""
    out: str
    """Folder for the result."""
    text: str
    """What to train on: text or tokens, as for calibration."""
    heldout: str | None = None
    """Text that perplexity is measured on before and after; none: nothing is."""
    windows: int | None = Field(default=None, ge=1)
    """How many windows of it at most."""
    dense: str | None = None
    """The dense model; none: the one that run.json names, where it is needed."""
    result: Literal["merged", "adapters"] = "merged"
    """One sparse model, or adapters beside the sparse model, as in the papers."""
    objective: Literal["lm", "distill"] = "lm"
    """The text itself, or what the dense model says of it."""
    block_weight: float = Field(default=0.0, ge=0)
    """distill: weight of the distance between block outputs."""
    rank: int = Field(default=16, ge=1)
    """Of the factors."""
    alpha: float | None = Field(default=None, gt=0)
    """The update is scaled by alpha / rank; none: alpha is the rank."""
    targets: str = "all"
    """Kinds of layers that are adapted, with commas between: q_proj,v_proj; or all."""
    steps: int = Field(default=500, ge=1)
    """Of the optimiser."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """At its peak; falls to zero over the steps, as a cosine."""
    warm_up: int | None = Field(default=None, ge=0)
    """Steps over which the rate rises from zero; none: a twentieth."""
    batch_size: int = Field(default=8, ge=1)
    """Sequences that are computed together."""
    accumulation: int = Field(default=1, ge=1)
    """Batches whose gradients make one step."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of the factors."""
    gradient_norm: float = Field(default=1.0, gt=0)
    """Longer gradients are shortened to this."""
    samples: int | None = Field(default=None, ge=1)
    """Training sequences, gone through again and again; none: every step has new ones."""
    sequence_length: int = Field(default=2048, ge=2)
    """Tokens per sequence and window; at most what the model allows."""
    validation: int = Field(default=32, ge=1)
    """Sequences of the text that are not trained on, to judge by."""
    evaluate_every: int | None = Field(default=None, ge=1)
    """Steps between evaluations, each with a checkpoint; none: a tenth of all."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many evaluations in a row without a new best; none: never."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of everything random."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of training; auto: float32 on a CPU, bfloat16 on an accelerator."""
    device: str = "auto"
    """cpu, cuda, cuda:1; auto: an accelerator where there is one."""
    pattern: str | None = None
    """What every matrix must have, before and after; none: what run.json says."""
    trust_remote_code: bool = False
    """Run code that lies beside the weights of the sparse and the dense model."""
    overwrite: bool = False
    """Replace the result folder, and begin anew."""
    resume: bool = False
    """Go on from the checkpoint of an interrupted run."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.block_weight and self.objective != "distill":
            raise ValueError("block_weight goes with objective distill")
        if self.resume and self.overwrite:
            raise ValueError("resume goes on, overwrite begins anew: give one of them")
        if self.chosen_warm_up >= self.steps:
            raise ValueError(f"warm_up={self.warm_up} leaves none of {self.steps} steps")
        return self

    @classmethod
    def build(cls, values: Mapping[str, Any]) -> Recovery:
        """Check everything and make the record.

        Raises:
            RecipeError: with all faults, in one line.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as fault:
            faults = " | ".join(_phrase(error) for error in fault.errors())
            raise RecipeError(faults, where="the options of recover") from fault

    @property
    def chosen_alpha(self) -> float:
        """alpha, its default filled in."""
        return float(self.rank) if self.alpha is None else self.alpha

    @property
    def chosen_warm_up(self) -> int:
        """Steps of warm-up, the default filled in."""
        return self.steps // 20 if self.warm_up is None else self.warm_up

    @property
    def chosen_interval(self) -> int:
        """Steps between evaluations, the default filled in."""
        return self.evaluate_every or max(1, self.steps // 10)

    @property
    def trained_sequences(self) -> int:
        """Different training sequences."""
        return self.samples or self.steps * self.batch_size * self.accumulation

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must have been made with to go on from it."""
        return self.model_dump(exclude=set(OUTSIDE))

    def spelled_out(self) -> dict[str, Any]:
        """Every setting with its default filled in, for the record."""
        return {
            **self.model_dump(),
            "alpha": self.chosen_alpha,
            "warm_up": self.chosen_warm_up,
            "evaluate_every": self.chosen_interval,
            "samples": self.trained_sequences,
        }


def _phrase(error: Any) -> str:
    """One of pydantic's errors as a phrase."""
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown setting {name!r}, wanted {closest(name, Recovery.model_fields)}"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{name}={error['input']!r}, wanted {message}" if name else message
