"""Calibration on several texts: how much of each, in which order, of which documents."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from secateur.data import (
    Draw,
    Protocol,
    TokenBatch,
    Tokenizer,
    load_calibration,
    load_heldout,
    overlaps,
    read_mixture,
    token_sha256,
)
from secateur.data.excerpts import choose_documents, draw_excerpts, spread_evenly
from secateur.data.mixture import by_source, counts_of, order_of
from secateur.data.overlap import shared_tokens
from secateur.errors import DataError
from tiny import SENTENCES, make_tokenizer

LENGTH = 16
WORDS = sorted({word.strip(".,;").lower() for line in SENTENCES for word in line.split()})
"""What the tokenizer knows."""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


def sentences(name: str, count: int, seed: int = 0) -> str:
    """Lines of words that hardly repeat, each with a name in it."""
    chance = random.Random(f"{name} {seed}")
    words = (" ".join(chance.choice(WORDS) for _ in range(5)) for _ in range(count))
    return "\n".join(f"{name} {line}." for line in words)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One huge document and 150 short ones in a folder, two files, records and tokens."""
    root = tmp_path_factory.mktemp("texts")
    (root / "folder").mkdir()
    (root / "folder" / "book.txt").write_text(sentences("book", 3000))
    for number in range(150):
        (root / "folder" / f"note{number}.txt").write_text(sentences("note", 2, number))
    for name in ("a", "b"):
        (root / f"{name}.txt").write_text(sentences(name, 200))
    (root / "r.jsonl").write_text(json.dumps({"body": sentences("r", 200)}))
    tokens = torch.randint(100, (8, LENGTH), generator=torch.Generator().manual_seed(0))
    save_file({"input_ids": tokens}, root / "t.safetensors")
    return root


def mix(
    sources: Sequence[object], tokenizer: Tokenizer, shares: Any = None, **changes: Any
) -> TokenBatch:
    draw = Draw(**{"samples": 12, "sequence_length": LENGTH, "seed": 0} | changes)
    return read_mixture(
        list(map(str, sources)),
        shares,
        draw,
        lambda source, asked: load_calibration(source, asked, tokenizer=tokenizer),
    )


@pytest.mark.parametrize(
    ("samples", "shares", "counts"),
    [
        (128, [1, 1], [64, 64]),
        (8, [2, 1, 1], [4, 2, 2]),
        (8, [1, 1, 1], [3, 3, 2]),
        (10, [0.1, 0.2, 0.7], [1, 2, 7]),
        (4, [1000, 1, 1], [2, 1, 1]),
        (3, [1e-300, 1e300, 5], [1, 1, 1]),
    ],
)
def test_shares_are_divided_by_largest_remainder(
    samples: int, shares: list[float], counts: list[int]
) -> None:
    assert counts_of(samples, shares) == counts


@pytest.mark.parametrize("counts", [[64, 64], [96, 32], [50, 30, 20], [16, 16]])
def test_any_beginning_and_end_has_every_part_by_its_share(counts: list[int]) -> None:
    order = order_of(counts, seed=3)
    assert [order.count(part) for part in range(len(counts))] == counts
    for cut in range(len(order)):
        for part, count in enumerate(counts):
            assert abs(order[:cut].count(part) - count * cut / len(order)) <= 2
    for size in (2, 8):  # strata of a step, and processes
        mixed = [len({*order[stratum::size]}) > 1 for stratum in range(size)]
        assert sum(mixed) > size // 2


def test_a_part_is_the_same_whatever_stands_beside_it(texts: Path, tokenizer: Tokenizer) -> None:
    two = mix([texts / "a.txt", texts / "folder"], tokenizer, samples=8)
    three = mix([texts / "b.txt", texts / "folder", texts / "t.safetensors"], tokenizer)
    assert two.protocol.parts[1] == three.protocol.parts[1]
    assert [part.sequences for part in three.protocol.parts] == [4, 4, 4]
    for protocol, rows in [*by_source(two), *by_source(three)]:
        assert token_sha256(rows) == protocol.token_sha256
    whole = three.protocol
    assert (whole.kind, whole.sampling, whole.sequences) == ("mixture", "mixed", 12)
    assert whole.token_sha256 == token_sha256(three.input_ids)
    assert Protocol.model_validate_json(whole.model_dump_json()) == whole
    old = whole.parts[0].model_dump(exclude={"parts"})
    assert Protocol.model_validate(old).parts == ()
    other = mix([texts / "a.txt", texts / "folder"], tokenizer, samples=8, seed=1)
    assert other.protocol.parts[1].token_sha256 != two.protocol.parts[1].token_sha256


