"""Reading ahead and writing behind: the same results in the same order, and no fault lost."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import secateur
from secateur.blocks import batching
from secateur.blocks.batching import batch_size
from secateur.checkpoint import BlockModel, Checkpoint, background, open_model
from secateur.checkpoint.background import Behind, ReadAhead
from secateur.errors import CheckpointError, OutputError
from secateur.machine import memory
from tiny import make_model, make_tokens, save


class Files:
    """Blocks that remember in which order and by whom they were read."""

    def __init__(self) -> None:
        self.reads: list[int] = []
        self.readers: list[str] = []
        self.damaged: set[int] = set()

    def read(self, index: int) -> dict[str, Tensor]:
        self.reads.append(index)
        self.readers.append(threading.current_thread().name)
        if index in self.damaged:
            raise CheckpointError(f"block {index} is damaged")
        return {"number": torch.tensor(index)}

    def ahead(self, count: int = 4) -> ReadAhead:
        return ReadAhead(self.read, lambda index: 1, count)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [0, 1, 2, 3, 2, 1, 0], [2, 0, 3, 3, 1, 2]])
def test_whatever_the_order_every_block_is_itself(order: list[int]) -> None:
    files = Files()
    ahead = files.ahead()
    assert [int(ahead.take(index)["number"]) for index in order] == order


def test_neighbours_are_read_once_and_by_another_thread() -> None:
    files = Files()
    ahead = files.ahead()
    for index in (0, 1, 2, 3, 2, 1, 0):
        ahead.take(index)
    assert files.reads == [0, 1, 2, 3, 2, 1, 0]
    here = threading.current_thread().name
    assert [name == here for name in files.readers] == [True, *[False] * 3, True, False, False]


def test_a_block_that_cannot_be_read_is_told_when_it_is_asked_for() -> None:
    files = Files()
    files.damaged = {1}
    ahead = files.ahead()
    ahead.take(0)
    with pytest.raises(CheckpointError, match="block 1 is damaged"):
        ahead.take(1)
    assert int(ahead.take(2)["number"]) == 2


def test_nothing_is_read_ahead_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "free_bytes", lambda device: background.READ_AHEAD_SHARE)
    files = Files()
    ahead = files.ahead()
    ahead.take(0)
    ahead.take(1)
    assert set(files.readers) == {threading.current_thread().name}


def test_work_is_done_in_order_and_by_the_end() -> None:
    done: list[int] = []
    may_go = threading.Event()

    def slow() -> None:
        may_go.wait(10)
        done.append(1)

    with Behind() as behind:
        behind.do(slow)
        assert done == []  # the caller goes on
        may_go.set()
        behind.do(lambda: done.append(2))
    assert done == [1, 2]


def test_a_fault_reaches_the_caller_once() -> None:
    def fail() -> None:
        raise OutputError("the disk is full")

    with pytest.raises(OutputError, match="full"), Behind() as behind:
        behind.do(fail)
    with Behind() as behind:
        behind.do(fail)
        with pytest.raises(OutputError, match="full"):
            behind.do(lambda: None)

    def fail_too() -> None:
        with Behind() as behind:
            behind.do(fail)
            raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        fail_too()


def test_a_run_reads_each_block_once_before_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(make_model("llama"), tmp_path / "dense")
    save_file({"input_ids": make_tokens(4, 16)}, tmp_path / "tokens.safetensors")
    blocks: list[tuple[str, str]] = []
    load = Checkpoint.load

    def watched(self: Checkpoint, names: list[str]) -> dict[str, Tensor]:
        names = list(names)
        inside = {name.split(".")[2] for name in names if name.startswith("model.layers.")}
        if len(inside) == 1:
            blocks.append((inside.pop(), threading.current_thread().name.partition("_")[0]))
        return load(self, names)

    monkeypatch.setattr(Checkpoint, "load", watched)
    secateur.prune(
        tmp_path / "dense", out=tmp_path / "out", method="wanda", pattern="2:4",
        calibration=tmp_path / "tokens.safetensors", samples=4, sequence_length=16,
    )  # fmt: skip
    read = [block for block, thread in blocks if thread != "behind"]
    assert read == sorted(set(read))
    assert [thread for block, thread in blocks if block != "0" and thread != "behind"] == [
        "read-ahead"
    ] * (len(read) - 1)
    assert [block for block, thread in blocks if thread == "behind"] == read  # to be written


def test_batches_are_smaller_where_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(make_model("llama"), tmp_path)
    source = open_model(tmp_path, torch.device("cpu"))
    assert batch_size(None, 16, source) == 2048 // 16
    assert batch_size(3, 16, source) == 3
    elsewhere = SimpleNamespace(
        device=torch.device("mps"), blocks=source.blocks, dtype=source.dtype
    )
    monkeypatch.setattr(batching, "free_bytes", lambda device: 2**40)
    assert batch_size(None, 16, cast("BlockModel", elsewhere)) == 16384 // 16
    features = sum(sum(p.shape) for p in source.blocks.modules[0].parameters() if p.dim() == 2)
    of_token = batching.COPIES * features * 4
    for tokens, sequences in ((2048, 128), (2047, 64), (600, 32), (100, 4), (5, 1), (0, 1)):
        room = batching.MEMORY_PARTS * tokens * of_token
        monkeypatch.setattr(batching, "free_bytes", lambda device, room=room: room)
        assert batch_size(None, 16, source) == sequences, tokens


def test_memory_is_given_back_once_the_process_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(memory, "give_back", lambda: calls.append(1))
    monkeypatch.setattr(memory, "_most", 0)
    memory.give_back_growth()
    memory.give_back_growth()
    assert len(calls) == 1
    grown = torch.ones(memory.GROWTH)  # four bytes each
    memory.give_back_growth()
    assert len(calls) == 2
    del grown
    assert memory.free_bytes(torch.device("cpu")) > 0
