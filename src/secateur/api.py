"""The library's front door: `secateur.prune` for a folder, a hub name, or a live model; `load`."""

from __future__ import annotations

from os import PathLike
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from secateur.checkpoint import load_whole, locate
from secateur.errors import RecipeError
from secateur.machine.device import choose_device
from secateur.progress import Progress
from secateur.pruning import pipeline
from secateur.recipe import Recipe
from secateur.record import RunRecord


def prune(
    model: str | PathLike[str] | PreTrainedModel,
    *,
    method: str = "wanda++",
    pattern: str | float = "2:4",
    calibration: str | PathLike[str] | Tensor | None = None,
    out: str | PathLike[str] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> RunRecord:
    """Prune a checkpoint into a new folder, or a model in memory in place.

    Args:
        model: folder or hub name of a checkpoint; or a transformers model, which is changed in
            place and keeps its device and dtype.
        method: see `secateur methods`.
        pattern: "50%", 0.5, "2:4", ...
        calibration: as on the command line; for a model in memory also int64 token ids
            [sequences, tokens], or texts together with `tokenizer`; for a classifier its
            pixel_values, float [images, channels, height, width].
        out: folder for the result; with a model in memory, leave it out.
        tokenizer: for texts with a model in memory.
        progress: told what happens; silent by default.
        options: every other key of a recipe: samples, sequence_length, seed, parameters, preset,
            regional, batch_size, dtype, device, overwrite.

    Returns:
        the record of the run; `run.json` in the result folder holds the same.

    Raises:
        SecateurError: bad input, in one line; no result folder is left.
    """
    given = isinstance(calibration, Tensor)
    pixels = given and getattr(model, "main_input_name", None) == "pixel_values"
    values = {
        "method": method,
        "pattern": str(pattern),
        "calibration": "tokens in memory" if given else _text(calibration),
        "out": _text(out),
        **options,
    }
    if pixels:
        values |= {"calibration": None, "images": "images in memory"}
    if not isinstance(model, PreTrainedModel):
        if given:
            raise RecipeError(
                "token ids in memory go with a model in memory",
                hint="saving them as input_ids in a .safetensors file",
            )
        return pipeline.prune(Recipe.build({"model": str(model), **values}), progress)
    if out is not None:
        raise RecipeError(
            "a model in memory is pruned in place", hint="save_pretrained instead of out"
        )
    recipe = Recipe.build({"model": model.name_or_path or type(model).__name__, **values})
    tokens = calibration if isinstance(calibration, Tensor) else None
    return pipeline.prune_in_place(model, recipe, tokenizer, tokens, progress)


def load(
    model: str | PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A model in memory from its folder, packed or plain.

    What is packed is unpacked tensor by tensor, and the dense model is never written. While that
    lasts, the packed files are mapped: their pages count as resident, and the system may take them
    back. `AutoModelForCausalLM.from_pretrained` does the same.

    Args:
        model: folder or hub name.
        dtype: of the weights; None keeps that of the checkpoint.
        device: "cpu", "cuda", ...; "auto" takes what there is.
        trust_remote_code: run the code that lies beside the weights, if the model needs it.

    Raises:
        SecateurError: there is no such model, or its files are damaged.
    """
    folder = locate(str(model), trust_remote_code=trust_remote_code)
    where = choose_device(device)
    return load_whole(folder, dtype, trust_remote_code=trust_remote_code).to(where)


def _text(value: str | PathLike[str] | Tensor | None) -> str | None:
    return None if value is None else str(value)
