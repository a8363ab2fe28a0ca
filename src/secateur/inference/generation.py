"""How fast a model reads prompts and writes tokens: through transformers' own forward pass.

prefill   one forward pass of [batch, prompt] tokens into an empty cache
decode    one forward pass of [batch, 1] tokens after another; time of all of them / their number

The cache has a fixed size, so that every pass has the shapes of the last; a family that has no such
cache keeps the one it makes itself. Tokens are drawn at random: what they are costs nothing.
"""

from __future__ import annotations

import inspect
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch
from transformers import StaticCache

from secateur.errors import ModelError
from secateur.inference.timings import Record
from secateur.machine.accelerator import wait_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPT_SEED = 0
CACHES = ("past_key_values", "cache_params")
"""What families call the cache, which `forward` takes and returns: the second are state spaces."""


class Latency(Record):
    """Wall seconds of one pass, over repeats."""

    seconds: float
    """Median."""
    lowest: float
    """Fastest repeat."""
    highest: float
    """Slowest repeat."""

    @classmethod
    def of(cls, taken: list[float]) -> Latency:
        """The latency of passes that took so many seconds each."""
        return cls(seconds=statistics.median(taken), lowest=min(taken), highest=max(taken))


@torch.no_grad()
def measure(
    model: PreTrainedModel, batch: int, prompt: int, steps: int, repeats: int
) -> tuple[Latency, Latency]:
    """Latency of the prompt, and of a token after it.

    Args:
        model: in evaluation mode, where it is to compute.
        batch: sequences at once.
        prompt: tokens of each prompt.
        steps: tokens decoded after it.
        repeats: how many times; one more before them warms up.

    Raises:
        ModelError: the family keeps no cache, so that a token costs as much as all before it.
    """
    taken = inspect.signature(type(model).forward).parameters
    held = next((name for name in CACHES if name in taken), None)
    if held is None:
        raise ModelError(
            "the model keeps no cache from token to token",
            where=type(model).__name__,
            wanted=f"a forward pass that takes {' or '.join(CACHES)}",
        )
    generator = torch.Generator().manual_seed(PROMPT_SEED)
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    tokens = torch.randint(vocabulary, (batch, prompt + steps), generator=generator)
    tokens = tokens.to(model.device)  # [batch, prompt + steps]
    options: dict[str, Any] = {"use_cache": True}
    if "logits_to_keep" in taken:
        options["logits_to_keep"] = 1  # as generation does: the head sees the last token alone
    prefills, decodes = [], []
    for _ in range(repeats + 1):
        cache = _cache(model, prompt + steps)
        began = _now(model.device)
        cache = getattr(model(tokens[:, :prompt], **{held: cache}, **options), held)
        read = _now(model.device)
        for place in range(prompt, prompt + steps):
            token = tokens[:, place : place + 1]
            cache = getattr(model(token, **{held: cache}, **options), held)
        decodes.append((_now(model.device) - read) / steps)
        prefills.append(read - began)
    return Latency.of(prefills[1:]), Latency.of(decodes[1:])


def _cache(model: PreTrainedModel, length: int) -> StaticCache | None:
    """A cache of a fixed size; None where the family makes its own."""
    if not getattr(model, "_can_compile_fullgraph", False):
        return None
    return StaticCache(config=model.config, max_cache_len=length)


def _now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    wait_for(device)
    return time.perf_counter()
