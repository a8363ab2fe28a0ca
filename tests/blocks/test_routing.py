"""What is seen of a router, against a loop over tokens; and the choice of experts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from families import EXPERT_FAMILIES, configuration
from secateur.blocks.fewer_experts import find_experts
from secateur.blocks.routing import Router, RoutingSums, advance_and_see, choose_experts
from secateur.blocks.stream import Stream
from secateur.checkpoint import ResidentModel
from secateur.errors import PatternError
from secateur.methods import Routing, get
from secateur.sparsity import Structures
from tiny import make_model, make_tokens


def one_token(experts: Any, expert: int, x: Tensor) -> Tensor:
    """What one expert makes of one token x [width], from its weights by hand."""
    up, down = experts.gate_up_proj[expert], experts.down_proj[expert]
    both = x @ up if experts.is_transposed else up @ x
    both = both + experts.gate_up_proj_bias[expert] if experts.has_bias else both
    inner = experts._apply_gate(both[None])[0]
    output = inner @ down if experts.is_transposed else down @ inner
    return output + experts.down_proj_bias[expert] if experts.has_bias else output


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
@torch.no_grad()
def test_sums_equal_a_loop_over_tokens(family: str) -> None:
    model = make_model(family)
    source = ResidentModel(model, torch.device("cpu"), torch.float32)
    stream = Stream(source, make_tokens(5, 12), 2)
    for index, block in enumerate(source.blocks.modules[:-1]):
        found = advance_and_see(stream, block, index)
        assert (found is None) is (find_experts(block) is None)
    block, index = source.blocks.modules[-1], len(source.blocks) - 1
    name: Any = find_experts(block)
    experts: Any = block.get_submodule(name)
    calls: list[Any] = []
    handle = experts.register_forward_pre_hook(lambda _, args: calls.append(args))
    outputs = [batch.run(block, index) for batch in stream.batches]
    handle.remove()

    expected = torch.zeros(4, 4, dtype=torch.float64)
    for x, chosen, gates in calls:
        for token in range(len(x)):
            for expert, gate in zip(chosen[token].tolist(), gates[token].tolist(), strict=True):
                norm = float(one_token(experts, expert, x[token]).norm())
                expected[:, expert] += torch.tensor([1, gate, norm, gate * norm])
    found = advance_and_see(stream, block, index)
    for name, sums in zip(("tokens", "gates", "norms", "gated_norms"), expected, strict=True):
        torch.testing.assert_close(getattr(found, name), sums, rtol=1e-5, atol=1e-6)
    assert found.tokens.sum() == 5 * 12 * 2
    for batch, output in zip(stream.batches, outputs, strict=True):
        torch.testing.assert_close(batch.hidden, output, rtol=1e-5, atol=1e-5)
    assert "forward" not in vars(experts)


def importance(method: str, routing: Routing) -> list[float]:
    score: Any = get(method).removal.of_routing
    return score(routing).tolist()


def test_scores_by_hand() -> None:
    routing = Routing(
        tokens=torch.tensor([4.0, 0.0, 2.0]),
        gates=torch.tensor([2.0, 0.0, 0.4]),
        norms=torch.tensor([8.0, 0.0, 12.0]),
        gated_norms=torch.tensor([4.0, 0.0, 2.4]),
    )
    assert importance("frequency", routing) == [4, 0, 2]
    assert importance("man", routing) == [2, 0, 6]
    assert importance("reap", routing) == pytest.approx([1, 0, 1.2])


def test_reap_is_the_mean_over_tokens_and_not_over_experts() -> None:
    """An expert of few tokens that counts much for each is kept before one of many and little."""
    routing = Routing(
        tokens=torch.tensor([100.0, 1.0]),
        gates=torch.tensor([10.0, 0.9]),
        norms=torch.tensor([100.0, 1.0]),
        gated_norms=torch.tensor([10.0, 0.9]),
    )
    assert choose_experts(importance("reap", routing), 1) == (0,)
    assert choose_experts(importance("frequency", routing), 1) == (1,)


def test_the_least_important_go_as_many_from_every_group() -> None:
    scores = [3.0, 1.0, 2.0, 0.5, 9.0, 8.0, 7.0, 6.0]
    assert choose_experts(scores, 2) == (3, 1)
    assert choose_experts(scores, 2, groups=2) == (3, 7)
    assert choose_experts(scores, 4, groups=2) == (3, 7, 1, 6)  # in turns
    assert choose_experts(scores, 4, groups=4) == (1, 3, 5, 7)
    assert choose_experts([1.0, 1.0, 1.0], 2) == (0, 1)  # of equals the first
    with pytest.raises(ValueError, match="3 of 8 experts in 2 groups"):
        choose_experts(scores, 3, groups=2)


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
def test_a_router_is_read_from_the_configuration(family: str) -> None:
    router = Router.of(configuration(family), 4)
    assert (router.experts, router.picked) == (4, 2)
    assert router.groups == (2 if family in ("deepseek_v3", "deepseek_v32") else 1)


def experts(amount: str) -> Structures:
    """`experts-2` or `experts-25%` as a pattern."""
    number = amount.removeprefix("experts-")
    if number.endswith("%"):
        return Structures("experts", share=int(number[:-1]) / 100)
    return Structures("experts", count=int(number))


@pytest.mark.parametrize(
    ("pattern", "router", "removed"),
    [
        ("experts-2", Router(8, 2), 2),
        ("experts-25%", Router(8, 2), 2),
        ("experts-6", Router(8, 2), 6),
        ("experts-45%", Router(16, 4, groups=4, open_groups=2), 8),  # 7, and 8 is two of each
        ("experts-8", Router(16, 4, groups=4, open_groups=2), 8),
    ],
)
def test_how_many_go(pattern: str, router: Router, removed: int) -> None:
    assert router.removed_of(experts(pattern)) == removed


@pytest.mark.parametrize(
    ("pattern", "router", "complaint"),
    [
        (
            "experts-7",
            Router(8, 2),
            "experts-7 leaves 1 of 8 experts, and 2 see each token; wanted 2 left at least; try"
            " experts-6",
        ),
        (
            "experts-1",
            Router(8, 8),
            "experts-1 leaves 7 of 8 experts, and 8 see each token; wanted 8 left at least; try a"
            " pattern that removes no experts",
        ),
        ("experts-8", Router(8, 2), "experts-8 removes 8 of 8 experts"),
        (
            "experts-3",
            Router(8, 2, groups=2),
            "experts-3 removes 3 of 8 experts, which lie in 2 groups; wanted a multiple of 2: as"
            " many from each; try experts-2",
        ),
        (
            "experts-10%",
            Router(16, 4, groups=4),
            "experts-10% removes 1 of 16 experts, which lie in 4 groups; wanted a multiple of 4: as"
            " many from each; try experts-4",
        ),
        (
            "experts-8",
            Router(16, 6, groups=4, open_groups=2),
            "experts-8 leaves 8 of 16 experts, and 6 see each token, out of 2 groups; wanted 12"
            " left at least; try experts-4",
        ),
    ],
)
def test_what_a_router_cannot_lose_is_one_line(
    pattern: str, router: Router, complaint: str
) -> None:
    with pytest.raises(PatternError) as fault:
        router.removed_of(experts(pattern))
    assert str(fault.value).startswith(complaint)


def test_a_process_that_has_no_sequences_has_sums_of_nothing() -> None:
    block: Any = make_model("mixtral").model.layers[0]
    routing = RoutingSums(block.mlp.experts).total()
    assert routing.tokens.tolist() == [0, 0, 0, 0]
    assert importance("reap", routing) == [0, 0, 0, 0]
