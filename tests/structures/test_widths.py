"""Channels and heads removed: the choice against brute force, the result against the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import secateur
import tiny
from families import EVERY_FAMILY
from secateur.blocks.narrowed import Narrowed
from secateur.checkpoint import find_blocks
from secateur.errors import CheckpointError, ModelError, SecateurError
from secateur.record import RunRecord
from secateur.record.narrowed import LostWidth, written
from secateur.sparsity import Structures, parse_pattern
from tiny import make_model, make_tokens

CHANNELS, GROUPS = 64, 4
"""Of a feed-forward layer and of key-value heads in a block of the models here."""


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama of three blocks with four key-value heads of two queries each."""
    model = make_model(
        "llama", num_hidden_layers=3, hidden_size=48, num_attention_heads=8, head_dim=4,
        num_key_value_heads=GROUPS,
    )  # fmt: skip
    return tiny.save(model, tmp_path_factory.mktemp("dense") / "llama")


def lost_by(run: RunRecord) -> LostWidth:
    """What a run of one stage removed of every block."""
    (lost,) = run.lost
    assert isinstance(lost, LostWidth)
    return lost


def gone(lost: LostWidth, block: int) -> list[int]:
    """The numbers of what a block lost."""
    return sorted({*range(lost.of)} - {*lost.kept[block]})


# --- the choice ---


def seen_by(dense: Path, tokens: Tensor, name: str) -> list[tuple[Tensor, Tensor]]:
    """What a linear layer of every block reads of some tokens [tokens, in], and its weight."""
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    layers = [block.get_submodule(name) for block in model.model.layers]
    seen: list[Tensor] = []
    for layer in layers:
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        model(tokens, use_cache=False)
    return [(read, layer.weight.detach()) for read, layer in zip(seen, layers, strict=True)]


def least(importance: Tensor, count: int) -> list[int]:
    """The numbers of the least important, ascending."""
    return sorted(importance.argsort(stable=True)[:count].tolist())


def test_wanda_sums_its_scores_over_the_weights_that_read_a_channel(
    remove: Callable[..., Any], dense: Path, tokens: Tensor
) -> None:
    _, run = remove("ffn-12", "wanda")
    for block, (inputs, weight) in enumerate(seen_by(dense, tokens[:8], "mlp.down_proj")):
        importance = (weight.abs() * inputs.norm(dim=0)).sum(dim=0)
        assert gone(lost_by(run), block) == least(importance, 12)


def test_activation_is_the_sum_of_squares_of_what_a_head_gives(
    remove: Callable[..., Any], dense: Path, tokens: Tensor
) -> None:
    _, run = remove("heads-1", "activation")
    for block, (inputs, _) in enumerate(seen_by(dense, tokens[:8], "self_attn.o_proj")):
        importance = inputs.square().sum(dim=0).view(GROUPS, -1).sum(dim=1)
        assert gone(lost_by(run), block) == least(importance, 1)


def test_magnitude_sums_the_weights_that_read_a_head_and_needs_no_data(
    remove: Callable[..., Any], dense: Path
) -> None:
    _, run = remove("heads-25%", "magnitude", calibration=None)
    weights = tiny.weights_of(dense)
    for block in range(3):
        read = weights[f"model.layers.{block}.self_attn.o_proj.weight"].abs()
        importance = read.sum(dim=0).view(GROUPS, -1).sum(dim=1)
        assert gone(lost_by(run), block) == least(importance, 1)


def test_a_regional_gradient_chooses_channels_too(remove: Callable[..., Any]) -> None:
    _, by_gradient = remove("ffn-25%", "wanda++-rgs", width_multiple=1)
    assert (lost_by(by_gradient).lost, by_gradient.method) == (16, "wanda++-rgs")


