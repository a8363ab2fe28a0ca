"""All that decides a recovery, in one frozen record that is checked as a whole.

The default rate was measured on a Llama 192 wide (docs/decisions/0008). LoRA is commonly given 1e-4
at 4096; a rate that is too high shows in the validation loss, and the best state is what is kept.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from secateur.machine.limits import (
    MOST_AT_ONCE,
    MOST_LENGTH,
    MOST_RANK,
    MOST_REPEATS,
    MOST_SEQUENCES,
    MOST_TOKENS,
)
from secateur.recipe import Bos
from secateur.recipe.faults import faults_of_parts
from secateur.recipe.setting import (
    CONTENT,
    PLACE,
    RESULT,
    RUN,
    SEVERAL,
    Setting,
    Settings,
    Shares,
)
from secateur.recipe.wording import as_given, name_of

RATES = {"adapters": 3e-3, "weights": 6e-4, "norms": 1e-3}
"""Peak of the learning rate by what is trained."""


class Recovery(Settings):
    """One recovery of a pruned model. Make it with `Recovery.build`, which names what is wrong."""

    command = "recover"

    model: Annotated[str, Setting(CONTENT, location=True)]
    """The sparse model to train: its folder, or its name on the hub."""
    out: Annotated[str, Setting(PLACE, location=True)]
    """Write the recovered model to this folder."""
    text: Annotated[str | list[str], Setting(CONTENT, location=True), SEVERAL]
    """Train on this text or these tokens: whatever `prune --calibration` takes; self is written by
    the dense model. May be repeated: then every text gives a part of the sequences."""
    shares: Annotated[Shares | None, Setting(CONTENT, unset="equal", metavar="N,...")] = None
    """Let several texts give sequences in this ratio, such as 2,1,1."""
    revision: Annotated[str | None, Setting(CONTENT, unset="its main branch")] = None
    """Read this branch, tag or commit of a model on the hub."""
    column: Annotated[
        str | None, Setting(CONTENT, unset="text, or messages by the model's chat template")
    ] = None
    """Read this column of the text's files of records."""
    heldout: Annotated[str | None, Setting(PLACE, location=True, unset="nothing is measured")] = (
        None
    )
    """Measure perplexity on this held-out text: dense, pruned, before and after the merge."""
    windows: Annotated[int | None, Setting(PLACE, unset="all")] = Field(
        default=None, ge=1, le=MOST_SEQUENCES
    )
    """Measure on at most this many windows of the held-out text."""
    dense: Annotated[
        str | None, Setting(CONTENT, location=True, unset="the model that run.json names")
    ] = None
    """The dense model to compare with: its folder, or its name on the hub, also as
    owner/name@revision."""
    train: Annotated[Literal["adapters", "weights", "norms"], Setting(RESULT)] = "adapters"
    """What is trained. adapters: LoRA that leaves the zeros alone; weights: every weight of the
    blocks that is not zero; norms: their norms and biases alone."""
    result: Annotated[Literal["merged", "adapters"], Setting(RESULT)] = "merged"
    """What is written. merged: one sparse model, every zero kept; adapters: plain LoRA beside the
    sparse model."""
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
    targets: Annotated[str, Setting(RESULT)] = "all"
    """Train these kinds of layers, with commas between them, such as q_proj,v_proj; or all."""
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
    sequence_length: Annotated[int, Setting(RESULT)] = Field(default=2048, ge=2, le=MOST_LENGTH)
    """Make every sequence and window this many tokens long; at most what the model allows."""
    bos: Annotated[Bos, Setting(CONTENT)] = "window"
    """Begin every window of text with what the tokenizer puts before a text, such as its
    beginning-of-sequence token, as models are trained (window); put that before the whole text
    only, as the papers' scripts do (stream); or leave it out (none). Given tokens stay as they
    are."""
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
    seed: Annotated[int, Setting(RESULT)] = Field(default=0, ge=0, lt=2**32)
    """Draw every random choice from this seed."""
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], Setting(RESULT)] = "auto"
    """Train in this precision; auto takes float32 on a CPU, bfloat16 on an accelerator."""
    device: Annotated[str, Setting(PLACE)] = "auto"
    """Compute on this device: cpu, cuda, cuda:1; auto takes an accelerator if there is one."""
    pattern: Annotated[str | None, Setting(RESULT, unset="the one in run.json")] = None
    """Demand this pattern of every matrix, before and after."""
    trust_remote_code: Annotated[bool, Setting(RUN)] = False
    """Run the code that comes with the sparse and the dense model, with all your rights."""
    overwrite: Annotated[bool, Setting(RUN)] = False
    """Replace the result folder, and begin anew."""
    resume: Annotated[bool, Setting(RUN)] = False
    """Go on from the checkpoint of an interrupted run."""

    def contradictions(self) -> list[str]:
        """What is wrong with settings that are each right by themselves, a phrase each."""
        faults = faults_of_parts(self.texts, self.shares, self.trained_sequences, "text")
        if self.block_weight and self.objective != "distill":
            faults.append(f"{name_of('block_weight')} goes with objective distill")
        if self.result == "adapters" and self.train != "adapters":
            faults.append(f"{name_of('result')} adapters goes with {name_of('train')} adapters")
        if self.resume and self.overwrite:
            resume, overwrite = name_of("resume"), name_of("overwrite")
            faults.append(f"{resume} goes on, {overwrite} begins anew: give one of them")
        if self.chosen_warm_up >= self.steps:
            warm_up = as_given(("warm_up",), self.warm_up)
            faults.append(f"{warm_up} leaves none of {self.steps} steps")
        if (tokens := self.trained_sequences * self.sequence_length) > MOST_TOKENS:
            faults.append(
                f"{tokens:.3g} tokens to train on, wanted at most {MOST_TOKENS:.3g}: give fewer"
                f" {name_of('steps')}, or {name_of('samples')} that are read again and again"
            )
        if self.windows is not None and self.heldout is None:
            windows = as_given(("windows",), self.windows)
            faults.append(f"{windows} are those of {name_of('heldout')}: give both")
        return faults

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts to train on."""
        return (self.text,) if isinstance(self.text, str) else tuple(self.text)

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

    def spelled_out(self) -> dict[str, Any]:
        """Every setting with its default filled in, for the record."""
        return {
            **self.model_dump(),
            "alpha": self.chosen_alpha,
            "learning_rate": self.chosen_learning_rate,
            "warm_up": self.chosen_warm_up,
            "evaluate_every": self.chosen_interval,
            "samples": self.trained_sequences,
        }