def test_every_window_begins_as_the_tokenizer_begins_a_text(texts: Path) -> None:
    batch = mix([texts / "a.txt", texts / "folder"], make_tokenizer("<s> $A"))
    assert batch.input_ids[:, 0].tolist() == [1] * 12
    assert (batch.protocol.bos, batch.protocol.prefix) == ("window", (1,))
    assert len(torch.unique(batch.input_ids, dim=0)) == 12


def test_what_the_model_writes_beside_a_mixture_is_of_no_part(
    texts: Path, tokenizer: Tokenizer
) -> None:
    batch = mix([texts / "a.txt", texts / "b.txt"], tokenizer)
    more = TokenBatch(torch.cat([torch.zeros(5, LENGTH, dtype=torch.int64), batch.input_ids]),
                      batch.protocol)  # fmt: skip
    for (_, rows), (_, same) in zip(by_source(batch), by_source(more), strict=True):
        assert torch.equal(rows, same)


def test_given_tokens_are_the_first_of_the_file(texts: Path, tokenizer: Tokenizer) -> None:
    batch = mix([texts / "a.txt", texts / "t.safetensors"], tokenizer, [1, 2])
    given = load_calibration(str(texts / "t.safetensors"), Draw(8, LENGTH), tokenizer=None)
    assert torch.equal(by_source(batch)[1][1], given.input_ids)


def test_a_column_is_read_where_there_are_columns(texts: Path, tokenizer: Tokenizer) -> None:
    batch = mix([texts / "a.txt", texts / "r.jsonl"], tokenizer, column="body")
    assert [part.kind for part in batch.protocol.parts] == ["text", "jsonl"]
    with pytest.raises(DataError, match="column 'body' of"):
        mix([texts / "a.txt", "builtin"], tokenizer, column="body")


def test_bad_parts_are_refused(texts: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"8 sequences of 16 tokens in .*; wanted 9 of 16 tokens"):
        mix([texts / "a.txt", texts / "t.safetensors"], tokenizer, [1, 9], samples=10)
    with pytest.raises(DataError, match=r"8 sequences of 16 tokens in .*; wanted 6 of 15 tokens"):
        mix([texts / "a.txt", texts / "t.safetensors"], tokenizer, sequence_length=15)
    with pytest.raises(DataError, match="are the same text"):
        mix([texts / "a.txt", texts / "folder" / ".." / "a.txt"], tokenizer)
    with pytest.raises(DataError, match=r"only .* in .*a\.txt; wanted 3000 windows"):
        mix([texts / "a.txt", texts / "folder"], tokenizer, samples=6000)


# --- long and short documents ---


@pytest.mark.parametrize("samples", [4, 16])
@pytest.mark.parametrize("seed", [0, 1])
def test_long_and_short_documents_are_both_seen(
    texts: Path, tokenizer: Any, samples: int, seed: int
) -> None:
    draw = Draw(samples, 32, seed, sampling="excerpts")
    batch = load_calibration(str(texts / "folder"), draw, tokenizer=tokenizer)
    windows = [tokenizer.decode(window) for window in batch.input_ids]
    of_notes = sum("note" in window for window in windows)
    assert samples // 4 <= of_notes <= 3 * samples // 4


def test_stretches_are_the_text_and_each_is_drawn_once() -> None:
    documents = [sentences("book", 50), "one\ntwo", sentences("other", 20)]
    stretches = list(draw_excerpts(documents, "\n\n", 100, 4, random.Random(0)))
    text = "\n\n".join(documents)
    assert sorted(stretches, key=text.index) != stretches
    assert "".join(sorted(stretches, key=text.index)) == text
    assert max(map(len, stretches)) <= 150
    assert all(stretch.endswith("\n") for stretch in stretches if not text.endswith(stretch))
    assert len(list(draw_excerpts(["no space here"], "\n\n", 100, 6, random.Random(0)))) >= 6


