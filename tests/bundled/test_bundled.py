"""Data that needs no data: the text that Python carries, and text that the model writes itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F  # noqa: N812
from transformers import GenerationConfig, PreTrainedTokenizerFast

import secateur
from secateur.data import (
    Draw,
    load_calibration,
    load_heldout,
    read_documents,
    self_written,
    with_more,
)
from secateur.data.builtin import HELD_OUT_MODULES, LEFT_OUT, SHORTEST, builtin_documents
from secateur.errors import DataError
from secateur.recipe import Recipe
from tiny import POSITIONS, VOCABULARY, make_model, make_tokens


def test_held_out_modules_are_in_no_training_text() -> None:
    training, heldout = builtin_documents("train"), builtin_documents("test")
    known = {name.split(".")[0] for name in HELD_OUT_MODULES}
    assert {name.split(".")[0] for name in heldout} <= known
    assert set(heldout) >= HELD_OUT_MODULES  # this Python has every one of them
    assert training.keys().isdisjoint(heldout)
    texts = set(training.values())
    assert not any(text in texts for text in heldout.values())
    assert sum(map(len, training.values())) > 5e6
    assert sum(map(len, heldout.values())) > 5e5


def test_training_text_is_source_and_reference() -> None:
    training = builtin_documents("train")
    assert "def dumps(" in training["json"]
    assert "context manager" in training["topic.with"]
    assert list(training) == sorted(training)
    assert all(len(text) >= SHORTEST for text in training.values())
    for name in training:
        if not name.startswith("topic."):
            assert LEFT_OUT.isdisjoint(name.split("."))


def test_the_short_name_reads_either_part() -> None:
    read = read_documents("builtin", "train")
    assert read.kind == "builtin"
    assert read.texts == tuple(builtin_documents("train").values())
    assert read.origin["split"] == "train"
    assert read.origin["text"].startswith("standard library of Python 3.")
    assert read_documents("builtin", "test").texts == tuple(builtin_documents("test").values())


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte a token: what it decodes is the very text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        [],
        trainers.BpeTrainer(
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=POSITIONS)


def test_calibration_is_cut_from_training_documents_only() -> None:
    tokenizer = byte_tokenizer()
    batch = load_calibration("builtin", Draw(4, 64, seed=5), tokenizer=tokenizer)
    assert batch.input_ids.shape == (4, 64)
    assert batch.protocol.sampling == "documents"
    training = builtin_documents("train").values()
    for window in batch.input_ids:
        text = tokenizer.decode(window[4:-4]).strip("\ufffd")  # half a character at an end
        assert len(text) > 40
        assert any(text in document for document in training)


def test_held_out_windows_begin_with_the_first_module() -> None:
    tokenizer = byte_tokenizer()
    batch = load_heldout("builtin", tokenizer=tokenizer, sequence_length=32, windows=2)
    first = next(iter(builtin_documents("test").values()))
    assert first.startswith(tokenizer.decode(batch.input_ids.flatten()))


# --- text that the model writes itself ---


def test_a_model_writes_what_it_believes() -> None:
    """At temperature 1 the mean surprise of what is drawn is the mean entropy of the model."""
    model = make_model("llama")
    batch = self_written(model, samples=200, sequence_length=32, seed=0)
    assert batch.input_ids.shape == (200, 32)
    with torch.no_grad():
        scores = F.log_softmax(model(batch.input_ids).logits[:, :-1], dim=-1)  # [200, 31, vocab]
    surprise = -scores.gather(2, batch.input_ids[:, 1:, None]).squeeze(2)  # [200, 31]
    entropy = -(scores.exp() * scores).sum(dim=-1)  # [200, 31]
    spread = (surprise - entropy).std() / surprise.numel() ** 0.5
    assert abs(float((surprise - entropy).mean())) < 4 * float(spread)
    assert float(entropy.mean()) < 0.98 * torch.tensor(float(VOCABULARY)).log()


def test_the_seed_decides_what_is_written_and_nothing_else_changes() -> None:
    model = make_model("llama")
    before = torch.random.get_rng_state()
    first = self_written(model, samples=3, sequence_length=16, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(7)
    again = self_written(model, samples=3, sequence_length=16, seed=1)
    other = self_written(model, samples=3, sequence_length=16, seed=2)
    assert torch.equal(first.input_ids, again.input_ids)
    assert not torch.equal(first.input_ids, other.input_ids)
    assert first.protocol.kind == "self"
    assert first.protocol.seed == 1
    assert len({tuple(row) for row in first.input_ids.tolist()}) == 3


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 5.0, "min_p": 0.5, "suppress_tokens": [3, 4, 5]},
        {"num_beams": 4, "max_new_tokens": 10**9},
        {"forced_bos_token_id": 7, "begin_suppress_tokens": [1], "guidance_scale": 2.0},
        {"stop_strings": ["a"], "cache_implementation": "static"},
        {"penalty_alpha": 0.6, "dola_layers": "low", "prompt_lookup_num_tokens": 3},
    ],
)
def test_a_models_own_settings_do_not_write(settings: dict[str, Any]) -> None:
    model = make_model("llama")
    expected = self_written(model, samples=3, sequence_length=16, seed=1)
    model.generation_config = own = GenerationConfig(**settings)
    written = self_written(model, samples=3, sequence_length=16, seed=1)
    more = with_more(model, written, more=2, seed=1)
    assert torch.equal(written.input_ids, expected.input_ids)
    assert torch.equal(more.input_ids[2:], expected.input_ids)
    assert model.generation_config is own


@pytest.mark.parametrize("begin", [-1, 10**9])
def test_a_beginning_that_is_no_token_is_none(begin: int) -> None:
    model = make_model("llama")
    model.config.bos_token_id = begin
    first = self_written(model, samples=40, sequence_length=4, seed=0).input_ids[:, 0]
    assert len(set(first.tolist())) > 10


def test_every_sequence_begins_as_the_model_was_trained_to_begin() -> None:
    model = make_model("llama")
    written = self_written(model, samples=5, sequence_length=8, seed=0).input_ids
    assert written[:, 0].tolist() == [model.config.bos_token_id] * 5
    without = make_model("llama", bos_token_id=None)
    begun = self_written(without, samples=40, sequence_length=4, seed=0).input_ids[:, 0]
    assert len(set(begun.tolist())) > 10


def test_pruning_with_self_calibration(llama_folder: Path, tmp_path: Path) -> None:
    record = secateur.prune(
        llama_folder, method="wanda", calibration="self", samples=4, sequence_length=16,
        out=tmp_path / "out",
    )  # fmt: skip
    assert record.sparsity == 0.5
    assert record.calibration is not None
    assert record.calibration.kind == "self"
    model = make_model("llama")
    live = secateur.prune(model, method="wanda", calibration="self", samples=4, sequence_length=16)
    assert live.sparsity == 0.5


def test_self_is_no_held_out_text(llama_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="self"):
        secateur.prune(
            llama_folder, method="magnitude", text="self", sequence_length=POSITIONS,
            out=tmp_path / "out",
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_more_text_goes_on_from_parts_of_what_there_is() -> None:
    model = make_model("llama")
    batch = load_calibration(make_tokens(6, 32), Draw(6, 32), tokenizer=None)
    both = with_more(model, batch, 5, seed=3)
    assert both.input_ids.shape == (11, 32)
    assert torch.equal(both.input_ids[5:], batch.input_ids)
    there = {tuple(w.tolist()) for row in batch.input_ids for w in row.unfold(0, 16, 1)}
    assert all(tuple(row[:16].tolist()) in there for row in both.input_ids[:5])
    assert both.protocol.sequences == 11
    assert both.protocol.token_sha256 != batch.protocol.token_sha256
    assert "5 more by the dense model" in both.protocol.origin["written"]
    assert torch.equal(both.input_ids, with_more(model, batch, 5, seed=3).input_ids)
    assert not torch.equal(both.input_ids, with_more(model, batch, 5, seed=4).input_ids)


@pytest.mark.parametrize(
    ("options", "written"),
    [
        ({}, 0),
        ({"effort": "best"}, 384),
        ({"effort": "best", "written": 0}, 0),
        ({"method": "wanda"}, 0),
        ({"method": "wanda", "written": 7}, 7),
    ],
)
def test_effort_best_has_the_model_write_three_sequences_for_each(
    options: dict[str, Any], written: int
) -> None:
    recipe = Recipe.build({"model": "m", "out": "o", "calibration": "c4", **options})
    assert recipe.chosen_written == recipe.spelled_out()["written"] == written


def test_a_run_sees_what_was_written() -> None:
    run = secateur.prune(
        make_model("llama"), method="wanda", calibration=make_tokens(4, 16),
        samples=4, sequence_length=16, written=3,
    )  # fmt: skip
    assert run.calibration is not None
    assert run.calibration.sequences == 7
