"""How the regional optimiser works: its settings, and those that come ready made.

`PAPER`: RMSprop at 3e-7, the mask chosen anew after every round, as
published. The others, by effort: Adam with a rate of its own for every matrix, which decays to
nothing while the first mask is held,

    rate = step * min(1, error / 0.25) * rms(kept weights) / sqrt(in)

A step of Adam moves all weights of a row by about the rate, in directions that agree: it changes
the row's output by `rate * in * |x|` where the row gives `rms(W) * sqrt(in) * |x|`. So `step` is
the relative change of a layer's output per optimiser step, the same number at every width, where
3e-7 was found for layers 4096 wide and does nothing at 192 (docs/decisions/0003). `error` is that
of the block's output at the start: one that errs by 5 % is harmed by steps that serve one that
errs by 25 % (docs/decisions/0025).

Source: Yang et al., arXiv 2503.04992, section 3 and appendix; the rate is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from secateur.machine.exact import ExactModel
from secateur.machine.limits import MOST_AT_ONCE, MOST_REPEATS, MOST_SEQUENCES


class Regional(ExactModel):
    """Settings of the regional optimiser."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    optimizer: Literal["adam", "rmsprop"] = "adam"
    """Adam (betas 0.9 and 0.99) or RMSprop (smoothing 0.99)."""
    learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """The same rate for every weight; none: derived per matrix from `step`."""
    step: float = Field(default=0.35, gt=0, allow_inf_nan=False)
    """Relative change of a layer's output per optimiser step, in blocks that err by a quarter or
    more; sets the rate where none is given."""
    schedule: Literal["linear", "constant"] = "linear"
    """The rate decays linearly to zero over all rounds, or stays."""
    target: Literal["block", "model"] = "model"
    """Aim at what the dense block makes of the pruned blocks' output, or of the dense model's."""
    weigh: Literal["plain", "loss"] = "plain"
    """Errors count the same in every direction of the output, or as the model's loss feels them."""
    hold_mask: bool = True
    """Keep the first mask; otherwise choose it anew after every round."""
    rounds: int = Field(default=5, ge=1, le=MOST_REPEATS)
    """Rounds of stepping and judging."""
    samples: int = Field(default=128, ge=1, le=MOST_SEQUENCES)
    """Sequences drawn in each round, without repetition within it."""
    batch_size: int = Field(default=2, ge=1, le=MOST_AT_ONCE)
    """Sequences per optimiser step."""
    judges: int = Field(default=8, ge=0, le=MOST_SEQUENCES)
    """Sequences that no step sees, and that choose the round whose weights stay (at most a quarter
    of all, or all where there are fewer than four); 0: the last round's stay, and steps are whole
    whatever the block's error."""

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        if self.learning_rate is not None and "step" in self.model_fields_set:
            raise ValueError("step derives the rate that learning_rate gives: leave one out")
        return self


PAPER = Regional(
    optimizer="rmsprop", learning_rate=3e-7, schedule="constant", target="block",
    hold_mask=False, samples=32, batch_size=1, judges=0,
)  # fmt: skip

EFFORTS: Mapping[str, Regional] = {
    "fast": Regional(samples=64),
    "balanced": Regional(),
    "best": Regional(rounds=4, samples=512, weigh="loss"),
}


def ready_made(preset: str, effort: str, changes: Mapping[str, Any]) -> Regional:
    """The settings of a preset, `auto` by effort, with single ones changed.

    Raises:
        ValidationError: a change fits no setting.
    """
    ready = PAPER if preset == "paper" else EFFORTS[effort]
    return Regional.model_validate({**ready.model_dump(exclude_unset=True), **changes})