@pytest.mark.parametrize(
    ("pattern", "total", "multiple", "removed"),
    [
        ("ffn-20%", 1536, 64, 320),
        ("ffn-20%", 1536, 1, 307),
        ("ffn-20%", 100, 64, 36),
        ("ffn-5%", 128, 64, 6),  # a multiple would leave nothing to remove
        ("ffn-307", 1536, 64, 307),
        ("heads-34%", 3, 1, 1),
    ],
)
def test_a_share_leaves_a_multiple(pattern: str, total: int, multiple: int, removed: int) -> None:
    asked = parse_pattern(pattern)
    assert isinstance(asked, Structures)
    counted = asked.removed_of(total, multiple if asked.share else 1)
    assert (asked.removed_of(total, multiple), counted) == (removed, removed)


# --- what is left ---


def silenced(model: PreTrainedModel, lost: LostWidth) -> PreTrainedModel:
    """The dense model, zeros where what is gone was read."""
    with torch.no_grad():
        for index, block in enumerate(find_blocks(model).modules):
            held = dict(block.named_parameters())
            for one in lost.cuts:
                if one.reads and one.parameter in held:
                    places = one.cut.places(gone(lost, index), lost.of)
                    held[one.parameter].index_fill_(one.dim, places, 0)
    return model


@pytest.mark.parametrize(
    ("pattern", "setting", "left"),
    [("ffn-16", "intermediate_size", 48), ("heads-1", "num_key_value_heads", 3)],
)
@pytest.mark.parametrize("method", ["wanda", "magnitude", "activation", "wanda++-rgs"])
def test_the_result_is_the_dense_model_without_them(
    pattern: str, setting: str, left: int, method: str, remove: Callable[..., Any],
    dense: Path, tokens: Tensor,
) -> None:  # fmt: skip
    out, run = remove(pattern, method)
    model, told = AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, output_loading_info=True
    )
    assert not any(told.values())
    assert getattr(model.config, setting) == left
    whole = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    by_hand = silenced(whole, lost_by(run))
    with torch.no_grad():
        given = model(tokens, use_cache=False).logits
        assert torch.allclose(given, by_hand(tokens, use_cache=False).logits, atol=1e-5)
        assert torch.equal(given, secateur.load(out)(tokens, use_cache=False).logits)
    written_on = model.generate(tokens[:1, :4], max_new_tokens=5, do_sample=False)
    assert written_on.shape == (1, 9)
    assert run.weights < run.dense_weights == sum(
        weight.numel() for name, weight in tiny.weights_of(dense).items()
        if "layers" in name and weight.dim() == 2
    )  # fmt: skip


CANNOT: dict[str, set[str]] = {
    "ffn": {
        # no setting says how many channels there are
        "bloom", "mamba2", "mpt", "openai-gpt", "gpt_neo",
        # a norm over all channels counts them
        "bitnet",
        # channels lie within the experts
        "flex_olmo", "gpt_oss", "granitemoe",
        "minimax", "minimax_m2", "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe",
        "qwen3_next",
    },
    "heads": {
        # the size of a head follows from how many there are
        "opt", "opt-projected", "gpt2", "gpt_neox", "bloom", "falcon", "stablelm", "gptj",
        "codegen", "openai-gpt", "gpt_neo", "mpt", "biogpt", "xglm",
        # a norm over all heads, or over all that they give, counts them
        "olmo2", "olmoe", "flex_olmo", "olmo_hybrid", "minimax_m2", "bitnet",
        # one key-value head, or none, or blocks with others
        "gpt_bigcode", "mamba2", "gemma4", "kimi_linear", "minimax",
    },
}  # fmt: skip
"""Families that are refused, and why."""


@pytest.mark.parametrize("family", [name for name in EVERY_FAMILY if "images" not in name])
def test_every_family_narrower_or_refused_in_a_line(family: str, tmp_path: Path) -> None:
    model = make_model(family)
    folder, tokens = tiny.save(model, tmp_path / "dense"), make_tokens(2, 24)
    ways: dict[str, dict[str, Any]] = {
        "ffn": {"method": "magnitude", "pattern": "ffn-25%", "width_multiple": 1},
        "heads": {"method": "magnitude", "pattern": "heads-50%"},
    }
    for unit, options in ways.items():
        out = tmp_path / unit
        if family in CANNOT[unit]:
            with pytest.raises(SecateurError) as refused:
                secateur.prune(folder, out=out, **options)
            assert "\n" not in str(refused.value)
            assert not out.exists()
            continue
        run = secateur.prune(folder, out=out, **options)
        loaded, found = AutoModelForCausalLM.from_pretrained(
            out, dtype=torch.float32, output_loading_info=True
        )
        assert not any(found.values())
        whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            given = loaded(tokens, use_cache=False).logits
            expected = silenced(whole, lost_by(run))(tokens, use_cache=False).logits
            assert torch.allclose(given, expected, atol=1e-4)
            told = secateur.load(out)(tokens, use_cache=False).logits
            assert torch.equal(given, told)
        loaded.generate(tokens[:, :4], max_new_tokens=2, do_sample=False)


