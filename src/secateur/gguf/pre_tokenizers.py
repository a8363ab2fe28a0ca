"""How llama.cpp's named pre-tokenisers cut text, as parts of a tokenizer.json: a table of facts.

A GGUF file names the way in which text is cut before the merges are made, and llama.cpp has the
code of every name it knows. A tokenizer.json says it in full; so the name is looked up by what is
said, and what is said by the name.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

from secateur.errors import CheckpointError


@dataclass(frozen=True)
class PreTokenizer:
    """One named way of cutting.

    Attributes:
        name: in the file, under tokenizer.ggml.pre.
        parts: the pre-tokenisers of a tokenizer.json, one after the other.
        normalizer: what is done to text before; llama.cpp itself does nothing.
        ignore_merges: whether a whole word of the vocabulary is taken without merges.
    """

    name: str
    parts: tuple[dict[str, Any], ...]
    normalizer: dict[str, Any] | None = None
    ignore_merges: bool = False

    def set_in(self, written: dict[str, Any]) -> None:
        """Have a tokenizer.json cut in this way."""
        parts = [{**part, "trim_offsets": True} if "use_regex" in part else part
                 for part in self.parts]  # fmt: skip
        sequence = {"type": "Sequence", "pretokenizers": parts}
        written["pre_tokenizer"] = parts[0] if len(parts) == 1 else sequence
        written["normalizer"] = self.normalizer
        written["model"]["ignore_merges"] = self.ignore_merges


def _bytes(*, cuts: bool) -> dict[str, Any]:
    """Bytes are spelt as letters; GPT-2's expression cuts before, or nothing does."""
    return {"type": "ByteLevel", "add_prefix_space": False, "use_regex": cuts}


def _split(name: str) -> dict[str, Any]:
    """The expression of a name cuts; every match is a word."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    pattern = {"Regex": GGUF_PRE_TOKENIZER_SPLITS[name]}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


@functools.cache
def pre_tokenizers() -> tuple[PreTokenizer, ...]:
    """Every way that is known."""
    digits = {"type": "Digits", "individual_digits": True}
    llama, qwen = (_split("llama-bpe"), _bytes(cuts=False)), (_split("qwen2"), _bytes(cuts=False))
    return (
        PreTokenizer("gpt-2", (_bytes(cuts=True),)),
        PreTokenizer("smollm", (digits, _bytes(cuts=True))),
        PreTokenizer("llama-bpe", llama, ignore_merges=True),
        PreTokenizer("qwen2", qwen, {"type": "NFC"}),
    )


def _names() -> str:
    return ", ".join(one.name for one in pre_tokenizers())


def pre_tokenizer_name(written: dict[str, Any], where: object) -> str:
    """The name of the way in which a tokenizer.json cuts.

    Raises:
        CheckpointError: llama.cpp has no such way that is known here.
    """
    said = written.get("pre_tokenizer") or {}
    parts = said["pretokenizers"] if said.get("type") == "Sequence" else [said]
    parts = [{key: part[key] for key in part if key != "trim_offsets"} for part in parts]
    normalizer = written.get("normalizer")
    for one in pre_tokenizers():
        alike = parts == list(one.parts) and normalizer in (None, one.normalizer)
        if alike and one.ignore_merges == bool(written["model"].get("ignore_merges")):
            return one.name
    told = json.dumps({"normalizer": normalizer, "pre_tokenizer": parts})
    raise CheckpointError(
        f"the tokenizer cuts text in a way that has no name in GGUF ({told[:120]})",
        where=where,
        wanted=f"the way of one of {_names()}, or of SentencePiece",
    )


def named(name: object, where: object) -> PreTokenizer:
    """The way of cutting that a file names.

    Raises:
        CheckpointError: it is not known.
    """
    for one in pre_tokenizers():
        if one.name == name:
            return one
    raise CheckpointError(
        f"the pre-tokeniser {str(name)[:40]!r}, which is not known",
        where=where,
        wanted=f"one of {_names()}",
        hint="the checkpoint in safetensors that it was made from",
    )
