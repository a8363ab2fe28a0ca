"""Tokenizers in GGUF: the name of the way in which text is cut, and SentencePiece's scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import generate_merges

import secateur
from secateur.checkpoint import locate
from secateur.checkpoint.from_gguf import CACHE
from secateur.errors import CheckpointError
from secateur.gguf import read_vocabulary
from secateur.gguf.pre_tokenizers import PreTokenizer
from secateur.gguf.pre_tokenizers import pre_tokenizers as known_ways
from tiny import SENTENCES, VOCABULARY, make_model, make_tokenizer

TEXTS = (
    *SENTENCES,
    " two  spaces",
    "Numbers 2026, 3.14!\n\n\tx = y",
    "naïve, caf\u00e9 ♥",
    "don't",
)
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
WORDS = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
         "invert": False}  # fmt: skip
AHEAD = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, SPACES]}
PIECES: dict[str, tuple[str, Any, Any]] = {
    "gemma": ("gemma2", SPACES, WORDS),
    "llama": ("llama", AHEAD, None),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))


def written(folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    return told


def rewritten(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    make_tokenizer().save_pretrained(folder)
    told = {**written(folder), **changes}
    (folder / "tokenizer.json").write_text(json.dumps(told), "utf-8")
    return folder


def whole_bytes() -> PreTrainedTokenizerFast:
    """Merges of all bytes, without a token for what is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([*SENTENCES, *TEXTS], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


@pytest.mark.parametrize("way", known_ways(), ids=lambda way: way.name)
def test_every_named_way_comes_back(way: PreTokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    make_model("llama", vocab_size=512).save_pretrained(folder)
    whole_bytes().save_pretrained(folder)
    told = written(folder)
    way.set_in(told)
    (folder / "tokenizer.json").write_text(json.dumps(told), "utf-8")
    assert read_vocabulary(folder, 512).metadata["tokenizer.ggml.pre"] == way.name
    secateur.pack_gguf(folder, tmp_path / "m.gguf")
    ours = AutoTokenizer.from_pretrained(folder)
    read = AutoTokenizer.from_pretrained(locate(tmp_path / "m.gguf"))
    for text in TEXTS:
        assert read(text)["input_ids"] == ours(text)["input_ids"], text


def pieces(normalizer: Any, cut: Any) -> PreTrainedTokenizerFast:
    """A SentencePiece of the tiny sentences: joins of neighbours, in the order of their tokens."""
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    letters = sorted({letter for word in words for letter in word})
    tokens = ["<pad>", "<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [f"{a}{b}" for a in "▁t" for b in "thae"] + ["▁the", "▁and", "▁▁", "er", "in", "ing"]
    tokens += ["▁", *letters]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    merges = generate_merges(vocabulary, {token: -index for token, index in vocabulary.items()})
    special = [{"id": index, "content": tokens[index], "single_word": False, "lstrip": False,
                "rstrip": False, "normalized": False, "special": True}
               for index in range(4)]  # fmt: skip
    user = {**special[0], "id": vocabulary["▁▁"], "content": "▁▁", "special": False}
    told = {
        "version": "1.0", "truncation": None, "padding": None, "post_processor": None,
        "added_tokens": [*special, *([user] if cut else [])], "normalizer": normalizer,
        "pre_tokenizer": cut, "decoder": None,
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "fuse_unk": True,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "byte_fallback": True, "ignore_merges": False, "vocab": vocabulary,
                  "merges": [list(pair) for pair in merges]},
    }  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(told)),
        bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
    )  # fmt: skip


@pytest.mark.parametrize("name", PIECES)
def test_scores_say_what_merges_said(name: str, tmp_path: Path) -> None:
    family, normalizer, cut = PIECES[name]
    ours = pieces(normalizer, cut)
    gemma: dict[str, Any] = (
        {"query_pre_attn_scalar": 8, "tie_word_embeddings": True} if family == "gemma2" else {}
    )
    model = make_model(family, vocab_size=512, **gemma)
    model.save_pretrained(tmp_path / "model")
    ours.save_pretrained(tmp_path / "model")
    facts = read_vocabulary(tmp_path / "model", 512).metadata
    assert facts["tokenizer.ggml.model"] == "llama"
    assert facts["tokenizer.ggml.add_space_prefix"] == (name == "llama")
    kinds = facts["tokenizer.ggml.token_type"]
    assert isinstance(kinds, list)
    assert kinds[:5] == [3, 3, 3, 2, 6]
    assert kinds[-1] == 5  # a row without a token
    secateur.pack_gguf(tmp_path / "model", tmp_path / "m.gguf")
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    read = AutoTokenizer.from_pretrained(locate(tmp_path / "m.gguf"))
    for text in TEXTS[:-4]:
        wanted = ours(text, add_special_tokens=False)["input_ids"]
        assert theirs(text, add_special_tokens=False)["input_ids"] == wanted
        assert read(text, add_special_tokens=False)["input_ids"] == wanted


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another cut": ({"pre_tokenizer": {"type": "Whitespace"}}, "cuts text in a way that has no"),
    "another normaliser": ({"normalizer": {"type": "Lowercase"}}, "cuts text in a way that"),
    "no cut": ({"pre_tokenizer": None}, "cuts text in a way"),
    "another model": (
        {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0]],
                   "byte_fallback": False}, "added_tokens": []},
        "a tokenizer of the kind Unigram",
    ),
    "damaged": ({"model": {"type": "nothing"}}, "the tokenizer cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_tokenizer_that_llama_cpp_does_not_know_is_refused(name: str, tmp_path: Path) -> None:
    changes, said = REFUSED[name]
    with pytest.raises(CheckpointError, match=said) as refused:
        read_vocabulary(rewritten(tmp_path, **changes), VOCABULARY)
    assert "\n" not in str(refused.value)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        secateur.pack_gguf(tmp_path / "model", tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_tokens_without_a_row_are_cut(tmp_path: Path) -> None:
    folder = rewritten(tmp_path)
    vocabulary = read_vocabulary(folder, 50)
    tokens = vocabulary.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    assert len(tokens) == 50
    assert len(vocabulary.cut) == len(make_tokenizer()) - 50


def test_bos_is_said_to_be_added(tmp_path: Path) -> None:
    make_tokenizer("<s> $A").save_pretrained(tmp_path / "model")
    make_model("llama", dtype=torch.bfloat16).save_pretrained(tmp_path / "model")
    secateur.pack_gguf(tmp_path / "model", tmp_path / "m.gguf", type="BF16")
    read = AutoTokenizer.from_pretrained(locate(tmp_path / "m.gguf"))
    ours = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert ours("the heron")["input_ids"][0] == 1
    assert read("the heron")["input_ids"] == ours("the heron")["input_ids"]
