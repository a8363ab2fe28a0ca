"""The estimate of a dry run against counts made by hand and by torch's own FLOP counter."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from secateur.checkpoint import ResidentModel, find_matrices, open_model
from secateur.errors import PatternError
from secateur.methods import get
from secateur.pruning.estimate import estimate
from secateur.pruning.prepare import prepare
from secateur.recipe import Plan, Recipe, Regional
from secateur.sparsity import SELECTION_KEYS, Selection, parse_pattern, read_selection
from tiny import BLOCKS, Command, make_model, make_tokens, save

SEQUENCES, LENGTH = 8, 32


def of(source: Any, method: str, pattern: Any = "2:4", **changes: Any) -> Any:
    chosen = get(method)
    plan = Plan(
        chosen, chosen.params(), Selection(parse_pattern(pattern)),
        Regional(rounds=2, samples=4), 0,
        **changes,
    )  # fmt: skip
    return estimate(source, plan, SEQUENCES, LENGTH)


def resident(family: str = "llama") -> Any:
    return ResidentModel(make_model(family), torch.device("cpu"), torch.float32)


def test_weights_are_counted_as_the_model_has_them() -> None:
    source = resident()
    prunable = sum(
        matrix.read().numel() for block in source.blocks.modules for matrix in find_matrices(block)
    )
    shapes = of(source, "wanda")
    assert shapes.blocks == 3
    assert shapes.prunable_weights == prunable
    assert shapes.other_weights == sum(p.numel() for p in source.model.parameters()) - prunable
    assert shapes.activation_bytes == 2 * SEQUENCES * LENGTH * 32 * 4


def test_tied_embeddings_count_once(tmp_path: Path) -> None:
    model = make_model("llama", tie_word_embeddings=True)
    source = open_model(save(model, tmp_path), torch.device("cpu"), torch.float32)
    for _ in range(2):  # before anything is open, and after
        shapes = of(source, "wanda")
        assert shapes.prunable_weights + shapes.other_weights == model.num_parameters()
        with source.open_surroundings():
            pass


@pytest.mark.parametrize(
    "choice",
    [
        {"exclude": ["mlp"]}, {"include": ["q_proj"]}, {"blocks": "1-"}, {"dense_first": 2},
        {"patterns": {"k_proj": "1:4"}, "include": ["k_proj"]},
    ],
    ids=str,
)  # fmt: skip
def test_only_weights_that_the_selection_chooses_are_to_be_pruned(choice: dict[str, Any]) -> None:
    source, selection = resident(), read_selection({"pattern": "2:4", **choice})
    plan = Plan(get("wanda"), get("wanda").params(), selection, Regional(), 0)
    shapes, whole = estimate(source, plan, SEQUENCES, LENGTH), of(source, "wanda")
    chosen = sum(
        matrix.read().numel()
        for index, block in enumerate(source.blocks.modules)
        for matrix in find_matrices(block)
        if selection.pattern_of(index, source.blocks.prefix(index) + matrix.name) is not None
    )
    assert 0 < shapes.prunable_weights == chosen < whole.prunable_weights
    total = shapes.prunable_weights + shapes.other_weights
    assert total == sum(p.numel() for p in source.model.parameters())
    assert shapes.flops == whole.flops  # dense matrices run too


def test_the_keys_of_a_selection_are_its_fields() -> None:
    names = {field.name for field in fields(Selection)}
    assert set(SELECTION_KEYS) == names - {"pattern", "before"}


def test_a_dry_run_says_what_it_chooses(
    command: Command, llama_folder: Path, tokens_file: Path
) -> None:
    arguments = ("prune", llama_folder, "--method", "wanda", "--calibration", tokens_file,
                 "--samples", 4, "--sequence-length", 16, "--dry-run")  # fmt: skip
    assert "selection" not in command(*arguments).out
    chosen = ("--exclude", "mlp", "--exclude", "q_proj", "--dense-first", 1,
              "--patterns", "k_proj=1:4")  # fmt: skip
    out = command(*arguments, *chosen).out
    (line,) = [line for line in out.splitlines() if line.startswith("selection")]
    assert line.split(maxsplit=1)[1] == "exclude mlp q_proj, dense_first 1, patterns k_proj=1:4"


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "mixtral"])
def test_the_work_of_a_pass_is_what_torch_counts(family: str) -> None:
    """Wanda is two forward passes through every block; torch counts eager attention only."""
    source = resident(family)
    source.model.set_attn_implementation("eager")
    source.model.set_experts_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        source.model.base_model(input_ids=make_tokens(SEQUENCES, LENGTH), use_cache=False)
    near = 0.02 if family == "mixtral" else 0.01  # its routers are left out
    assert of(source, "wanda").flops == pytest.approx(2 * counter.get_total_flops(), rel=near)


def test_passes_over_a_block_by_method() -> None:
    source = resident()
    one = of(source, "wanda").flops / 2
    passes = {m: of(source, m).flops / one for m in ("sparsegpt", "gblm", "wanda++-rgs")}
    # four balances are tried, on all of so few sequences
    assert passes == pytest.approx({"sparsegpt": 2, "gblm": 6, "wanda++-rgs": 4 + 4})
    # the dense stream; two rounds of 4 of the 8 sequences, forward and backward
    assert of(source, "wanda++-ro").flops / one == pytest.approx(3 + 3)
    assert of(source, "wanda++").flops / one == pytest.approx(5 + 4 + 3)
    by_matrix = {m: of(source, m, schedule="matrix") for m in ("wanda", "gblm")}
    assert by_matrix["wanda"].flops / one == pytest.approx(1)
    assert by_matrix["gblm"].flops / one == pytest.approx(5)
    # hidden states, residual, and what the widest matrix reads
    assert by_matrix["wanda"].activation_bytes == SEQUENCES * LENGTH * (32 + 32 + 64) * 4


def test_nothing_is_loaded_for_it(llama_folder: Path) -> None:
    source = open_model(llama_folder, torch.device("cpu"), torch.float32)
    of(source, "wanda++")
    assert all(p.device.type == "meta" for p in source.model.parameters())


def test_a_pattern_that_does_not_fit_is_found_before_any_work() -> None:
    with pytest.raises(PatternError, match=r"groups of 7 .* in model\.layers\.0\."):
        of(resident(), "wanda", "3:7")


def test_a_search_among_blocks_is_counted(llama_folder: Path, tokens_file: Path) -> None:
    def flops(method: str, **changes: Any) -> float:
        recipe = Recipe.build(
            {"model": str(llama_folder), "calibration": str(tokens_file), "samples": 8,
             "sequence_length": 32, "out": "o", "method": method, "pattern": "blocks-2", **changes}
        )  # fmt: skip
        return prepare(recipe).estimate.flops

    one_pass = flops("shortgpt")
    assert flops("shortened-llama") == (1 + (BLOCKS + 1) / 2) * one_pass
    assert flops("greedy") == (1 + 2 * (BLOCKS + 1) / 2) * one_pass
    assert flops("magnitude") == 0
    assert flops("shortgpt", mend=True) > 4 * one_pass
