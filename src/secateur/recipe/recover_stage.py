"""The stage that trains a pruned model back: what is learnt, of what, and how.

It is the last of a recipe's stages; `secateur recover` takes the same settings on a finished
folder. The default rate of adapters was measured on a Llama 192 wide (docs/decisions/0008), that of
the weights on SmolLM2-135M (docs/log.md). LoRA is commonly given 1e-4 at 4096; a rate that is too
high shows in the validation loss, and the best state is what is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError

from secateur.machine.limits import (
    MOST_AT_ONCE,
    MOST_RANK,
    MOST_REPEATS,
    MOST_SEQUENCES,
)
from secateur.recipe.setting import RESULT, Setting
from secateur.recipe.stage import Stage, register
from secateur.recipe.wording import as_given, name_of

ALL_KINDS = "all"
"""Value of `targets` that stands for every kind of layer."""
RATES = {"adapters": 3e-3, "weights": 6e-4, "norms": 1e-3}
"""Peak of the learning rate by what is trained."""


@register
class RecoverStage(Stage):
    """Settings of a training that keeps every zero."""

    kind: ClassVar[str] = "recover"
    finishes: ClassVar[bool] = True

    train: Annotated[Literal["adapters", "weights", "norms"], Setting(RESULT)] = "adapters"
    """What is trained. adapters: LoRA that leaves the zeros alone; weights: every weight of the
    blocks that is not zero; norms: their norms and biases alone."""
    objective: Annotated[Literal["lm", "distill"], Setting(RESULT)] = "lm"
    """What is learnt. lm: the text itself; distill: what the dense model says of it."""
    block_weight: Annotated[float, Setting(RESULT)] = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Weigh the distance between block outputs by this in the loss of objective distill."""
    rank: Annotated[int, Setting(RESULT)] = Field(default=16, ge=1, le=MOST_RANK)
    """Give the adapters' factors this rank."""
    alpha: Annotated[float | None, Setting(RESULT, unset="the rank")] = Field(
        default=None, gt=0, allow_inf_nan=False
    )
    """The adapters' update is scaled by alpha / rank."""
    targets: Annotated[str, Setting(RESULT)] = ALL_KINDS
    """Train these kinds of layers, with commas between them, such as q_proj,v_proj; or all. Norms
    and biases are trained beside weights, whatever the targets."""
    steps: Annotated[int, Setting(RESULT)] = Field(default=500, ge=1, le=MOST_REPEATS)
    """Train for this many optimiser steps."""
    learning_rate: Annotated[
        float | None, Setting(RESULT, unset="by what is trained: 3e-3, 6e-4 or 1e-3")
    ] = Field(default=None, gt=0, allow_inf_nan=False)
    """The learning rate reaches this peak, then falls to zero over the steps, as a cosine."""
    warm_up: Annotated[int | None, Setting(RESULT, unset="a twentieth of the steps")] = Field(
        default=None, ge=0, le=MOST_REPEATS
    )
    """The learning rate rises from zero over this many steps."""
    batch_size: Annotated[int, Setting(RESULT)] = Field(default=8, ge=1, le=MOST_AT_ONCE)
    """Compute this many sequences together."""
    accumulation: Annotated[int, Setting(RESULT)] = Field(default=1, ge=1, le=MOST_AT_ONCE)
    """Add up the gradients of this many batches for one step."""
    weight_decay: Annotated[float, Setting(RESULT)] = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Let what is trained decay towards zero by this weight (AdamW)."""
    gradient_norm: Annotated[float, Setting(RESULT)] = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Shorten gradients whose l2 norm is larger than this to it."""
    samples: Annotated[int | None, Setting(RESULT, unset="every step has new ones")] = Field(
        default=None, ge=1, le=MOST_SEQUENCES
    )
    """Train on this many sequences, again and again."""
    validation: Annotated[int, Setting(RESULT)] = Field(default=32, ge=1, le=MOST_SEQUENCES)
    """Judge by this many sequences, which are not trained on."""
    evaluate_every: Annotated[int | None, Setting(RESULT, unset="a tenth of the steps")] = Field(
        default=None, ge=1, le=MOST_REPEATS
    )
    """Evaluate, and write a checkpoint, after every so many steps."""
    patience: Annotated[int | None, Setting(RESULT, unset="never")] = Field(
        default=None, ge=1, le=MOST_REPEATS
    )
    """Stop after this many evaluations in a row without a new best."""

    @classmethod
    def faults(cls, values: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
        """What does not fit together, and what the run lacks."""
        faults = []
        if run.get("images") is not None:
            faults.append(f"{cls.kind} is for language models, and there are images")
        elif run.get("calibration") is None:
            faults.append(f"{cls.kind} trains on the calibration: give {name_of('calibration')}")
        try:
            return [*faults, *cls.model_validate(dict(values)).training_faults()]
        except ValidationError:  # which is told of each setting by itself
            return faults

    def training_faults(self) -> list[str]:
        """What is wrong with settings that are each right by themselves, a phrase each."""
        faults = []
        if self.train != "adapters":
            rank = type(self).model_fields["rank"].default
            if self.rank != rank or self.chosen_alpha != self.rank:
                faults.append(f"rank and alpha go with {name_of('train')} adapters")
        if self.train == "norms" and self.targets != ALL_KINDS:
            faults.append(f"{name_of('targets')} are of matrices, and {name_of('train')} is norms")
        if self.block_weight and self.objective != "distill":
            faults.append(f"{name_of('block_weight')} goes with objective distill")
        if self.chosen_warm_up >= self.steps:
            warm_up = as_given(("warm_up",), self.warm_up)
            faults.append(f"{warm_up} leaves none of {self.steps} steps")
        return faults

    @property
    def chosen_alpha(self) -> float:
        """alpha, its default filled in."""
        return float(self.rank) if self.alpha is None else self.alpha

    @property
    def chosen_learning_rate(self) -> float:
        """The peak of the learning rate, the default filled in."""
        return RATES[self.train] if self.learning_rate is None else self.learning_rate

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

    def stage_options(self) -> dict[str, Any]:
        """Every setting of the stage with its default written down, but not its kind."""
        return {
            **self.model_dump(include=set(RecoverStage.model_fields)),
            "alpha": self.chosen_alpha,
            "learning_rate": self.chosen_learning_rate,
            "warm_up": self.chosen_warm_up,
            "evaluate_every": self.chosen_interval,
            "samples": self.trained_sequences,
        }
