"""What a mixture gives without experts, against its block's own code; the search by brute force."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from families import EXPERT_FAMILIES
from secateur.blocks.absence import Absences, choose_by_absence
from secateur.blocks.fewer_experts import FewerExperts, find_experts, narrowed
from secateur.blocks.stream import Stream
from secateur.checkpoint import ResidentModel
from secateur.methods import get
from tiny import make_model, make_tokens

GROUPED: dict[str, Any] = {"n_routed_experts": 8, "num_experts": 8, "n_group": 2, "topk_group": 1}
IN_GROUPS = {"deepseek_v3": GROUPED, "deepseek_v32": GROUPED}


def last_block(model: Any) -> Any:
    """The last block of a model, its number, and the stream before it."""
    source = ResidentModel(model, torch.device("cpu"), torch.float32)
    stream = Stream(source, make_tokens(6, 16), 4)
    for index, block in enumerate(source.blocks.modules[:-1]):
        stream.advance(block, index)
    return source.blocks.modules[-1].requires_grad_(False), len(source.blocks) - 1, stream


def outputs_of(block: Any, mixture: str, index: int, stream: Stream) -> Tensor:
    """What a module within a block gives for all batches, as the block itself runs it."""
    seen: list[Tensor] = []
    handle = block.get_submodule(mixture).register_forward_hook(
        lambda _, args, out: seen.append(out if isinstance(out, Tensor) else out[0])
    )
    for batch in stream.batches:
        batch.run(block, index)
    handle.remove()
    return torch.cat([output.flatten(0, -2) for output in seen])  # [tokens, width]


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
@torch.no_grad()
def test_the_error_is_that_of_the_narrowed_block(family: str) -> None:
    model = make_model(family, **IN_GROUPS.get(family, {}))
    block, index, stream = last_block(model)
    before = [batch.hidden.clone() for batch in stream.batches]
    fewer = FewerExperts(model)
    absences = Absences(block, index, stream, fewer)
    mixture = find_experts(block).rpartition(".")[0]
    dense = outputs_of(block, mixture, index, stream)
    sets = [[0, 1, 2, 4, 5, 6], [1, 2, 3, 4, 5, 7]] if family in IN_GROUPS else [[3, 0, 2], [1, 3]]
    for keep in sets:
        smaller = narrowed(block, fewer.make(index)(len(keep)), keep)
        output = outputs_of(smaller, mixture, index, stream)
        error = float((dense - output).square().sum() / dense.square().sum())
        assert absences.without(keep).error == pytest.approx(error, rel=1e-4)
        assert error > 1e-4
    everyone = range(8 if family in IN_GROUPS else 4)
    assert absences.without(everyone).error < 1e-10
    assert not [one for module in block.modules() for one in module._forward_hooks]
    for batch, hidden in zip(stream.batches, before, strict=True):
        assert torch.equal(batch.hidden, hidden)


def test_the_search_takes_the_least_each_time_and_scores_the_others_anew() -> None:
    """Experts 0 and 1 replace each other: either can go, not both."""

    def score(left: Sequence[int]) -> float:
        gone = {*range(4)} - {*left}
        alone = {0: 0.1, 1: 0.2, 2: 0.5, 3: 0.9}
        return sum(alone[one] for one in gone) + (5.0 if {0, 1} <= gone else 0.0)

    assert choose_by_absence(score, 4, 1) == ((0,), (0.1, 0.2, 0.5, 0.9))
    assert choose_by_absence(score, 4, 2)[0] == (0, 2)  # by single scores it would be 0 and 1
    assert choose_by_absence(score, 4, 3)[0] == (0, 2, 3)


def test_groups_lose_one_each_and_are_asked_about_no_other_numbers() -> None:
    asked: list[list[int]] = []

    def score(left: Sequence[int]) -> float:
        asked.append([*left])
        worth = [4.0, 1.0, 2.0, 3.0, 7.0, 8.0, 5.0, 6.0]
        return sum(worth[one] for one in {*range(8)} - {*left})

    removed, first = choose_by_absence(score, 8, 4, groups=2)
    assert removed == (1, 6, 2, 7)
    assert len(first) == 8
    for left in asked:
        assert sum(one < 4 for one in left) == sum(one >= 4 for one in left)
    assert len(asked) == 8 + 6


@pytest.mark.parametrize("family", ["mixtral", "granitemoe", "gpt_oss"])
@torch.no_grad()
def test_an_expert_and_its_copy_replace_each_other(family: str) -> None:
    """Two experts with the same matrices and the same row: one goes first, and never both."""
    model = make_model(family, num_local_experts=6, num_experts_per_tok=1)
    block, index, stream = last_block(model)
    twins = (1, 4)
    within = find_experts(block).rpartition(".")[0]
    for tensor in block.get_submodule(within).parameters():
        if tensor.shape[0] == 6:
            tensor[twins[1]] = tensor[twins[0]]
    absences = Absences(block, index, stream, FewerExperts(model))
    measure: Any = get("replacement").removal.of_absence
    removed, first = choose_by_absence(lambda keep: measure(absences.without(keep)), 6, 3)
    assert [first[twin] for twin in twins] == pytest.approx([0, 0], abs=1e-9)
    assert removed[0] in twins
    assert len({*removed} & {*twins}) == 1
