"""What windows of text begin with, by every kind of tokenizer, and where nothing is changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    ByT5Tokenizer,
    CanineTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    Qwen2Tokenizer,
)

from secateur.data import Draw, Protocol, TokenBatch, load_calibration, load_heldout
from secateur.data.windows import Beginning, chat_renderer
from secateur.errors import DataError
from secateur.recipe import Bos
from tiny import SENTENCES, make_tokenizer, make_tokens

LENGTH = 16
PIECES = {"<unk>": 0, "<s>": 1, "</s>": 2, "\u2581": 3, "a": 4, "b": 5, "\u2581a": 6}
LETTERS = {"<|endoftext|>": 0, "a": 1, "b": 2}

KINDS: dict[str, tuple[PreTrainedTokenizerBase, tuple[int, ...]]] = {
    "adds nothing": (make_tokenizer(), ()),
    "one token": (make_tokenizer("<s> $A"), (1,)),
    "two tokens": (make_tokenizer("<unk> <s> $A"), (3, 1)),
    "a suffix": (make_tokenizer("$A </s>"), ()),
    "both": (make_tokenizer("<s> $A </s>"), (1,)),
    "Llama": (LlamaTokenizer(vocab=PIECES, merges=[("\u2581", "a")], add_bos_token=True), (1,)),
    "Qwen": (Qwen2Tokenizer(vocab=LETTERS, merges=[]), ()),
    "GPT-2": (GPT2Tokenizer(vocab=LETTERS, merges=[]), ()),
    "GPT-2 with BOS": (GPT2Tokenizer(vocab=LETTERS, merges=[], add_bos_token=True), (0,)),
    "slow, a suffix": (ByT5Tokenizer(), ()),
    "slow, both": (CanineTokenizer(), (0xE000,)),
}
"""Kind of tokenizer -> one, and the ids that it puts before any text."""
MODES: tuple[Bos, ...] = ("window", "stream", "none")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\f".join(f"{line} {'ab' * 10}" for line in SENTENCES), encoding="utf-8")
    return path


def held(text: Path, tokenizer: Any, bos: Bos, length: int = LENGTH) -> TokenBatch:
    return load_heldout(
        str(text), tokenizer=tokenizer, sequence_length=length, windows=None, bos=bos
    )


def drawn(text: Path, tokenizer: Any, bos: Bos, **options: Any) -> TokenBatch:
    draw = Draw(**{"samples": 3, "sequence_length": LENGTH, "bos": bos, **options})
    return load_calibration(str(text), draw, tokenizer=tokenizer)


def bare(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@pytest.mark.parametrize("kind", KINDS)
def test_every_window_begins_with_what_the_tokenizer_adds(kind: str, text: Path) -> None:
    tokenizer, prefix = KINDS[kind]
    assert Beginning.of(tokenizer, "window").prefix == prefix
    joined = "\n\n".join(text.read_text(encoding="utf-8").split("\f"))
    ids, room = bare(tokenizer, joined), LENGTH - len(prefix)
    windows = [[*prefix, *ids[at : at + room]] for at in range(0, len(ids) - room + 1, room)]
    batch = held(text, tokenizer, "window")
    assert batch.input_ids.tolist() == windows
    assert (batch.protocol.bos, batch.protocol.prefix) == ("window", prefix)
    calibration = drawn(text, tokenizer, "window", sampling="joined")
    assert all(row in windows for row in calibration.input_ids.tolist())
    documents = drawn(text, tokenizer, "window", sampling="documents")
    parts = {tuple(row[: len(prefix)]) for row in documents.input_ids.tolist()}
    assert (parts, documents.input_ids.shape) == ({prefix}, (3, LENGTH))
    assert not set(prefix) & set(documents.input_ids[:, len(prefix) :].flatten().tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_is_tokenised_as_the_scripts_do_and_none_without(kind: str, text: Path) -> None:
    tokenizer, prefix = KINDS[kind]
    joined = "\n\n".join(text.read_text(encoding="utf-8").split("\f"))
    streams = {"stream": tokenizer(joined)["input_ids"], "none": bare(tokenizer, joined)}
    for bos in ("stream", "none"):
        batch = held(text, tokenizer, bos)
        expected = streams[bos][: batch.input_ids.numel()]
        assert batch.input_ids.flatten().tolist() == expected
        assert batch.protocol.text_tokens == len(streams[bos])
        assert (batch.protocol.bos, batch.protocol.prefix) == (bos, prefix)


def test_a_tokenizer_that_adds_nothing_makes_the_three_one(text: Path) -> None:
    tokenizer, _ = KINDS["adds nothing"]
    for sampling in ("joined", "documents"):
        batches = [drawn(text, tokenizer, bos, sampling=sampling) for bos in MODES]
        assert len({batch.protocol.sha256 for batch in batches}) == 1
    assert len({held(text, tokenizer, bos).protocol.sha256 for bos in MODES}) == 1
    assert {held(text, tokenizer, bos).protocol.beginning for bos in MODES} == {""}


def test_few_windows_are_the_first_of_all(text: Path) -> None:
    tokenizer, _ = KINDS["two tokens"]
    few = load_heldout(str(text), tokenizer=tokenizer, sequence_length=LENGTH, windows=3)
    assert torch.equal(few.input_ids, held(text, tokenizer, "window").input_ids[:3])


@pytest.mark.parametrize("length", [1, 2])
def test_a_window_without_room_for_text_is_refused(text: Path, length: int) -> None:
    tokenizer, _ = KINDS["two tokens"]
    said = f"a window of {length} tokens has no room .* wanted a sequence length of at least 3"
    with pytest.raises(DataError, match=said):
        drawn(text, tokenizer, "window", sequence_length=length)
    with pytest.raises(DataError, match=said.replace(str(length), "2", 1)):
        held(text, tokenizer, "window", 2)
    assert held(text, tokenizer, "window", 3).input_ids[:, :2].unique(dim=0).tolist() == [[3, 1]]
    assert drawn(text, tokenizer, "none", sequence_length=length).input_ids.shape == (3, length)


def test_given_tokens_are_not_touched() -> None:
    tokens = make_tokens(2, LENGTH)
    tokenizer, _ = KINDS["one token"]
    draw = Draw(2, LENGTH, bos="window")
    given = load_calibration(tokens, draw, tokenizer=tokenizer)
    kept = load_heldout(tokens, tokenizer=tokenizer, sequence_length=LENGTH, windows=None)
    for batch in (given, kept):
        assert torch.equal(batch.input_ids, tokens)
        assert (batch.protocol.bos, batch.protocol.prefix) == (None, None)


TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("kind", "template", "begins"),
    [
        ("one token", TEMPLATE, "[user]"),
        ("two tokens", f"<unk>{TEMPLATE}", "[user]"),
        ("two tokens", TEMPLATE, "[user]"),
        ("one token", TEMPLATE.removeprefix("{{ bos_token }}"), "[user]"),
        ("adds nothing", TEMPLATE, "<s>[user]"),
    ],
)
@pytest.mark.parametrize("bos", MODES)
def test_a_template_that_spells_it_out_makes_no_second(
    tmp_path: Path, kind: str, template: str, begins: str, bos: Bos
) -> None:
    tokenizer = make_tokenizer({"one token": "<s> $A", "two tokens": "<unk> <s> $A"}.get(kind))
    tokenizer.chat_template = template
    render = chat_renderer(tokenizer)
    assert render is not None
    chat = [{"role": "user", "content": SENTENCES[0]}]
    assert render(chat) == begins + SENTENCES[0]
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join([json.dumps({"messages": chat})] * 4))
    batch, (_, prefix) = held(path, tokenizer, bos), KINDS[kind]
    windows = len(batch.input_ids)
    beginnings = {"window": windows, "stream": 1, "none": 0}[bos] if prefix else 4
    assert (batch.input_ids == 1).sum() == beginnings


def test_a_protocol_that_is_older_is_of_a_stream(text: Path) -> None:
    told = held(text, KINDS["one token"][0], "stream").protocol.model_dump()
    del told["bos"], told["prefix"]
    assert (Protocol(**told).bos, Protocol(**told).prefix) == ("stream", None)
    assert Protocol(**{**told, "sampling": "given"}).bos is None