def test_little_text_is_used_whole(texts: Path, tokenizer: Any) -> None:
    source = str(texts / "a.txt")
    joined = load_calibration(source, Draw(1, LENGTH, sampling="joined"), tokenizer=tokenizer)
    assert joined.protocol.text_tokens is not None
    most = joined.protocol.text_tokens // LENGTH - 20
    batch = load_calibration(source, Draw(most, LENGTH, sampling="excerpts"), tokenizer=tokenizer)
    assert len(torch.unique(batch.input_ids, dim=0)) == most


def test_a_huge_document_stands_in_the_way_of_no_other() -> None:
    texts = ["x" * 1000, " \n", *("y" * 10 for _ in range(60))]
    chosen = choose_documents(texts, 500, random.Random(0))
    assert len(chosen) > 40
    assert sorted(number // 3 for number in spread_evenly(9, 3, random.Random(1))) == [0, 1, 2]
    assert "".join(choose_documents(texts, 10**6, random.Random(0))) == "".join(texts).replace(
        " \n", ""
    )


# --- calibration text that is measured ---


def told(calibration: object, heldout: object, tokenizer: Tokenizer, **changes: Any) -> str:
    draw = Draw(**{"samples": 8, "sequence_length": 40, "seed": 0} | changes)
    batch = load_calibration(str(calibration), draw, tokenizer=tokenizer)
    measured = load_heldout(
        str(heldout), tokenizer=tokenizer, sequence_length=draw.sequence_length, windows=None
    )
    return "\n".join(overlaps(batch, [measured]))


def test_a_text_that_is_measured_too_is_told_of(
    texts: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    a, book = texts / "a.txt", texts / "folder" / "book.txt"
    (tmp_path / "copy.txt").write_text("Another beginning. " + a.read_text())
    assert "a.txt is read for both" in told(a, a, tokenizer)
    assert "% of its tokens are in the measured windows" in told(a, tmp_path, tokenizer)
    assert "book.txt is read for both" in told(texts / "folder", book, tokenizer)
    assert "book.txt is read for both" in told(book, texts / "folder", tokenizer)
    assert told(a, texts / "b.txt", tokenizer) == ""
    assert told(texts / "folder", texts / "b.txt", tokenizer) == ""


def test_splits_of_a_folder_have_nothing_in_common(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.txt").write_text(sentences(split, 200))
    assert told(tmp_path, tmp_path, tokenizer) == ""


def test_shared_headers_and_rulers_are_no_shared_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    header = sentences("header", 1)
    for name in ("one", "two"):
        parts = [f"{header}\n{sentences(name, 15, number)}" for number in range(20)]
        (tmp_path / f"{name}.txt").write_text("\n".join(parts))
    assert told(tmp_path / "one.txt", tmp_path / "two.txt", tokenizer, sequence_length=256) == ""
    rulers = torch.ones(4, 64, dtype=torch.int64).numpy()
    assert not shared_tokens(rulers, rulers).any()


def test_whatever_63_tokens_they_share_is_seen() -> None:
    chance = torch.Generator().manual_seed(0)
    one, two = (torch.randint(1000, (3, 256), generator=chance).numpy() for _ in range(2))
    assert not shared_tokens(one, two).any()
    for start in range(0, 256 - 63, 7):
        other = one.copy()
        other[1, start : start + 63] = two[2, 100:163]
        assert (shared_tokens(other, two) > 0).tolist() == [False, True, False]
    assert (shared_tokens(one, one[::-1].copy()) == 1).all()
    assert not shared_tokens(one[:, :4], one[:, :4]).any()  # too short to tell


def test_the_source_of_a_mixture_that_is_measured_is_named(
    texts: Path, tokenizer: Tokenizer
) -> None:
    batch = mix([texts / "a.txt", texts / "b.txt"], tokenizer, sequence_length=40)
    measured = load_heldout(
        str(texts / "b.txt"), tokenizer=tokenizer, sequence_length=40, windows=None
    )
    (line,) = overlaps(batch, [measured], use="training")
    assert line.startswith(f"the training text {texts / 'b.txt'} and the held-out text")
    assert "hold another text back" in line