def test_ziplm_lets_the_rest_make_up_for_what_goes(
    remove: Callable[..., Any], dense: Path, tokens: Tensor
) -> None:
    out, run = remove("ffn-24", "ziplm")
    kept, lost = list(lost_by(run).kept[0]), gone(lost_by(run), 0)
    inputs, weight = seen_by(dense, tokens[:8], "mlp.down_proj")[0]
    hessian = inputs.double().T @ inputs.double()
    own = hessian[kept][:, kept]
    own = own + 0.01 * own.diagonal().mean() * torch.eye(len(kept))
    added = torch.linalg.solve(own, weight[:, lost].double() @ hessian[lost][:, kept], left=False)
    expected = weight[:, kept].double() + added
    stored = tiny.weights_of(out)["model.layers.0.mlp.down_proj.weight"]
    assert torch.allclose(stored.double(), expected, atol=1e-5)
    assert added.norm() > 0.01 * expected.norm()
    dense_output = inputs @ weight.T
    cut, corrected = (inputs[:, kept] @ one.T for one in (weight[:, kept], stored))
    assert (corrected - dense_output).norm() < 0.9 * (cut - dense_output).norm()
    proof = secateur.check(out, source=dense)
    assert (proof.complaint, proof.unlike) == (None, ())
    assert "but for mlp.down_proj.weight, which ziplm changed: all" in str(proof.kept)


# --- as any other run ---


def test_mending_takes_back_some_of_the_damage(
    remove: Callable[..., Any], calibration: str, dense: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"text": calibration, "windows": 8, "width_multiple": 16}
    _, mended = remove("ffn-50%", "wanda", mend=True, **options)
    plain = secateur.prune(
        dense, method="wanda", pattern="ffn-50%", out=tmp_path / "plain", calibration=calibration,
        samples=8, sequence_length=32, **options,
    )  # fmt: skip
    assert mended.lost == plain.lost
    (after,), (before,) = mended.evaluations, plain.evaluations
    assert after.divergence < 0.9 * before.divergence
    assert all(block.judged[1] <= block.judged[0] for block in mended.blocks)
    assert secateur.check(tmp_path / "out").complaint is None


def test_a_run_that_was_stopped_ends_in_the_same_bits(
    remove: Callable[..., Any], in_two_goes: Callable[..., Any], calibration: str
) -> None:
    options: dict[str, Any] = {"text": calibration, "mend": True, "regional": {"rounds": 1}}
    whole, run = in_two_goes(
        lambda: remove("heads-1", "wanda", **options)[1],
        Narrowed,
        "secateur.pruning.widths._importance",
    )
    assert run.lost == whole.lost
    assert run.evaluations[0].perplexity == whole.evaluations[0].perplexity


