"""The tokenizer of a model folder as a GGUF file has it: tokens, their kinds, merges or scores.

llama.cpp knows two ways that are written here:

    gpt2     merges of bytes, after a cut that has a name (`pre_tokenizers.py`)
    llama    SentencePiece: the pair whose whole has the best score is joined first. A
             tokenizer.json has merges instead of scores: minus the rank of the first merge that
             makes a token is its score
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from secateur.errors import CheckpointError, reason
from secateur.gguf.library import Value
from secateur.gguf.pre_tokenizers import pre_tokenizer_name

TOKENIZER = "tokenizer.json"
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)
"""Kinds of tokens in a GGUF file."""
_NEVER = -1000.0
"""Score of a token that no merge makes, as llama.cpp's own conversion gives it."""
_SPACE = "▁"
_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_AHEAD = {"type": "Prepend", "prepend": _SPACE}
_WORDS = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
          "invert": False}  # fmt: skip
_SENTENCEPIECE: dict[bool, tuple[tuple[Any, Any], ...]] = {
    False: ((_SPACES, None), (_SPACES, _WORDS)),
    True: (({"type": "Sequence", "normalizers": [_AHEAD, _SPACES]}, None),
           (None, {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "first",
                   "split": False})),
}  # fmt: skip
"""Whether a space is put ahead of a text -> how a tokenizer.json says so: (normalizer, cut)."""


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer.

    Attributes:
        metadata: values by their keys.
        cut: tokens without a row in the embedding, which are left out.
    """

    metadata: dict[str, Value]
    cut: tuple[str, ...]


def read_vocabulary(folder: Path, rows: int) -> Vocabulary:
    """The tokenizer of a model folder.

    Args:
        folder: of the model.
        rows: of its embedding; the file has as many tokens.

    Raises:
        CheckpointError: there is none, or none that llama.cpp knows.
    """
    path = folder / TOKENIZER
    if not path.is_file():
        raise CheckpointError(
            f"no {TOKENIZER}, and a GGUF file holds its tokenizer",
            where=folder,
            hint="the tokenizer's save_pretrained into this folder",
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        written = json.loads(tokenizer.backend_tokenizer.to_str())
    except Exception as fault:  # every tokenizer has its own ways to fail
        raise CheckpointError(
            f"the tokenizer cannot be read ({reason(fault)})", where=path
        ) from fault
    model = written["model"]
    odd = [key for key in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    if model["type"] != "BPE" or odd:
        raise CheckpointError(
            f"a tokenizer of the kind {model['type']}, which is not written to GGUF",
            where=path,
            wanted="merges of bytes, or SentencePiece's",
        )
    pieces = bool(model.get("byte_fallback"))
    tokens, cut = _tokens(written, rows, pieces)
    facts: dict[str, Value] = {
        "tokenizer.ggml.tokens": [token for token, _ in tokens],
        "tokenizer.ggml.token_type": [kind for _, kind in tokens],
    }
    if pieces:
        facts |= {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default"}
        facts["tokenizer.ggml.add_space_prefix"] = _space_ahead(written, path)
        facts["tokenizer.ggml.scores"] = _scores(written, rows)
    else:
        facts["tokenizer.ggml.model"] = "gpt2"
        facts["tokenizer.ggml.pre"] = pre_tokenizer_name(written, path)
        facts["tokenizer.ggml.merges"] = [" ".join(pair) for pair in _merges(model)]
    facts |= _special(tokenizer, rows)
    return Vocabulary(facts, cut)


def _tokens(
    written: dict[str, Any], rows: int, pieces: bool
) -> tuple[list[tuple[str, int]], tuple[str, ...]]:
    """Token and kind of every row, and the tokens that have none."""
    model = written["model"]
    table = [(f"[PAD{row}]", _UNUSED) for row in range(rows)]
    cut = []
    added = {token["id"]: token for token in written["added_tokens"]}
    names = {index: token for token, index in model["vocab"].items()}
    names |= {index: token["content"] for index, token in added.items()}
    for index, name in names.items():
        kind = _NORMAL
        if pieces and name == model.get("unk_token"):
            kind = _UNKNOWN
        elif index in added:
            kind = _CONTROL if added[index]["special"] else _USER
        elif name == f"[PAD{index}]":
            kind = _UNUSED
        elif pieces and re.fullmatch(r"<0x[0-9A-F]{2}>", name):
            kind = _BYTE
        if pieces and kind == _USER:
            name = name.replace(_SPACE, " ")  # it is looked for in the text as it stands
        if index < rows:
            table[index] = (name, kind)
        else:
            cut.append(name)
    return table, tuple(cut)


def _merges(model: dict[str, Any]) -> Iterable[list[str]]:
    return (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])


def _scores(written: dict[str, Any], rows: int) -> list[float]:
    """Minus the rank of the first merge that makes a token, by its row."""
    scores = [_NEVER] * rows
    vocabulary, model = written["model"]["vocab"], written["model"]
    made: set[str] = set()
    for rank, pair in enumerate(_merges(model)):
        token = "".join(pair)
        if token not in made and vocabulary.get(token, rows) < rows:
            scores[vocabulary[token]] = -float(rank)
        made.add(token)
    return scores


def _space_ahead(written: dict[str, Any], path: Path) -> bool:
    said = written.get("normalizer"), written.get("pre_tokenizer")
    for ahead, ways in _SENTENCEPIECE.items():
        if said in ways:
            return ahead
    raise CheckpointError(
        f"the tokenizer treats spaces in a way of its own ({str(said)[:120]})",
        where=path,
        wanted="that of SentencePiece in Llama or Gemma",
    )


def _special(tokenizer: PreTrainedTokenizerBase, rows: int) -> dict[str, Value]:
    """The ids of special tokens, which of them are put around a text, and the chat template."""
    ids = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
    }
    facts: dict[str, Value] = {
        f"tokenizer.ggml.{name}_token_id": index
        for name, index in ids.items()
        if index is not None and index < rows
    }
    text = tokenizer("a")["input_ids"]
    facts["tokenizer.ggml.add_bos_token"] = text[:1] == [ids["bos"]]
    facts["tokenizer.ggml.add_eos_token"] = text[-1:] == [ids["eos"]]
    if isinstance(tokenizer.chat_template, str):
        facts["tokenizer.chat_template"] = tokenizer.chat_template
    return facts
