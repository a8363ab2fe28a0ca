"""What suits a block: the candidate whose pruned block errs least, token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import secateur
from secateur.blocks.judge import best_of
from secateur.blocks.observe import observe
from secateur.blocks.observer import ToGather
from secateur.blocks.stream import Stream
from secateur.blocks.task import Task
from secateur.checkpoint import ResidentModel, find_matrices
from secateur.methods import Params
from secateur.methods.wandapp import RegionalGradientParams
from tiny import make_model, make_tokens


def task_of(sequences: int) -> Task:
    """Block 0 of a tiny Llama, which is to make of its inputs what it makes of them."""
    source = ResidentModel(make_model("llama"), torch.device("cpu"), torch.float32)
    block = source.blocks.modules[0].requires_grad_(False)
    with source.open_surroundings():
        stream = Stream(source, make_tokens(sequences, 16), 4)
    matrices = find_matrices(block)
    targets = observe(block, 0, stream, matrices, ToGather(frozenset())).outputs
    return Task(block, 0, matrices, stream, targets)


def scaled(task: Task, by: float) -> dict[str, torch.Tensor]:
    """The dense weights, each times a number."""
    return {matrix.name: matrix.read().float() * by for matrix in task.matrices}


def test_the_candidate_that_errs_least_suits_the_block() -> None:
    task = task_of(6)
    candidates = [RegionalGradientParams(alpha=alpha) for alpha in (8.0, 1.0, 2.0)]

    def prune(params: Params) -> Any:
        assert isinstance(params, RegionalGradientParams)
        return scaled(task, 1 + params.alpha / 100)

    assert best_of(task, candidates, prune) is candidates[1]
    assert best_of(task, candidates, lambda _: scaled(task, 1.01)) is candidates[0]  # a tie


def test_every_token_counts_alike_whatever_its_size() -> None:
    """A token a thousand times as large as the others does not decide alone."""
    task = task_of(6)
    for target in task.targets:
        target[:, 0] *= 1000  # far from what any of the candidates makes of it
    near, far = RegionalGradientParams(alpha=1.0), RegionalGradientParams(alpha=0.0)

    def prune(params: Params) -> Any:
        return scaled(task, 1.0 if params is near else 1.5)  # 1.5 is nearer to the first token

    assert best_of(task, [far, near], prune) is near


@pytest.mark.parametrize("method", ["wanda++-rgs", "wanda++"])
def test_blocks_choose_and_the_record_says_what(method: str) -> None:
    settings: dict[str, Any] = {"regional": {"rounds": 1}} if method == "wanda++" else {}
    run = secateur.prune(
        make_model("llama"), method=method, calibration=make_tokens(8, 16), **settings
    )
    chosen = [block.parameters["alpha"] for block in run.blocks]
    assert len(chosen) > 1
    assert set(chosen) <= {0.0, 25.0, 100.0, 400.0}


def test_a_choice_equals_a_run_with_what_was_chosen() -> None:
    """One block: told at once what it chose, it gets the same weights."""
    chooser, told = make_model("llama"), make_model("llama")
    tokens = make_tokens(8, 16)
    run = secateur.prune(chooser, method="wanda++-rgs", calibration=tokens, blocks="0")
    alpha = run.blocks[0].parameters["alpha"]
    same = secateur.prune(
        told, method="wanda++-rgs", calibration=tokens, blocks="0",
        parameters={"alpha": alpha, "by_block": False},
    )  # fmt: skip
    assert same.blocks[0].parameters == {}
    for (name, one), (_, other) in zip(
        chooser.named_parameters(), told.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name


def test_preset_paper_takes_the_published_alpha_everywhere() -> None:
    run = secateur.prune(
        make_model("llama"), method="wanda++", preset="paper", calibration=make_tokens(4, 16)
    )
    assert run.recipe["parameters"]["by_block"] is False
    assert all(block.parameters == {} for block in run.blocks)
