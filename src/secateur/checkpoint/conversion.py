"""Refuses weights that are no plain numbers, and gives the command that makes plain ones of them.

Quantised weights are integers or 8-bit floats with scales beside them: a score of them means
nothing. Some releases exist in no other form (DeepSeek-V3 in fp8, gpt-oss in mxfp4), so the hint is
what transformers has for them, not the checkpoint that they were made from.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from secateur.checkpoint.compressed import described as described_compressed
from secateur.checkpoint.packed_folder import QUANTISED, says_packed
from secateur.errors import CheckpointError

_DEQUANTISED_BY = {
    "fp8": "FineGrainedFP8Config",
    "mxfp4": "Mxfp4Config",
    "compressed-tensors": "CompressedTensorsConfig",
}
"""Forms of which transformers makes plain weights while it loads, by a setting `dequantize`."""
_DENSE = (None, "dense")
"""What compressed-tensors calls weights that lie in the files as they are."""


def conversion(model: object, form: str | None = None) -> str:
    """A command that writes a model again, as plain safetensors in a folder of its own.

    Args:
        model: its folder or its name on the hub.
        form: of its quantised weights, a key of `_DEQUANTISED_BY`; None if they are plain.
    """
    new = shlex.quote(f"{model}-safetensors" if form is None else f"{model}-plain")
    code = (
        "import sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T;"
        " [x.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2]) for x in (M, T)]"
    )
    if form is not None:
        code = (
            f"import sys, transformers as t; q = t.{_DEQUANTISED_BY[form]}(dequantize=True);"
            " t.AutoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2]);"
            " t.AutoModelForCausalLM.from_pretrained(sys.argv[1], quantization_config=q)"
            ".save_pretrained(sys.argv[2], save_original_format=False)"
        )
    return f"python -c {shlex.quote(code)} {shlex.quote(str(model))} {new}"


def refuse_quantised(config: Mapping[str, Any], where: object) -> None:
    """Raise `CheckpointError` if a config.json describes quantised weights.

    What llm-compressor writes of a model that it only pruned is described as compressed-tensors,
    and has none. Some of its formats are read: see `compressed.py`.

    Args:
        config: the content of config.json.
        where: the folder or the repository it is of.
    """
    text = config.get("text_config")
    described = config.get(QUANTISED)
    if described is None and isinstance(text, dict):
        described = text.get(QUANTISED)
    read_here = says_packed(config) or described_compressed(config) is not None
    if described is None or read_here or _plain(described):
        return
    if not described:
        raise CheckpointError(
            f"{QUANTISED} is empty, and transformers loads no model with such a one",
            where=f"{where}/config.json",
            hint="taking it out, if the weights are plain",
        )
    form = described.get("quant_method") if isinstance(described, dict) else None
    known = isinstance(form, str) and form in _DEQUANTISED_BY
    raise CheckpointError(
        "the weights are quantised" + (f" ({form})" if isinstance(form, str) else ""),
        where=f"{where}/config.json",
        wanted="float32, bfloat16 or float16 weights",
        hint=f"a plain copy: {conversion(where, form)}"
        if known
        else "the checkpoint that they were quantised from",
    )


def _plain(described: Any) -> bool:
    """Whether compressed-tensors compressed nothing."""
    if not isinstance(described, dict) or described.get("quant_method") != "compressed-tensors":
        return False
    sparsity = described.get("sparsity_config") or {}
    return (
        not described.get("config_groups")
        and not described.get("kv_cache_scheme")
        and described.get("format") in _DENSE
        and isinstance(sparsity, dict)
        and sparsity.get("format") in _DENSE
    )