def test_structures_zeros_and_training_follow_each_other(
    dense: Path, calibration: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = secateur.prune(
        dense, calibration=calibration, text=calibration, out=out, samples=8, sequence_length=32,
        stages=[{"method": "shortgpt", "pattern": "blocks-1"},
                {"method": "wanda", "pattern": "ffn-16"},
                {"method": "magnitude", "pattern": "heads-1"},
                {"method": "wanda", "pattern": "2:4"}],
    )  # fmt: skip
    assert run.pattern == "blocks-1 + ffn-16 + heads-1 + 2:4"
    assert [one.left for one in run.lost] == [2, 48, 3]
    assert run.sparsity == 0.5
    proof = secateur.check(out)
    assert (proof.holds, proof.complaint) == (True, None)
    assert len(proof.removed) == 3
    for asked in ("ffn-16", "heads-25%", "blocks-1"):
        assert secateur.check(out, pattern=asked).complaint is None
    config = AutoModelForCausalLM.from_pretrained(out).config
    assert (config.num_hidden_layers, config.intermediate_size) == (2, 48)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (6, 3, 4)
    secateur.pack(out, tmp_path / "packed")
    again = secateur.prune(out, method="magnitude", pattern="ffn-8", out=tmp_path / "again")
    assert again.lost[0].left == 40
    trained = secateur.recover(
        out, out=tmp_path / "recovered", train="weights", text=calibration, steps=2, samples=4,
        validation=2, batch_size=1, sequence_length=32,
    )  # fmt: skip
    assert trained.lost == run.lost
    assert secateur.check(tmp_path / "recovered").complaint is None


def test_check_finds_what_is_not_so(
    remove: Callable[..., Any], dense: Path, tmp_path: Path
) -> None:
    out, _ = remove("ffn-25%", "wanda", width_multiple=8)
    proof = secateur.check(out, pattern="ffn-25%", source=dense)
    assert (proof.complaint, proof.unlike) == (None, ())
    assert "not ffn-8" in str(secateur.check(out, pattern="ffn-8").complaint)
    assert "no record that heads-1" in str(secateur.check(out, pattern="heads-1").complaint)
    shard = next(path for path in sorted(out.glob("*.safetensors")) if any(
        "layers.1." in name for name in load_file(path)))  # fmt: skip
    stored = load_file(shard)
    name = next(name for name in stored if name.endswith("down_proj.weight"))
    stored[name][0, 0] += 1
    save_file(stored, shard, {"format": "pt"})
    assert secateur.check(out, source=dense).unlike == (name,)
    other = tmp_path / "other"
    secateur.prune(dense, method="magnitude", pattern="ffn-8", out=other)
    told = str(secateur.check(out, source=other).complaint)
    assert "56 feed-forward channels, where run.json says 64" in told


def test_a_narrower_model_is_trained_and_held_against_another(
    remove: Callable[..., Any], dense: Path, calibration: str, tmp_path: Path
) -> None:
    out, run = remove("heads-1", "wanda")
    trained = secateur.recover(
        out, out=tmp_path / "recovered", train="weights", text=calibration, steps=2, samples=4,
        validation=2, batch_size=1, sequence_length=32,
    )  # fmt: skip
    assert trained.lost == run.lost
    fewer = tmp_path / "fewer"
    secateur.prune(dense, method="magnitude", pattern="blocks-1", out=fewer)
    told = str(secateur.check(out, source=fewer).complaint)
    assert "2 blocks, where run.json tells of 3" in told


def test_a_comparison_takes_widths_beside_blocks(
    dense: Path, calibration: str, tmp_path: Path
) -> None:
    done = secateur.compare(
        dense, out=tmp_path / "table", methods="magnitude,activation,shortgpt", text=calibration,
        patterns="heads-1,blocks-1", calibration=calibration, samples=4, sequence_length=32,
    )  # fmt: skip
    assert {(run.pattern, run.method) for run in done.records} == {
        ("heads-1", "magnitude"), ("heads-1", "activation"), ("blocks-1", "magnitude"),
        ("blocks-1", "shortgpt"),
    }  # fmt: skip
    page = (tmp_path / "table" / "report.html").read_text()
    assert "<td>3 of 4 groups of attention heads</td>" in page
    assert "<td>2 of 3 blocks</td>" in page


# --- bad input ---


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"method": "greedy", "pattern": "ffn-1"}, "does not score feed-forward channels, pattern"),
        ({"method": "sparsegpt", "pattern": "heads-1"}, "does not score groups of attention heads"),
        ({"method": "wanda", "pattern": "heads-4"}, "removes 4 of 4 groups of attention heads"),
        ({"method": "wanda", "pattern": "ffn-64"}, "removes 64 of 64 feed-forward channels"),
        ({"method": "wanda", "pattern": "ffn-1%"}, "removes 0 of 64 feed-forward channels"),
        ({"method": "wanda", "pattern": "heads-3", "exclude": ["mlp"]}, "leave exclude out"),
        ({"method": "wanda", "pattern": "experts-1"}, "does not score experts"),
        ({"method": "wanda", "pattern": "ffn-1", "width_multiple": 0}, "width_multiple"),
        ({"method": "wanda", "pattern": "2:4", "width_multiple": 8}, "width_multiple"),
        ({"method": "wanda", "pattern": "ffn-1", "calibration": None}, "needs calibration"),
        ({"method": "ziplm", "pattern": "2:4"}, "give one such as ffn-20%"),
        ({"method": "activation", "pattern": "2:4"}, "give one such as ffn-20%"),
        ({"method": "frequency", "pattern": "2:4"}, "give one such as experts-25%"),
        ({"method": "shortgpt", "pattern": "2:4"}, "give one such as blocks-2"),
        ({"method": "wanda", "pattern": "heads-0"}, "and not all of them; try heads-1"),
        ({"method": "wanda", "pattern": "heds-1"}, "experts-25% (so many removed)"),
    ],
)
def test_what_does_not_fit_is_one_line(
    values: dict[str, Any], told: str, dense: Path, calibration: str, tmp_path: Path
) -> None:
    options = {"calibration": calibration, "samples": 4, "sequence_length": 32, **values}
    with pytest.raises(SecateurError) as refused:
        secateur.prune(dense, out=tmp_path / "out", **options)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_number_of_heads_that_the_family_does_not_take_is_refused_at_once(
    tmp_path: Path,
) -> None:
    model = make_model("llama", num_attention_heads=8, num_key_value_heads=4, head_dim=4)
    folder = tiny.save(model, tmp_path / "dense")
    with pytest.raises(ModelError, match="not a multiple of the number of") as refused:
        secateur.prune(folder, method="magnitude", pattern="heads-1", out=tmp_path / "out")
    assert refused.value.hint == "heads-2"
    assert "validator" not in str(refused.value)
    run = secateur.prune(folder, method="magnitude", pattern="heads-2", out=tmp_path / "out")
    assert run.lost[0].left == 2


