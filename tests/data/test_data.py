"""Text, tokens and data sets: what is read, how it is windowed, and how bad input is refused."""

from __future__ import annotations

import bz2
import copy
import csv
import gzip
import hashlib
import io
import json
import logging
import os
import random
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from tokenizers.decoders import ByteLevel
from transformers import BatchEncoding, PreTrainedTokenizerFast

from secateur.data import (
    Documents,
    Draw,
    Protocol,
    TokenBatch,
    calibration,
    files,
    load_calibration,
    load_heldout,
    read_documents,
    rows,
    token_sha256,
)
from secateur.data.files import Reading
from secateur.data.token_files import tokens_in_memory
from secateur.errors import DataError

BOS = 0
ANIMALS = ["heron", "otter", "badger", "lynx", "stoat", "marten", "wren", "adder", "vole"]


def prose(words: int, seed: int) -> str:
    """Sentences that never repeat: every word carries its number."""
    chance = random.Random(seed)
    return " ".join(f"{chance.choice(ANIMALS)} {seed}{number}." for number in range(words))


DOCUMENTS = [prose(words, seed) for seed, words in enumerate([300, 20, 250, 5, 400, 150], start=1)]
CORPUS = "\n\n".join(DOCUMENTS)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with a beginning-of-sequence token and a short model maximum."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = ByteLevel()
    model.train_from_iterator(
        [prose(100, 9)],
        trainers.BpeTrainer(
            vocab_size=340,
            special_tokens=["<s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    model.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>", model_max_length=64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The documents as a folder of four kinds of file, with things beside them to leave out."""
    root = tmp_path / "texts"
    (root / "b").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / "a.txt").write_text(f"{DOCUMENTS[0]}\f{DOCUMENTS[1]}\f\n", encoding="utf-8")
    (root / "b" / "1.md").write_text(DOCUMENTS[2], encoding="utf-8")
    lines = [json.dumps({"text": text, "url": "-"}) for text in DOCUMENTS[3:5]]
    (root / "b" / "2.jsonl").write_text("\n\n".join(lines), encoding="utf-8")
    pq.write_table(pa.table({"text": DOCUMENTS[5:]}), root / "c.parquet")
    (root / ".git" / "x.txt").write_text("hidden")
    (root / ".hidden.txt").write_text("hidden")
    (root / "empty.txt").write_text(" \n")
    return root


def stream(tokenizer: PreTrainedTokenizerFast, text: str = CORPUS) -> list[int]:
    """What the loaders should see: special tokens once, made by the backend itself."""
    return list(tokenizer.backend_tokenizer.encode(text).ids)


def calibrate(source: Any, tokenizer: Any, **changes: Any) -> TokenBatch:
    vocabulary = changes.pop("vocabulary", None)
    draw = Draw(**{"samples": 8, "sequence_length": 32, "seed": 0} | changes)
    return load_calibration(source, draw, tokenizer=tokenizer, vocabulary=vocabulary)


# Sources

UNCHECKED = {"verification_mode": "no_checks"}
"""A shard has not the rows that the card promises: github.com/huggingface/datasets/issues/7728."""


def test_folder_reads_every_kind_in_sorted_order(folder: Path) -> None:
    documents = read_documents(str(folder), "train")
    assert list(documents.texts) == DOCUMENTS
    assert documents.kind == "folder"
    assert documents.origin == {
        "path": str(folder),
        "files": "4",
        "documents": "6",
        "empty_files": "1",
    }


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("a.txt", "text", DOCUMENTS[:2]),
        ("b/1.md", "text", DOCUMENTS[2:3]),
        ("b/2.jsonl", "jsonl", DOCUMENTS[3:5]),
        ("c.parquet", "parquet", DOCUMENTS[5:]),
    ],
)
def test_single_file(folder: Path, name: str, kind: Any, expected: list[str]) -> None:
    source = str(folder / name)
    origin = {"path": source, "files": "1", "documents": str(len(expected))}
    assert read_documents(source, "train") == Documents(tuple(expected), kind, origin)
    assert read_documents(source, "test") == Documents(tuple(expected), kind, origin)


def test_text_form(tmp_path: Path) -> None:
    """A byte order mark and carriage returns go; empty records stay, as the papers join them."""
    path = tmp_path / "x.TXT"
    path.write_bytes("\ufeffcafé\r\nau lait\n".encode())
    assert read_documents(str(path), "train").texts == ("café\nau lait\n",)
    path = tmp_path / "x.jsonl"
    path.write_bytes('\ufeff{"text": ""}\r\n{"text": "a\u2028b"}'.encode())
    assert read_documents(str(path), "train").texts == ("", "a\u2028b")


@pytest.mark.parametrize(
    ("name", "split", "call", "options"),
    [
        (
            "c4",
            "train",
            ("allenai/c4", "en", "train"),
            {"data_files": {"train": "en/c4-train.00000-of-01024.json.gz"}} | UNCHECKED,
        ),
        (
            "c4",
            "test",
            ("allenai/c4", "en", "validation"),
            {"data_files": {"validation": "en/c4-validation.00000-of-00008.json.gz"}} | UNCHECKED,
        ),
        ("wikitext2", "train", ("Salesforce/wikitext", "wikitext-2-raw-v1", "train"), {}),
        ("wikitext2", "test", ("Salesforce/wikitext", "wikitext-2-raw-v1", "test"), {}),
    ],
)
def test_hub_names(
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: PreTrainedTokenizerFast,
    name: str,
    split: str,
    call: tuple[str, str, str],
    options: dict[str, Any],
) -> None:
    import datasets

    asked = []

    def load_dataset(repository: str, configuration: str, *, split: str, **rest: object) -> object:
        asked.append(((repository, configuration, split), rest))
        return datasets.Dataset.from_dict({"text": ["", *DOCUMENTS]})

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    if split == "train":
        batch = calibrate(name, tokenizer, samples=3)
        assert batch.protocol.sampling == ("documents" if name == "c4" else "joined")
    else:
        batch = load_heldout(name, tokenizer=tokenizer, sequence_length=32, windows=3, bos="stream")
        ids = stream(tokenizer, "\n\n" + CORPUS)
        assert batch.input_ids.flatten().tolist() == ids[:96]
    assert asked == [(call, options)]
    origin = batch.protocol.origin
    assert batch.protocol.kind == "hub"
    assert (origin["repository"], origin["configuration"], origin["split"]) == call
    assert {origin.get("data_file")} == set(options.get("data_files", {"": None}).values())
    assert origin["documents"] == "7"


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> object:
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying")
        raise ConnectionError("Couldn't reach 'allenai/c4' on the Hub\nmore\nlines")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    heard: list[logging.LogRecord] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", heard.append)
    logger.addHandler(handler)
    try:
        with pytest.raises(DataError) as caught:
            read_documents("c4", "train")
    finally:
        logger.removeHandler(handler)
    line = str(caught.value)
    assert "\n" not in line
    assert "Couldn't reach 'allenai/c4'" in line
    assert "try a local text file or folder" in line
    assert not heard
    assert logger.level == level


# Batches


def test_hash_is_of_little_endian_int32(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    batch = calibrate(str(folder), tokenizer)
    flat = batch.input_ids.flatten().tolist()
    expected = hashlib.sha256(struct.pack(f"<{len(flat)}i", *flat)).hexdigest()
    assert batch.protocol.token_sha256 == expected
    assert token_sha256(batch.input_ids.int()) == expected
    assert token_sha256(batch.input_ids.T.contiguous().T) == expected


def test_joined_windows_are_cut_from_the_stream(
    folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    length = 32
    ids = stream(tokenizer)
    cut = [tuple(ids[i : i + length]) for i in range(0, len(ids) - length + 1, length)]
    batch = calibrate(str(folder), tokenizer, samples=len(cut), bos="stream")
    assert batch.input_ids.dtype == torch.int64
    drawn = [tuple(row) for row in batch.input_ids.tolist()]
    assert sorted(drawn) == sorted(cut)
    assert len(set(drawn)) == len(cut)
    assert drawn != cut
    assert (batch.input_ids == BOS).sum() == 1
    assert batch.protocol == Protocol(
        source=str(folder),
        kind="folder",
        origin=read_documents(str(folder), "train").origin,
        sampling="joined",
        joiner="\n\n",
        sequences=len(cut),
        sequence_length=length,
        seed=0,
        text_characters=len(CORPUS),
        text_tokens=len(ids),
        token_sha256=token_sha256(batch.input_ids),
        tokenizer=f"{type(tokenizer).__name__} {tokenizer.name_or_path}".strip(),
        bos="stream",
        prefix=(BOS,),
    )


def test_documents_give_one_window_each(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    length = 200
    long_enough = [text for text in DOCUMENTS if len(stream(tokenizer, text)) > length]
    batch = calibrate(
        str(folder), tokenizer, samples=4, sequence_length=length, sampling="documents"
    )
    assert len(long_enough) == 4
    texts = tokenizer.batch_decode(batch.input_ids, skip_special_tokens=True)
    homes = [[text for text in DOCUMENTS if window in text] for window in texts]
    assert all(len(home) == 1 for home in homes)
    assert sorted(home[0] for home in homes) == sorted(long_enough)
    assert batch.protocol.joiner is None
    with pytest.raises(DataError, match=r"only 4 windows of 200 tokens .* wanted 5 windows"):
        calibrate(str(folder), tokenizer, samples=5, sequence_length=length, sampling="documents")


def test_a_document_must_be_longer_than_a_sequence(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Every window of a document can be drawn, and a document of exactly one window is skipped."""
    path = tmp_path / "one.txt"
    path.write_text(DOCUMENTS[3])
    ids = stream(tokenizer, DOCUMENTS[3])
    options: dict[str, Any] = {"samples": 1, "sampling": "documents", "bos": "stream"}
    with pytest.raises(DataError, match="only 0 windows"):
        calibrate(str(path), tokenizer, sequence_length=len(ids), **options)
    length = len(ids) - 1
    seen = {
        tuple(
            calibrate(str(path), tokenizer, sequence_length=length, seed=seed, **options)
            .input_ids[0]
            .tolist()
        )
        for seed in range(20)
    }
    assert seen == {tuple(ids[:-1]), tuple(ids[1:])}


@pytest.mark.parametrize("sampling", ["documents", "joined"])
def test_seed_decides(folder: Path, tokenizer: PreTrainedTokenizerFast, sampling: str) -> None:
    def draw(**changes: Any) -> TokenBatch:
        return calibrate(str(folder), tokenizer, **{"samples": 3, "sampling": sampling} | changes)

    first = draw()
    random.seed(1)
    torch.manual_seed(1)
    before, torch_before = random.getstate(), torch.get_rng_state()
    again, other, larger = draw(), draw(seed=1), draw(samples=4)
    assert random.getstate() == before
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert torch.equal(first.input_ids, again.input_ids)
    assert first.protocol == again.protocol
    assert first.protocol.token_sha256 != other.protocol.token_sha256
    assert torch.equal(larger.input_ids[:3], first.input_ids)


def test_huge_corpus_is_bounded(
    folder: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 4000
    monkeypatch.setattr(calibration, "CHARACTER_LIMIT", limit)
    batch = calibrate(str(folder), tokenizer)
    assert batch.protocol.text_characters == limit
    assert len(batch.notices) == 1
    assert "longer than 4,000 characters" in batch.notices[0]
    texts = tokenizer.batch_decode(batch.input_ids, skip_special_tokens=True)
    assert all(piece in CORPUS for text in texts for piece in text.split("\n\n"))
    other = calibrate(str(folder), tokenizer, seed=1)
    assert other.protocol.text_tokens != batch.protocol.text_tokens
    monkeypatch.setattr(calibration, "CHARACTER_LIMIT", len(CORPUS))
    assert calibrate(str(folder), tokenizer).notices == ()


def test_heldout_windows_follow_one_another(
    folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    ids = stream(tokenizer)

    def held(windows: int | None) -> TokenBatch:
        return load_heldout(
            str(folder), tokenizer=tokenizer, sequence_length=50, windows=windows, bos="stream"
        )

    whole = held(None)
    assert whole.input_ids.shape == (len(ids) // 50, 50)
    assert whole.input_ids.flatten().tolist() == ids[: len(ids) // 50 * 50]
    assert whole.protocol.sampling == "windows"
    assert whole.protocol.seed is None
    assert whole.protocol.text_tokens == len(ids)
    few = held(3)
    assert torch.equal(few.input_ids, whole.input_ids[:3])
    assert few.protocol.text_characters is not None
    assert few.protocol.text_characters < len(CORPUS)
    many = held(9999)
    assert torch.equal(many.input_ids, whole.input_ids)
    assert "fewer than the 9999 asked for" in many.notices[0]


def test_heldout_reads_on_when_text_has_few_tokens(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The first guess of eight characters per token is far too low for one word repeated."""
    backend = Tokenizer(models.WordLevel({"a" * 100: 1, "<unk>": 0}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    sparse = PreTrainedTokenizerFast(tokenizer_object=backend)
    path = tmp_path / "x.txt"
    path.write_text(f"{'a' * 100} " * 1000)
    batch = load_heldout(str(path), tokenizer=sparse, sequence_length=30, windows=10)
    assert batch.input_ids.tolist() == [[1] * 30] * 10


def test_long_text_is_no_reason_to_warn(
    folder: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    level = logger.level
    logger.setLevel(logging.WARNING)  # the command quietens it, for its whole process
    try:
        calibrate(str(folder), tokenizer)
        load_heldout(str(folder), tokenizer=tokenizer, sequence_length=50, windows=None)
        assert not caplog.records
        tokenizer(CORPUS)
        assert caplog.records, "the tokenizer would warn without our asking it not to"
    finally:
        logger.removeHandler(caplog.handler)
        logger.setLevel(level)


# Tokens given


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint16, torch.int32, torch.uint64])
def test_given_tokens_are_used_verbatim(tmp_path: Path, dtype: torch.dtype) -> None:
    tokens = torch.arange(60).view(6, 10)
    path = tmp_path / "tokens.safetensors"
    save_file({"input_ids": tokens.to(dtype)}, path)
    for source, kind in ((str(path), "safetensors"), (tokens.to(dtype), "tensor")):
        batch = calibrate(source, None, samples=6, sequence_length=10, vocabulary=60)
        assert batch.input_ids.dtype == torch.int64
        assert torch.equal(batch.input_ids, tokens)
        assert batch.notices == ()
        assert batch.protocol.kind == kind
        assert batch.protocol.sampling == "given"
        assert batch.protocol.seed is None
        assert batch.protocol.tokenizer is None
        assert batch.protocol.text_tokens is None
        fewer = calibrate(source, None, samples=4, sequence_length=10)
        assert torch.equal(fewer.input_ids, tokens[:4])
        assert fewer.notices == ()
        assert fewer.protocol.origin["sequences"] == "6"
        clipped = calibrate(source, None, samples=9, sequence_length=7)
        assert torch.equal(clipped.input_ids, tokens[:, :7])
        assert "6 sequences, fewer than the 9 asked for" in clipped.notices[0]
        assert "clipped to 7" in clipped.notices[1]
        shorter = calibrate(source, None, samples=6, sequence_length=11)
        assert "shorter than the 11 asked for" in shorter.notices[0]
        held = load_heldout(source, tokenizer=None, sequence_length=10, windows=None)
        assert torch.equal(held.input_ids, tokens)


def test_a_batch_is_a_copy() -> None:
    tokens = torch.arange(20).view(2, 10)
    batch = calibrate(tokens, None, samples=2, sequence_length=10)
    tokens.zero_()
    assert token_sha256(batch.input_ids) == batch.protocol.token_sha256


# Refusals


IDS = torch.arange(20).view(2, 10)


@pytest.mark.parametrize(
    ("source", "changes", "parts"),
    [
        ("wikitext", {}, ["'wikitext'", "wanted a path or one of c4, wikitext2", "did you mean"]),
        ("", {}, ["it is empty"]),
        ("~nobody-of-that-name/x.txt", {}, ["can be no path"]),
        pytest.param("x" * 5000, {}, ["can be no path"], id="long"),
        ("texts/a.txt", {"samples": 0}, ["samples is 0", "at least 1"]),
        ("texts/a.txt", {"sequence_length": 0}, ["sequence_length is 0", "at least 1"]),
        ("texts/a.txt", {"sampling": "join"}, ["sampling 'join'", "did you mean 'joined'"]),
        ("texts/a.txt", {"tokenizer": None}, ["no tokenizer", "in texts/a.txt"]),
        ("texts/a.txt", {"vocabulary": 20}, ["token id", "ids from 0 to 19", "in texts/a.txt"]),
        ("texts/aa.txt", {}, ["'texts/aa.txt'", "try texts/a.txt"]),
        (IDS.float(), {}, ["torch.float32", "the given tensor"]),
        (IDS[0], {}, ["shape [10]", "the given tensor"]),
        (IDS + 2**31, {}, ["token id 2147483648", "int32"]),
    ],
)
def test_bad_request_is_refused_in_one_line(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    source: Any,
    changes: dict[str, Any],
    parts: list[str],
) -> None:
    monkeypatch.chdir(folder.parent)
    with pytest.raises(DataError) as caught:
        calibrate(source, **({"tokenizer": tokenizer} | changes))
    line = str(caught.value)
    assert "\n" not in line
    for part in parts:
        assert part in line


def test_heldout_refusals(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "x.txt"
    path.write_text("a heron")
    with pytest.raises(DataError, match=r"only 0 windows of 32 tokens .*; wanted 1 windows"):
        load_heldout(str(path), tokenizer=tokenizer, sequence_length=32, windows=None)
    with pytest.raises(DataError, match="windows is 0"):
        load_heldout(str(path), tokenizer=tokenizer, sequence_length=32, windows=0)
    with pytest.raises(DataError, match=r"sequence_length is 1; wanted .* at least 2"):
        load_heldout(str(path), tokenizer=tokenizer, sequence_length=1, windows=None)


# Kinds of files, and what of a folder is its text

TEXTS = ["the heron, waits", 'an otter "dives"', ""]


def rows_of(texts: list[str], column: str = "text") -> list[dict[str, Any]]:
    return [{"id": number, column: text} for number, text in enumerate(texts)]


def csv_of(delimiter: str) -> bytes:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows([["id", "text"], *enumerate(TEXTS)])
    return file.getvalue().encode()


LINES = "\n".join(map(json.dumps, rows_of(TEXTS))).encode()
KINDS_OF_FILE: dict[str, bytes] = {
    "a.jsonl": LINES,
    "lines.json": LINES,
    "array.json": json.dumps(rows_of(TEXTS), indent=2).encode(),
    "strings.json": json.dumps(TEXTS).encode(),
    "a.csv": csv_of(","),
    "a.tsv": csv_of("\t"),
    "c4-train.00000-of-01024.json.gz": gzip.compress(LINES),
    "a.jsonl.bz2": bz2.compress(LINES),
    "a.csv.zst": bytes(pa.compress(csv_of(","), codec="zstd", asbytes=True)),
}


@pytest.mark.parametrize("name", KINDS_OF_FILE)
def test_records_of_every_kind_are_the_same_texts(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(KINDS_OF_FILE[name])
    documents = read_documents(str(tmp_path / name), "train")
    assert list(documents.texts) == TEXTS
    assert documents.notices == ()


def test_a_text_may_be_compressed(tmp_path: Path) -> None:
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress(b"a heron\fan otter"))
    assert read_documents(str(tmp_path / "x.txt.gz"), "train").texts == ("a heron", "an otter")


def test_an_array_longer_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_CHUNK", 10)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([*rows_of(DOCUMENTS), None], indent=1))
    documents = read_documents(str(path), "train")
    assert list(documents.texts) == DOCUMENTS
    assert documents.notices == (f"1 records of {path} are null: they are left out",)


def test_saved_data_sets_are_read_by_split(tmp_path: Path) -> None:
    import datasets

    parts = {name: datasets.Dataset.from_list(rows_of([name])) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "both"))
    parts["train"].save_to_disk(str(tmp_path / "one"))
    assert read_documents(str(tmp_path / "both"), "train").texts == ("train",)
    held_out = read_documents(str(tmp_path / "both"), "test")
    assert held_out.texts == ("test",)
    assert "1 file of another split (train/data-00000-of-00001.arrow)" in held_out.notices[0]
    assert read_documents(str(tmp_path / "one"), "test").texts == ("train",)


def test_a_data_set_fetched_from_the_hub_is_its_training_split(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        pq.write_table(pa.table({"text": [name]}), tmp_path / "data" / f"{name}.parquet")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# A card")
    (tmp_path / "LICENSE.txt").write_text("All rights")
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / "settings.json").write_text('{"epochs": 3}')
    (tmp_path / "figure.png").write_bytes(b"")
    documents = read_documents(str(tmp_path), "train")
    assert documents.texts == ("train-00000-of-00002", "train-00001-of-00002")
    told = " ".join(documents.notices)
    for part in (
        "2 cards, READMEs and licences (README.md, LICENSE.txt)",
        "1 file of another split (data/test-00000-of-00001.parquet)",
        "2 files of a kind that is no text (dataset_infos.json, figure.png)",
        "1 JSON file without text",
    ):
        assert part in told
    assert read_documents(str(tmp_path), "test").texts == ("test-00000-of-00001",)


@pytest.mark.parametrize(
    "names",
    [
        ["1.md", "2.md"],
        ["a/README.md", "b/README.md"],
        ["test.txt", "notes.txt"],
        ["training-for-a-test.txt", "a test of strength.txt"],
    ],
)
def test_notes_are_texts(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("---\ntags: [heron]\n---\nA note.")
    documents = read_documents(str(tmp_path), "train")
    assert (len(documents.texts), documents.notices) == (len(names), ())


def test_a_column_and_null_records(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "x.jsonl"
    kept = [json.dumps({"body": text, "text": "not this"}) for text in DOCUMENTS]
    path.write_text("\n".join(["null", *kept, '{"body": null}']))
    batch = calibrate(str(path), tokenizer, column="body")
    assert batch.protocol.text_characters == len(CORPUS)
    assert batch.notices == (f"2 records of {path} are null: they are left out",)


@pytest.mark.parametrize("form", ["messages", "conversations"])
def test_chats_go_through_the_template(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, form: str
) -> None:
    speaker, said = ("role", "content") if form == "messages" else ("from", "value")
    turns = [{speaker: "user" if form == "messages" else "human", said: text} for text in DOCUMENTS]
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({form: [turns]}), path)
    with pytest.raises(DataError, match=r"no chat template .* try --column NAME"):
        calibrate(str(path), tokenizer)
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    batch = load_heldout(
        str(path), tokenizer=chatty, sequence_length=32, windows=None, bos="stream"
    )
    expected = stream(tokenizer, "".join(f"user: {text}\n" for text in DOCUMENTS))
    assert batch.input_ids.flatten().tolist() == expected[: batch.input_ids.numel()]
    chatty.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match=r"row 1.*wanted roles"):
        calibrate(str(path), chatty)


def bomb(path: Path) -> None:
    """40 GB of text in a kilobyte of parquet."""
    indices = pa.array([0] * 40_000, pa.int32())
    table = pa.table({"text": pa.DictionaryArray.from_arrays(indices, ["x" * 1_000_000])})
    pq.write_table(table, path, compression="zstd")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("x.parquet", bomb),
        ("x.txt.gz", lambda path: path.write_bytes(gzip.compress(b"heron\n" * 2_000_000))),
        ("x.jsonl.gz", lambda path: path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 400_000))),
    ],
)
def test_small_files_of_much_text_are_read_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, write: Any
) -> None:
    monkeypatch.setattr(files, "MOST_TEXT_BYTES", 5_000_000)
    write(tmp_path / name)
    documents = read_documents(str(tmp_path / name), "train")
    characters = sum(map(len, documents.texts))
    assert characters <= 5_000_000 <= characters + 14 * len(documents.texts)
    assert "is read up to 5,000,000 bytes" in documents.notices[0]


def test_what_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.txt").write_text("a heron")

    def refuse(*_: object, **__: object) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"cannot be read .Permission denied"):
        read_documents(str(tmp_path / "x.txt"), "train")
    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(DataError, match=r"cannot be read .Permission denied"):
        read_documents(str(tmp_path / "x.txt"), "train")


def test_a_column_whose_name_has_a_dot(tmp_path: Path) -> None:
    columns = {"a": [{"b": "inner"}], "a.b": ["outer"], "text.x": ["no"], "text": ["yes"]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    source = str(tmp_path / "x.parquet")
    assert read_documents(source, "train", Reading("a.b")).texts == ("outer",)
    assert read_documents(source, "train").texts == ("yes",)


@pytest.mark.parametrize("between", ["]\n[", " ", ",,"])
def test_an_array_is_read_whole_or_not_at_all(
    between: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secateur.data.rows._CHUNK", 1)
    (tmp_path / "x.json").write_text(f'[{{"text": "a"}}\n{between}\n{{"text": "b"}}]')
    with pytest.raises(DataError, match=r"behind the array|invalid JSON"):
        read_documents(str(tmp_path / "x.json"), "train")
    (tmp_path / "x.json").write_text('[ {"text": "a"}\n,\n{"text": "b"}\n]\n \n')
    assert read_documents(str(tmp_path / "x.json"), "train").texts == ("a", "b")


def test_links_and_devices_in_a_folder_are_told_of(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a heron")
    (tmp_path / "gone.txt").symlink_to("nothing.txt")
    (tmp_path / "null.txt").symlink_to(os.devnull)
    (tmp_path / "round").symlink_to(tmp_path)
    documents = read_documents(str(tmp_path), "train")
    assert documents.texts == ("a heron",)
    assert "3 links and devices (gone.txt, null.txt, round)" in documents.notices[0]
    with pytest.raises(DataError, match="neither a file nor a folder"):
        read_documents(str(tmp_path / "null.txt"), "train")


def test_a_conversation_in_which_nobody_speaks_is_null(tmp_path: Path) -> None:
    silent = '{"conversations": []}\n{"conversations": [{"from": "human", "value": null}]}'
    (tmp_path / "x.jsonl").write_text(silent)
    reading = Reading(render=lambda turns: f"{turns}")
    documents = read_documents(str(tmp_path / "x.jsonl"), "train", reading)
    assert documents.texts == ("[{'role': 'user'}]",)
    assert "1 records" in documents.notices[0]


def test_calibration_that_is_nowhere_is_refused() -> None:
    for tensor in (
        IDS.to("meta"),
        IDS.to_sparse(),
        torch.nested.nested_tensor([*IDS], layout=torch.jagged),
    ):
        with pytest.raises(DataError, match="a dense tensor"):
            tokens_in_memory(tensor)
    with pytest.raises(DataError, match="a dense tensor"):
        tokens_in_memory({"input_ids": IDS, "attention_mask": torch.ones_like(IDS).to("meta")})


def test_a_link_to_nothing_is_no_reason_to_try_it_again(tmp_path: Path) -> None:
    (tmp_path / "x.txt").symlink_to("gone.txt")
    with pytest.raises(DataError, match="a link to nothing") as caught:
        read_documents(str(tmp_path / "x.txt"), "train")
    assert caught.value.hint is None


def test_a_mask_of_ones_is_as_none_and_other_tensors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    ones = torch.ones_like(IDS)
    save_file({"input_ids": IDS, "attention_mask": ones, "labels": IDS.clone()}, path)
    batch = calibrate(str(path), None, samples=2, sequence_length=10)
    assert batch.notices == (f"{path} holds labels beside input_ids, which nothing uses",)
    assert torch.equal(batch.input_ids, IDS)
    given = BatchEncoding({"input_ids": IDS, "attention_mask": ones})
    assert tokens_in_memory(given) is given["input_ids"]
    assert tokens_in_memory("c4") is None
    with pytest.raises(DataError, match="leaves out 2 of 10 tokens of sequence 1"):
        tokens_in_memory({"input_ids": IDS.tolist(), "attention_mask": ones - (IDS > 17).long()})
    with pytest.raises(DataError, match="found: ids"):
        tokens_in_memory({"ids": IDS})
