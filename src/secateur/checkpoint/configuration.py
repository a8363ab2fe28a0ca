"""Reads a model's config.json as if a stranger had made it.

What its numbers ask for is compared with bounds, and with the tensors that the files hold, before
transformers builds anything from them; code that computes (a kernel of the hub, say) is not the
file's to choose.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    GenerationConfig,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
)

from secateur.checkpoint.in_memory import PLAIN_DTYPES
from secateur.checkpoint.packed_folder import NAMED, QUANTISED
from secateur.checkpoint.read import Checkpoint
from secateur.checkpoint.weight_files import CONFIG
from secateur.errors import CheckpointError, reason
from secateur.machine.limits import (
    LEAST_LAYERS,
    MOST_CONFIG_BYTES,
    MOST_CONFIG_DEPTH,
    MOST_PARTS,
    at_most,
)

GENERATION = "generation_config.json"
_LAYERS = re.compile(r"(layers?|depths?)$", re.IGNORECASE)
"""Keys whose numbers count layers: num_hidden_layers, n_layer, vision_config's depth."""
_PARTS = re.compile(r"label|expert|head|group|stage|codebook", re.IGNORECASE)
"""Keys whose numbers count other things that are made one by one."""
_CHOSEN_CODE = {
    "attn_implementation": ("eager", "sdpa", "flex_attention"),
    "experts_implementation": ("eager", "batched_mm", "grouped_mm"),
}
"""What a file may choose of torch's own code. Any other name can be a kernel of the hub, or a
package that is not there: transformers' own choice takes its place."""


def read_config(checkpoint: Checkpoint) -> PreTrainedConfig:
    """The model's configuration; code beside the weights is run only where it is trusted.

    Raises:
        CheckpointError: it cannot be read, or asks for more than its weights can fill, or for
            remote code.
    """
    asked, path = checkpoint.config, checkpoint.folder / CONFIG
    _check_sizes(asked, checkpoint)
    architectures = asked.get("architectures")
    listed = architectures if isinstance(architectures, list) else [None]
    if architectures is not None and not all(isinstance(name, str) for name in listed):
        raise CheckpointError(
            f"architectures are {str(architectures)[:80]}", where=path, wanted="a list of names"
        )
    try:
        config = checkpoint.make_config()
        text = config.get_text_config(decoder=True)
        if not isinstance(text, PreTrainedConfig):
            raise TypeError(f"the part of the decoder is a {type(text).__name__}")
    except Exception as fault:  # every family checks in its own way, with its own exceptions
        family = str(asked.get("model_type"))
        known = family in CONFIG_MAPPING and "auto_map" not in asked
        raise CheckpointError(
            f"the configuration is not one that transformers knows ({reason(fault)})",
            where=path,
            wanted=f"what a {family} of this transformers may have" if known else None,
            hint=None
            if known
            else "a newer transformers; or --trust-remote-code, if the model comes with code of its"
            " own and you trust who wrote it",
        ) from fault
    for name in _foreign_code(asked):
        setattr(config, f"_{name}", None)  # of the parts of a model too
    for part in {id(part): part for part in (config, text)}.values():
        for key in (NAMED, QUANTISED):
            if hasattr(part, key):
                delattr(part, key)  # they tell transformers how to read what is read here
        if part.dtype is not None and part.dtype not in PLAIN_DTYPES:
            raise CheckpointError(
                f"the dtype of the model is {str(part.dtype).removeprefix('torch.')[:80]}",
                where=path,
                wanted=", ".join(str(dtype).removeprefix("torch.") for dtype in PLAIN_DTYPES),
            )
    return config


def check_generation(checkpoint: Checkpoint) -> None:
    """Refuse how a model is to generate where transformers cannot load the model because of it.

    A file that it passes over (it is no JSON, say) is passed over here.

    Raises:
        CheckpointError: such a generation_config.json.
    """
    path = checkpoint.folder / GENERATION
    if not path.is_file():
        return
    at_most(MOST_CONFIG_BYTES, path.stat().st_size, "bytes of JSON", where=path)
    try:
        GenerationConfig.from_pretrained(checkpoint.folder)
    except OSError:
        return
    except Exception as fault:  # every setting is checked in its own way
        raise CheckpointError(
            f"transformers loads no model beside this file ({reason(fault)})",
            where=path,
            hint="mending it, or taking it out",
        ) from fault


def notices_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What is read of a model and what is not, and what it asks for in vain: a line each."""
    asked = sorted(set(_foreign_code(checkpoint.config)))
    aside = (f"{name} in config.json is set aside: torch's own code computes" for name in asked)
    return (*checkpoint.notices, *aside)


def auto_class(config: PreTrainedConfig) -> Any:
    """The class that makes a model from a configuration; None if it has no blocks to prune."""
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    if type(config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        return AutoModelForImageClassification
    return None


def _check_sizes(asked: dict[str, Any], checkpoint: Checkpoint) -> None:
    """Raise if transformers would build more from a configuration than its weights can fill.

    Only what is made one by one is looked at here, such as layers and labels: widths cost nothing
    until they are compared with the shapes in the files (`skeleton.py`).
    """
    layers, path = max(len(checkpoint.files), LEAST_LAYERS), checkpoint.folder / CONFIG
    for depth, key, number in _numbers(asked):
        at_most(MOST_CONFIG_DEPTH, depth, "levels of JSON", where=path)
        if _LAYERS.search(key) and number > layers:
            raise CheckpointError(
                f"config.json says {number:.12g} in {key}, the files hold {len(checkpoint.files)}"
                " tensors",
                where=checkpoint.folder,
                wanted="a configuration and weights of the same model",
            )
        if _PARTS.search(key):
            at_most(MOST_PARTS, number, f"of {key}", where=path)


def _numbers(asked: dict[str, Any]) -> Iterator[tuple[int, str, float]]:
    """(depth, key, number) of all that a configuration says; of what is no number 0."""
    pending: list[tuple[int, str, Any]] = [(0, "", asked)]
    while pending:
        depth, key, value = pending.pop()
        number = isinstance(value, int | float) and not isinstance(value, bool)
        yield depth, key, value if number else 0
        if depth > MOST_CONFIG_DEPTH:
            continue
        if isinstance(value, dict):
            pending += [(depth + 1, str(inner), one) for inner, one in value.items()]
        elif isinstance(value, list):
            pending += [(depth + 1, key, one) for one in value]


def _foreign_code(asked: dict[str, Any]) -> Iterator[str]:
    """Which of `_CHOSEN_CODE` a configuration, or one within it, asks for by a name not there."""
    for key, value in asked.items():
        if isinstance(value, dict):
            yield from _foreign_code(value)
        name = key.removeprefix("_").removesuffix("_internal")
        if name in _CHOSEN_CODE and value is not None and value not in _CHOSEN_CODE[name]:
            yield name