@pytest.mark.parametrize(
    ("family", "pattern", "why"),
    [
        ("gpt2", "heads-1", "no model can be built with fewer (`embed_dim` must be divisible"),
        ("qwen3_moe", "ffn-20%", "they lie within its experts, which are removed whole"),
    ],
)
def test_a_family_that_keeps_its_widths_is_told_why(
    family: str, pattern: str, why: str, tmp_path: Path
) -> None:
    folder = tiny.save(make_model(family), tmp_path / "dense")
    with pytest.raises(ModelError) as refused:
        secateur.prune(folder, method="magnitude", pattern=pattern, out=tmp_path / "out")
    assert why in str(refused.value)
    assert "config.json" not in str(refused.value)


def test_a_model_in_memory_keeps_its_widths(tokens: Tensor) -> None:
    with pytest.raises(ModelError, match="whole in memory"):
        secateur.prune(make_model("llama"), method="wanda", pattern="ffn-8", calibration=tokens)


@pytest.mark.parametrize(
    "changed",
    [
        {"removed": ["", "", ""]},
        {"removed": ["0-63", "0-63", "0-63"]},
        {"removed": ["0", "1-2", "3"]},
        {"removed": ["7-3", "1", "1"]},
        {"removed": ["99", "1", "1"]},
        {"removed": ["x", "1", "1"]},
        {"of": 2**40},
        {"unit": "blocks"},
    ],
)
def test_a_record_cannot_claim_the_impossible(
    changed: dict[str, Any], remove: Callable[..., Any]
) -> None:
    out, _ = remove("ffn-8", "magnitude", calibration=None)
    record = json.loads((out / "run.json").read_text())
    record["stages"][0]["narrowed"] |= changed
    (out / "run.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="the run record cannot be read"):
        secateur.check(out)


def test_numbers_are_written_as_a_person_writes_them() -> None:
    assert written([7, 2, 0, 1, 9, 8]) == "0-2,7-9"
    assert written([]) == ""
