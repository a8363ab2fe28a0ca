"""How often the calibration goes through every block, by method and schedule: docs/performance.md.

Counted in the attention and in the last matrix of every block, which a hollow run does not reach.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from torch import Tensor, nn

import secateur
from secateur import methods
from secateur.methods import Refine, get
from secateur.methods.wandapp import FACTORS
from tiny import BLOCKS, make_model, make_tokens

SEQUENCES = 8
SCOUT = Fraction(1, SEQUENCES)
"""The one sequence that runs ahead in the schedule "matrix"."""
DRAWN = Fraction(2 * 4, SEQUENCES)
"""What the optimiser draws in two rounds of four sequences."""
TRIED = len(FACTORS)
"""Once for each alpha that a block chooses among; all of so few sequences judge."""
PASSES = {
    "magnitude": (0, 0),
    "wanda": (2, 0),
    "sparsegpt": (2, 0),
    "alps": (2, 0),
    "alps-ro": (2 + DRAWN, DRAWN),
    "gblm": (4, 1),
    "wanda++-rgs": (2 + TRIED, 1),
    "wanda++-ro": (2 + DRAWN, DRAWN),
    "wanda++": (2 + TRIED + DRAWN, 1 + DRAWN),
}
"""Method -> forward and backward passes through every block, with the schedule "block"."""
IN_ONE_PASS = {
    "magnitude": (0, 0),
    "wanda": (1 + SCOUT, 0),
    "sparsegpt": (1 + SCOUT, 0),
    "alps": (1 + SCOUT, 0),
    "gblm": (3 + SCOUT, 1),
}
"""The same with the schedule "matrix"."""


class Counter:
    """Counts the sequences that go through each block, forward and backward.

    Attributes:
        forward, backward: through its attention, by block.
        to_the_end: forward through its last matrix, by block.
    """

    def __init__(self, layers: nn.ModuleList) -> None:
        self.forward = [0] * len(layers)
        self.backward = [0] * len(layers)
        self.to_the_end = [0] * len(layers)
        for number, layer in enumerate(layers):
            layer.self_attn.register_forward_hook(self._hook(number))
            layer.mlp.down_proj.register_forward_hook(self._at_the_end(number))

    def _hook(self, number: int) -> Any:
        def back(gradient: Tensor) -> None:
            self.backward[number] += len(gradient)

        def count(module: nn.Module, args: Any, output: tuple[Tensor, ...]) -> None:
            self.forward[number] += len(output[0])
            if output[0].requires_grad:
                output[0].register_hook(back)

        return count

    def _at_the_end(self, number: int) -> Any:
        def count(module: nn.Module, args: Any, output: Tensor) -> None:
            self.to_the_end[number] += len(output)

        return count


@pytest.mark.parametrize(
    ("method", "pattern", "settings", "passes"),
    [
        ("wanda", "2:4", {"quantize_by": "gptq"}, 3),
        ("wanda", "2:4", {"quantize_by": "rtn"}, 2),
        ("wanda", "2:4", {"quantize_by": "gptq", "schedule": "matrix"}, 1 + SCOUT),
        ("magnitude", "dense", {"quantize_by": "gptq"}, 2),
        ("magnitude", "2:4", {"quantize_by": "gptq"}, 2 + Fraction(3, SEQUENCES)),
    ],
)  # fmt: skip
def test_passes_of_what_is_quantised(
    method: str, pattern: str, settings: dict[str, Any], passes: Fraction
) -> None:
    """A block that was pruned runs once more; by magnitude the dense one for a batch alone."""
    model = make_model("llama")
    counter = Counter(model.model.layers)
    secateur.prune(
        model, calibration=make_tokens(SEQUENCES, 16), samples=SEQUENCES, sequence_length=16,
        batch_size=3, method=method, pattern=pattern, quantize="w8a16", **settings,
    )  # fmt: skip
    assert counter.forward[:-1] == [passes * SEQUENCES] * (BLOCKS - 1)


def test_every_method_is_counted() -> None:
    assert PASSES.keys() == {method.name for method in methods.every()}


@pytest.mark.parametrize("batch_size", [3, 8])
@pytest.mark.parametrize(
    ("schedule", "method"),
    [*(("block", name) for name in PASSES), *(("matrix", name) for name in IN_ONE_PASS)],
)
def test_passes(schedule: str, method: str, batch_size: int) -> None:
    model = make_model("llama")
    counter = Counter(model.model.layers)
    options: dict[str, Any] = {"schedule": schedule, "method": method, "batch_size": batch_size}
    if get(method).refine is Refine.REGIONAL:
        options["regional"] = {"rounds": 2, "samples": 4, "target": "block", "judges": 0}
    if method != "magnitude":
        tokens = make_tokens(SEQUENCES, 16)
        options |= {"calibration": tokens, "samples": SEQUENCES, "sequence_length": 16}
    secateur.prune(model, **options)
    forward, backward = (PASSES if schedule == "block" else IN_ONE_PASS)[method]
    expected = [forward * SEQUENCES] * BLOCKS
    not_first = SEQUENCES - batch_size  # those after the first batch
    if schedule == "block" and method != "magnitude":
        expected[-1] -= not_first  # nothing reads what they become in the last block
    assert counter.forward == expected
    assert counter.backward == [backward * SEQUENCES] * BLOCKS
    if schedule == "block" and method in IN_ONE_PASS.keys() - {"magnitude"}:
        expected = [sequences - not_first for sequences in expected]  # no output to compare with
    assert counter.to_the_end == expected


def test_the_dense_models_stream_is_one_pass_more_and_judges_look_before_and_after() -> None:
    model = make_model("llama")
    counter = Counter(model.model.layers)
    secateur.prune(
        model,
        method="wanda++-ro",
        calibration=make_tokens(SEQUENCES, 16),
        samples=SEQUENCES,
        sequence_length=16,
        regional={"rounds": 2, "samples": 4, "judges": 2},
        batch_size=3,
    )
    drawn, judged = 2 * 4, 3 * 2
    first = 2 * SEQUENCES + drawn + judged  # what enters it is the same in both models
    not_first = SEQUENCES - 3  # those after the first batch
    expected = [first] + [first + SEQUENCES] * (BLOCKS - 1)
    expected[-1] -= not_first  # nothing reads what they become in the last block
    assert counter.forward == expected
    # Above the first block only the statistics of the pruned stream are wanted, and one batch.
    assert counter.to_the_end == expected[:1] + [passes - not_first for passes in expected[1:]]
    assert counter.backward == [drawn] * BLOCKS


def test_magnitude_measures_its_damage_if_it_is_given_data() -> None:
    model = make_model("llama")
    counter = Counter(model.model.layers)
    options: dict[str, Any] = {"samples": SEQUENCES, "sequence_length": 16}
    run = secateur.prune(
        model, method="magnitude", calibration=make_tokens(SEQUENCES, 16), **options
    )
    assert counter.forward == [2 * SEQUENCES] * BLOCKS
    assert run.mean_output_error is not None
