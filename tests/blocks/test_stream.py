"""Blocks run as the model calls them: block by block equals the model itself, for each family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.blocks.call import Call, join
from secateur.blocks.stream import Batch, Stream
from secateur.checkpoint import ResidentModel, find_blocks
from secateur.errors import ModelError
from tiny import EVERY_FAMILY, POSITIONS, make_model, make_tokens

CPU = torch.device("cpu")


def resident(model: Any) -> Any:
    return ResidentModel(model, CPU, torch.float32)


@pytest.mark.parametrize("family", EVERY_FAMILY)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_block_by_block_equals_the_model(family: str, batch_size: int) -> None:
    model, input_ids = make_model(family), make_tokens(5, 32)
    with torch.no_grad():
        expected = model(input_ids=input_ids, use_cache=False).logits
    source = resident(model)
    stream = Stream(source, input_ids, batch_size)
    for index in range(len(source.blocks)):
        with source.open_block(index) as block:
            stream.advance(block, index)
    with source.open_surroundings() as opened:
        found = [stream.logits(opened, batch, slice(None)) for batch in stream.batches]
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_some_sequences_of_a_batch_run_as_they_do_in_the_whole(family: str) -> None:
    model, input_ids = make_model(family), make_tokens(6, 32)
    stream = Stream(resident(model), input_ids, 4)
    block, batch = stream.blocks.modules[1], stream.batches[0]
    rows = torch.tensor([2, 0])
    with torch.no_grad():
        whole = batch.run(block, 1)
        some = batch.call_for(1, rows)(block, batch.hidden[rows])
        torch.testing.assert_close(some, whole[rows], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_sequences_of_several_batches_run_together(family: str) -> None:
    """In one call where there is room for it, and as they do within their own batches."""
    model, input_ids = make_model(family), make_tokens(11, 32)
    stream = Stream(resident(model), input_ids, 4)
    block, places = stream.blocks.modules[1], torch.tensor([0, 3, 5, 9, 10])
    with torch.no_grad():
        whole = torch.cat([batch.run(block, 1) for batch in stream.batches])
        chosen = list(stream.select(1, places))
        for some, hidden, call in chosen:
            torch.testing.assert_close(call(block, hidden), whole[some], rtol=1e-5, atol=1e-6)
    assert [len(some) for some, _, _ in chosen] == [4, 1]
    assert torch.equal(torch.cat([some for some, _, _ in chosen]), places)
    assert list(stream.select(1, places[:0])) == []


def test_calls_are_joined_only_if_they_go_together() -> None:
    shared = torch.randn(1, 5)

    def call(**changes: Any) -> Any:
        plain = {"mask": torch.randn(2, 5), "table": (shared, None), "cached": False}
        return Call((), {**plain, **changes}, "hidden_states")

    one, other = call(), call()
    batch = one, call(mask=torch.randn(1, 5))
    joined = join([one, other], [2, 2], batch)
    assert torch.equal(joined.kwargs["mask"], torch.cat([one.kwargs["mask"], other.kwargs["mask"]]))
    assert joined.kwargs["table"][0] is shared
    assert joined.kwargs["cached"] is False
    assert joined.hidden_name == "hidden_states"
    assert join([one], [2], batch).kwargs["mask"] is one.kwargs["mask"]
    for different in (
        call(cached=True),
        call(mask=torch.randn(2, 6)),  # other columns
        call(mask=torch.randn(4, 5)),  # twice as many rows for each sequence
        call(mask=torch.tensor(1.0)),
        call(mask=None),
        call(table=(shared,)),
        Call((), call().kwargs, None),
    ):
        assert join([one, different], [2, 2], batch) is None
        assert join([different, one], [2, 2], batch) is None
    assert join([call(mask=torch.randn(3, 5)) for _ in range(2)], [2, 2], batch) is None
    # sequences along another axis than the first, as those of positions in three dimensions
    whole, (first, *rest) = torch.randn(3, 4, 5), torch.randn(2, 3, 1, 5)
    batch = call(mask=whole), call(mask=whole[:, :1])
    joined = join([call(mask=first), *(call(mask=one) for one in rest)], [1, 1], batch)
    assert torch.equal(joined.kwargs["mask"], torch.cat([first, *rest], 1))
    some = Batch(whole, torch.randn(4, 5, 2), batch[:1], batch[1:]).call_for(
        0, torch.tensor([2, 0])
    )
    assert torch.equal(some.kwargs["mask"], whole[:, [2, 0]])


def test_a_sliding_window_reaches_the_blocks() -> None:
    """The mask of a windowed layer differs from None; without it the outputs would differ."""
    model = make_model("mistral")
    call = Stream(resident(model), make_tokens(2, 32), 2).batches[0].calls[0]
    assert isinstance(call.kwargs["attention_mask"], torch.Tensor)
    full = make_model("llama")
    call = Stream(resident(full), make_tokens(2, 32), 2).batches[0].calls[0]
    assert call.kwargs["attention_mask"] is None


def test_equal_arguments_are_kept_once() -> None:
    stream = Stream(resident(make_model("llama")), make_tokens(8, 32), 2)
    tables = {
        id(call.kwargs["position_embeddings"][0])
        for batch in stream.batches
        for call in (*batch.calls, *batch.single)
    }
    assert len(tables) == 1


def test_the_blocks_are_whole_again_afterwards() -> None:
    model, input_ids = make_model("llama"), make_tokens(2, 16)
    before = model(input_ids=input_ids).logits
    Stream(resident(model), input_ids, 2)
    assert not any("forward" in vars(block) for block in find_blocks(model).modules)
    assert torch.equal(model(input_ids=input_ids).logits, before)


def test_a_model_that_computes_between_its_blocks_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model("llama")
    third, called = model.model.layers[2], nn.Module.__call__

    def rescaled(module: Any, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return called(module, hidden * 1.01 if module is third else hidden, *args, **kwargs)

    monkeypatch.setattr(type(third), "__call__", rescaled)
    with pytest.raises(ModelError, match="block 2 does not get what the block before it returned"):
        Stream(resident(model), make_tokens(1, 4), 1)


def test_blocks_are_found_by_number_not_by_name() -> None:
    blocks = find_blocks(make_model("gpt2"))
    assert blocks.path == "transformer.h"
    assert len(blocks) == 3
    assert blocks.prefix(2) == "transformer.h.2."


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ModelError, match="does not say how many hidden layers"):
        find_blocks(nn.Linear(2, 2))


def test_a_sequence_may_fill_all_positions() -> None:
    for family in EVERY_FAMILY:
        stream = Stream(resident(make_model(family)), make_tokens(1, POSITIONS), 1)
        assert stream.batches[0].hidden.shape == (1, POSITIONS, 32)
