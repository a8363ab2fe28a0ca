"""Blocks removed: the choice against brute force, the result against the dense model's code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name it is known by
from transformers import AutoModelForCausalLM, PreTrainedModel

import secateur
import tiny
from families import EVERY_FAMILY, configuration
from secateur.blocks.gaps import Gaps
from secateur.blocks.stream import Stream
from secateur.checkpoint import find_blocks, open_model
from secateur.checkpoint.fewer_blocks import config_without, names_without
from secateur.errors import CheckpointError, ModelError, SecateurError
from secateur.pruning import dense_passes
from secateur.record import Removed, read_record
from tiny import make_model, make_tokens

DEPTH = 5
"""Blocks of the models here, so that two can go and not all of the rest are neighbours."""


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama of five blocks that differ in what they do."""
    model = make_model("llama", num_hidden_layers=DEPTH)
    with torch.no_grad():
        for index, block in enumerate(model.model.layers):
            for parameter in block.parameters():
                parameter.mul_((1.2, 0.5, 1.0, 0.7, 0.9)[index])
    return tiny.save(model, tmp_path_factory.mktemp("dense") / "llama")


def without(model: PreTrainedModel, removed: set[int]) -> PreTrainedModel:
    """The same model in memory, its blocks taken out of their list by hand."""
    kept = [block for index, block in enumerate(model.model.layers) if index not in removed]
    model.model.layers = torch.nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
    return model


@torch.no_grad()
def predictions(folder: Path, tokens: Tensor, removed: set[int]) -> Tensor:
    """Log-probabilities of all tokens but the first, float64 [sequences, tokens - 1, all]."""
    model = without(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), removed)
    return F.log_softmax(model(tokens, use_cache=False).logits[:, :-1].double(), dim=-1)


def loss(scores: Tensor, tokens: Tensor) -> float:
    return float(F.nll_loss(scores.flatten(0, 1), tokens[:, 1:].flatten()))


def divergence(scores: Tensor, dense: Tensor) -> float:
    return float(F.kl_div(scores, dense, reduction="none", log_target=True).sum(-1).mean())


# --- the choice ---


def test_shortgpt_is_one_minus_the_cosine_of_input_and_output(
    remove: Callable[..., Any], dense: Path, tokens: Tensor
) -> None:
    _, run = remove("blocks-2", "shortgpt", batch_size=3)
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    states: list[Tensor] = []
    for block in model.model.layers:
        block.register_forward_hook(lambda _, args, out: states.extend([args[0], out]))
    with torch.no_grad():
        model(tokens, use_cache=False)
    pairs = zip(states[::2], states[1::2], strict=True)
    expected = [float(1 - F.cosine_similarity(a, b, dim=-1).double().mean()) for a, b in pairs]
    (removed,) = run.removed
    assert removed.importance == pytest.approx(expected, abs=1e-6)
    assert removed.removed == tuple(sorted(range(DEPTH), key=expected.__getitem__)[:2])
    assert len(set(removed.importance)) == DEPTH


def test_contiguous_blocks_are_scored_by_what_they_do_together(
    remove: Callable[..., Any], dense: Path, tokens: Tensor
) -> None:
    _, run = remove("blocks-2", "shortgpt", parameters={"contiguous": True})
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    with torch.no_grad():
        states = [model.model.embed_tokens(tokens)]
        for block in model.model.layers:
            block.register_forward_hook(lambda _, args, out: states.append(out))
        model(tokens, use_cache=False)
    expected = [
        float(1 - F.cosine_similarity(states[start], states[start + 2], dim=-1).double().mean())
        for start in range(DEPTH - 1)
    ]
    (removed,) = run.removed
    first = expected.index(min(expected))
    assert removed.importance == pytest.approx(expected, abs=1e-6)
    assert removed.removed == (first, first + 1)


def test_shortened_llama_is_the_loss_without_each_block(
    remove: Callable[..., Any], dense: Path, tokens: Tensor
) -> None:
    _, run = remove("blocks-1", "shortened-llama", batch_size=3)
    expected = [loss(predictions(dense, tokens, {index}), tokens) for index in range(DEPTH)]
    (removed,) = run.removed
    assert removed.importance == pytest.approx(expected, abs=1e-5)
    assert removed.removed == (expected.index(min(expected)),)


@pytest.mark.parametrize("together", [False, True])
def test_greedy_is_the_search_by_hand(
    remove: Callable[..., Any], dense: Path, tokens: Tensor, together: bool
) -> None:
    _, run = remove("blocks-2", "greedy", parameters={"contiguous": together})
    whole = predictions(dense, tokens, set())

    def damage(removed: set[int]) -> float:
        return divergence(predictions(dense, tokens, removed), whole)

    if together:
        pairs = [(first, first + 1) for first in range(DEPTH - 1)]
        expected = min(pairs, key=lambda pair: damage({*pair}))
    else:
        first = min(range(DEPTH), key=lambda index: damage({index}))
        others = (index for index in range(DEPTH) if index != first)
        expected = (first, min(others, key=lambda index: damage({first, index})))
    assert run.removed[0].removed == expected


def test_magnitude_sums_the_weights_of_a_block_and_needs_no_data(
    dense: Path, tmp_path: Path
) -> None:
    run = secateur.prune(dense, method="magnitude", pattern="blocks-40%", out=tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    expected = [
        sum(float(weight.detach().abs().double().sum())
            for weight in block.parameters() if weight.dim() == 2)
        for block in model.model.layers
    ]  # fmt: skip
    (removed,) = run.removed
    assert removed.importance == pytest.approx(expected, rel=1e-6)
    assert removed.removed == tuple(sorted(range(DEPTH), key=expected.__getitem__)[:2])


def test_effects_are_measured_on_few_tokens(
    remove: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, dense: Path, tokens: Tensor
) -> None:
    monkeypatch.setattr("secateur.pruning.inputs.TOKENS", 3 * 32)
    _, run = remove("blocks-1", "shortened-llama")
    some = tokens[-3:]
    expected = [loss(predictions(dense, some, {index}), some) for index in range(DEPTH)]
    assert run.removed[0].importance == pytest.approx(expected, abs=1e-5)


def test_a_search_asks_the_dense_model_once_about_every_window(
    remove: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    logits = Stream.logits

    def counted(self: Stream, model: PreTrainedModel, batch: Any, rows: slice) -> Tensor:
        asked.append(rows.start)
        return logits(self, model, batch, rows)

    monkeypatch.setattr(Stream, "logits", counted)
    remove("blocks-2", "greedy", batch_size=3)
    searches = DEPTH, DEPTH - 1  # candidates in each
    assert len(asked) == 1 + sum(8 * (1 + candidates) for candidates in searches)


# --- the model that is left ---


@pytest.mark.parametrize("method", ["magnitude", "shortgpt", "shortened-llama", "greedy"])
def test_the_result_is_the_dense_model_without_the_blocks(
    remove: Callable[..., Any], dense: Path, tokens: Tensor, method: str
) -> None:
    out, run = remove("blocks-2", method)
    removed = {*run.removed[0].removed}
    model, told = AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, output_loading_info=True
    )
    assert not any(told.values())
    assert model.config.num_hidden_layers == DEPTH - 2
    by_hand = without(AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32), removed)
    with torch.no_grad():
        expected = by_hand(tokens, use_cache=False).logits
        assert torch.equal(model(tokens).logits, expected)
        assert torch.equal(secateur.load(out)(tokens).logits, expected)
    written = model.generate(tokens[:1, :4], max_new_tokens=5, do_sample=False)
    assert written.shape == (1, 9)
    assert len(run.blocks) == DEPTH - 2
    assert (run.zeros, run.stages[0].settings["pattern"]) == (0, "blocks-2")
    assert any(f"of {DEPTH} are removed" in line for line in run.notices)


REFUSED = {
    "minimax": "a block's decay follows from its place and from how many there are",
    "beam": "what a block adds to follows from its place",
    "nemotron_h": "the one block with attention goes",
}
"""Families whose configuration cannot say what is left of these four blocks, and why."""
SETTINGS: dict[str, dict[str, Any]] = {
    "qwen2_moe": {"mlp_only_layers": [0, 2]},
    "deepseek_v3": {"first_k_dense_replace": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "bamba": {"attn_layer_indices": [1, 3]},
}
"""Settings of blocks that a family's tiny configuration lacks, or that has another form."""


def of_four_blocks(family: str) -> PreTrainedModel:
    """A tiny model of a family with four blocks, its settings by block repeated."""
    text = configuration(family).get_text_config(decoder=True)
    changes: dict[str, Any] = {}
    for key, value in EVERY_FAMILY[family].items():
        if isinstance(value, list) and len(value) == text.num_hidden_layers:
            changes[key] = (value * 4)[:4]
    depth = text.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    name = "num_hidden_layers" if "num_hidden_layers" in EVERY_FAMILY[family] else depth
    return make_model(family, **{name: 4, **changes, **SETTINGS.get(family, {})})


@pytest.mark.parametrize("family", [name for name in EVERY_FAMILY if "images" not in name])
def test_every_family_without_its_middle(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = of_four_blocks(family)
    folder, gone = tiny.save(model, tmp_path / "dense"), (1, 2)
    tokens = make_tokens(2, 24)
    monkeypatch.setattr(
        dense_passes, "choose_blocks",
        lambda *args: Removed(of=4, removed=gone, weights=0, importance=(0.0,)),
    )  # fmt: skip
    options: dict[str, Any] = {"method": "magnitude", "pattern": "blocks-2"}
    if family in REFUSED:
        with pytest.raises(SecateurError) as told:
            secateur.prune(folder, out=tmp_path / "out", **options)
        assert "\n" not in str(told.value)
        assert not (tmp_path / "out").exists()
        return
    secateur.prune(folder, out=tmp_path / "out", **options)
    loaded, found = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, output_loading_info=True
    )
    assert not any(found.values())
    with torch.no_grad():
        given = loaded(tokens, use_cache=False).logits
        for index in gone:  # a block that gives what it reads is as good as none
            block = find_blocks(model).modules[index]
            block.register_forward_hook(_hand_on, with_kwargs=True)
        assert torch.allclose(given, model(tokens, use_cache=False).logits, atol=1e-5)
        assert torch.equal(given, secateur.load(tmp_path / "out")(tokens, use_cache=False).logits)
    loaded.generate(tokens[:, :4], max_new_tokens=2, do_sample=False)


def _hand_on(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> Any:
    """A hook that lets a block give what it read."""
    hidden = args[0] if args else kwargs["hidden_states"]
    return hidden if isinstance(output, Tensor) else (hidden, *output[1:])


def test_a_block_that_is_not_what_it_was_is_refused(dense: Path) -> None:
    source = open_model(dense, torch.device("cpu"), torch.float32)
    fewer = source.without_blocks((1,))
    gaps = Gaps(source, fewer, (0, 1, 3, 4), make_tokens(1, 8))
    with fewer.open_block(1) as block:  # block 2 of old, under another's number
        gaps.prove(block, 1)  # the same code, the same call: the number alone does not matter
        gaps._now.hidden += 1
        with pytest.raises(ModelError, match="block 1 is not what it was once it is block 1"):
            gaps.prove(block, 1)


def test_a_setting_that_no_configuration_can_hold_is_refused(tmp_path: Path) -> None:
    types = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    model = make_model("gemma4", num_hidden_layers=4, layer_types=types)
    folder = tiny.save(model, tmp_path / "dense")
    source = open_model(folder, torch.device("cpu"), torch.float32)
    with pytest.raises(ModelError, match=r"block|blocks") as told:  # its last block is always full
        source.without_blocks((3,))
    assert "\n" not in str(told.value)


def test_what_stands_behind_the_last_block_keeps_its_distance() -> None:
    by_block = [[f"model.layers.{index}.mlp.experts.{index}.w"] for index in range(3)]
    stored = ["model.layers.3.mtp.w", "lm_head.w", *(name for names in by_block for name in names)]
    assert names_without(stored, by_block, (0,)) == {
        "model.layers.2.mtp.w": "model.layers.3.mtp.w",
        "lm_head.w": "lm_head.w",
        "model.layers.0.mlp.experts.1.w": "model.layers.1.mlp.experts.1.w",
        "model.layers.1.mlp.experts.2.w": "model.layers.2.mlp.experts.2.w",
    }
    with pytest.raises(ModelError, match="do not tell which block"):
        names_without(["a.w", "b.w"], [["a.w"], ["b.w"]], (0,))


def test_the_configuration_says_what_is_left_of_every_block() -> None:
    config = configuration("llama", num_hidden_layers=4)
    asked = {
        "num_hidden_layers": 4, "layer_types": ["a", "b", "c", "d"], "mlp_only_layers": [0, 2, 3],
        "first_k_dense_replace": 2, "hybrid_override_pattern": "MA-E", "eos_token_id": [1, 2, 3, 4],
        "per_layer_config": {"1": {"x": 1}, "3": {"x": 3}}, "id2label": {"0": "no", "1": "yes"},
        "model_type": "four", "time_step_limit": [0, 1, 2, 3],
    }  # fmt: skip
    left = config_without(asked, config, (1,))
    assert {key: left[key] for key in asked} == {
        **asked, "num_hidden_layers": 3, "layer_types": ["a", "c", "d"],
        "mlp_only_layers": [0, 1, 2],
        "first_k_dense_replace": 1, "hybrid_override_pattern": "M-E",
        "per_layer_config": {"2": {"x": 3}},
    }  # fmt: skip


# --- mending ---


def test_mending_takes_back_some_of_the_damage_and_changes_what_is_left(
    remove: Callable[..., Any], calibration: str, dense: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"text": calibration, "windows": 8, "effort": "fast", "mend": True}
    out, mended = remove("blocks-2", "greedy", **options)
    plain = secateur.prune(
        dense, method="greedy", pattern="blocks-2", out=tmp_path / "plain", text=calibration,
        calibration=calibration, samples=8, sequence_length=32, windows=8,
    )  # fmt: skip
    assert mended.removed[0].removed == plain.removed[0].removed
    (after,), (before,) = mended.evaluations, plain.evaluations
    assert after.divergence < 0.8 * before.divergence
    assert after.dense_perplexity == before.dense_perplexity
    assert [block.judged is not None for block in mended.blocks] == [True] * (DEPTH - 2)
    assert mended.blocks[-1].judged[1] <= mended.blocks[-1].judged[0]
    weights, untouched = tiny.weights_of(out), tiny.weights_of(tmp_path / "plain")
    assert weights.keys() == untouched.keys()
    changed = {name for name in weights if not torch.equal(weights[name], untouched[name])}
    assert changed
    assert all(weights[name].dim() == 2 and "layers" in name for name in changed)
    assert secateur.check(out).complaint is None


def test_mending_leaves_zeros_alone(dense: Path, calibration: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"calibration": calibration, "samples": 8, "sequence_length": 32}
    sparse = tmp_path / "sparse"
    secateur.prune(dense, method="wanda", pattern="2:4", out=sparse, **options)
    run = secateur.prune(
        sparse, method="shortgpt", pattern="blocks-1", mend=True, out=tmp_path / "out", **options
    )
    assert run.sparsity == 0.5
    assert secateur.check(tmp_path / "out", pattern="2:4").complaint is None


# --- as any other run ---


def test_a_run_that_was_stopped_ends_in_the_same_bits(
    remove: Callable[..., Any], in_two_goes: Callable[..., Any], calibration: str
) -> None:
    options: dict[str, Any] = {"text": calibration, "mend": True, "regional": {"rounds": 1}}
    whole, run = in_two_goes(
        lambda: remove("blocks-2", "greedy", **options)[1],
        Gaps,
        "secateur.pruning.removal._importance",
    )
    assert run.removed == whole.removed
    assert run.evaluations[0].perplexity == whole.evaluations[0].perplexity


def test_a_stage_of_zeros_follows_on_what_is_left(
    dense: Path, calibration: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = secateur.prune(
        dense, calibration=calibration, samples=8, sequence_length=32, text=calibration, out=out,
        stages=[{"method": "shortgpt", "pattern": "blocks-1"},
                {"method": "wanda", "pattern": "2:4"}],
    )  # fmt: skip
    assert (run.pattern, run.method) == ("blocks-1 + 2:4", "shortgpt + wanda")
    assert (len(run.blocks), run.sparsity) == (DEPTH - 1, 0.5)
    assert run.evaluations[0].dense_perplexity is not None
    proof = secateur.check(out)
    assert (proof.holds, proof.complaint) == (True, None)
    assert secateur.check(out, pattern="blocks-1").complaint is None
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == DEPTH - 1
    again = secateur.prune(out, method="magnitude", pattern="blocks-25%", out=tmp_path / "again")
    assert len(again.blocks) == DEPTH - 2


def test_zeros_do_not_go_before_blocks(dense: Path, tmp_path: Path) -> None:
    stages = [
        {"method": "magnitude", "pattern": "2:4"},
        {"method": "magnitude", "pattern": "blocks-1"},
    ]
    with pytest.raises(SecateurError, match="which goes before the zeros of stage 1"):
        secateur.prune(dense, out=tmp_path / "out", stages=stages)


def test_check_finds_what_is_not_so(
    remove: Callable[..., Any], dense: Path, tmp_path: Path
) -> None:
    out, _ = remove("blocks-2", "shortgpt")
    proof = secateur.check(out, source=dense)
    assert (proof.complaint, proof.unlike) == (None, ())
    assert proof.removed == secateur.check(out, pattern="blocks-2").removed != ()
    assert "not blocks-1" in str(secateur.check(out, pattern="blocks-1").complaint)
    assert "no record that blocks-2 was removed" in str(
        secateur.check(dense, pattern="blocks-2").complaint
    )
    shard = next(path for path in sorted(out.glob("*.safetensors")) if any(
        "layers.1." in name for name in load_file(path)))  # fmt: skip
    stored = load_file(shard)
    name = next(name for name in stored if name.endswith("up_proj.weight"))
    stored[name][0, 0] += 1
    save_file(stored, shard, {"format": "pt"})
    assert secateur.check(out, source=dense).unlike == (name,)
    fewer = tmp_path / "fewer"
    secateur.prune(dense, method="magnitude", pattern="blocks-1", out=fewer)
    told = str(secateur.check(out, source=fewer).complaint)
    assert f"{DEPTH - 1} blocks, where run.json says {DEPTH}" in told
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    told = str(secateur.check(out).complaint)
    assert f"2 blocks, run.json says {DEPTH - 2}" in told
    record = json.loads((out / "run.json").read_text())
    record["stages"][0]["removed"] = None
    (out / "run.json").write_text(json.dumps(record))
    told = str(secateur.check(out).complaint)
    assert "does not say which structures were removed" in told


def test_what_was_removed_is_trained_back(
    remove: Callable[..., Any], calibration: str, tmp_path: Path
) -> None:
    out, _ = remove("blocks-1", "shortgpt")
    options: dict[str, Any] = {
        "text": calibration, "steps": 2, "samples": 4, "validation": 2, "batch_size": 1,
        "sequence_length": 32,
    }  # fmt: skip
    run = secateur.recover(out, out=tmp_path / "recovered", train="weights", **options)
    assert (run.recovery.zeros_before, run.recovery.zeros_after) == (0, 0)
    assert run.removed == read_record(out).removed
    assert secateur.check(tmp_path / "recovered").complaint is None
    with pytest.raises(SecateurError, match="outputs cannot be compared"):
        secateur.recover(out, out=tmp_path / "no", train="weights", objective="distill",
                         block_weight=1.0, **options)  # fmt: skip


def test_a_comparison_takes_patterns_of_both_kinds(
    dense: Path, calibration: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "text": calibration,
        "calibration": calibration,
        "samples": 8,
        "sequence_length": 32,
    }
    done = secateur.compare(
        dense, out=tmp_path / "table", methods="magnitude,greedy", patterns="2:4,blocks-1",
        mend=True, effort="fast", **options,
    )  # fmt: skip
    runs = {(run.pattern, run.method): run for run in done.records}
    assert runs.keys() == {("2:4", "magnitude"), ("blocks-1", "magnitude"), ("blocks-1", "greedy")}
    assert runs["blocks-1", "greedy"].stages[0].settings["mend"]
    assert runs["2:4", "magnitude"].stages[0].settings["mend"] is False
    table = (tmp_path / "table" / "table.md").read_text()
    assert table.count("| dense |") == 1  # one table of both
    page = (tmp_path / "table" / "report.html").read_text()
    assert page.count("What was removed") == page.count("Sparsity, matrix by matrix") == 1
    assert f"<td>{DEPTH - 1} of {DEPTH} blocks</td><td>20.00</td>" in page
    with pytest.raises(SecateurError, match="method greedy goes with none of the patterns 2:4"):
        secateur.compare(dense, out=tmp_path / "no", methods="greedy", patterns="2:4", **options)
    with pytest.raises(SecateurError, match="mend is for patterns that remove structures"):
        secateur.compare(
            dense, out=tmp_path / "no", methods="magnitude", patterns="2:4", mend=True, **options
        )


# --- bad input ---


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"method": "wanda", "pattern": "blocks-1"}, "wants one of magnitude, greedy"),
        ({"method": "greedy", "pattern": "2:4"}, "removes structures, and 2:4 is a pattern of"),
        ({"method": "greedy", "pattern": "blocks-5"}, "removes 5 of 5 blocks"),
        ({"method": "greedy", "pattern": "blocks-10%"}, "removes 0 of 5 blocks"),
        ({"method": "greedy", "pattern": "blocks-0"}, "removes nothing"),
        ({"method": "greedy", "pattern": "blocks-100%"}, "removes everything"),
        ({"method": "greedy", "pattern": "blocks"}, "cannot be read"),
        ({"method": "greedy", "pattern": "blocks-1", "include": ["mlp"]}, "leave include out"),
        ({"method": "greedy", "pattern": "blocks-1", "schedule": "matrix"}, "leave schedule out"),
        ({"method": "wanda", "pattern": "2:4", "patterns": {"mlp": "blocks-1"}}, "are of matrices"),
        ({"method": "wanda", "pattern": "2:4", "mend": True}, "what is left of structures"),
        ({"method": "greedy", "pattern": "blocks-1", "effort": "fast"}, "no regional optimiser"),
        ({"method": "greedy", "pattern": "blocks-1", "mend": True, "preset": "paper"},
         "regional.target must be model"),
        ({"method": "greedy", "pattern": "blocks-1", "calibration": None}, "needs calibration"),
        ({"method": "magnitude", "pattern": "blocks-1", "calibration": None, "mend": True},
         "mend needs calibration"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(
    values: dict[str, Any], told: str, dense: Path, calibration: str, tmp_path: Path
) -> None:
    options = {"calibration": calibration, "samples": 4, "sequence_length": 32, **values}
    with pytest.raises(SecateurError) as refused:
        secateur.prune(dense, out=tmp_path / "out", **options)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_model_in_memory_keeps_its_blocks(tokens: Tensor) -> None:
    model = make_model("llama")
    with pytest.raises(ModelError, match="whole in memory"):
        secateur.prune(model, method="shortgpt", pattern="blocks-1", calibration=tokens)


@pytest.mark.parametrize(
    "removed",
    [
        {"of": 2**40, "removed": [0], "weights": 0, "importance": [0]},
        {"of": 3, "removed": [3], "weights": 0, "importance": [0]},
        {"of": 3, "removed": [0, 0], "weights": 0, "importance": [0]},
        {"of": 3, "removed": [0, 1, 2], "weights": 0, "importance": [0]},
        {"of": 3, "removed": [], "weights": 0, "importance": []},
    ],
)
def test_a_record_cannot_claim_the_impossible(
    removed: dict[str, Any], remove: Callable[..., Any]
) -> None:
    out, _ = remove("blocks-1", "magnitude", calibration=None)
    record = json.loads((out / "run.json").read_text())
    record["stages"][0]["removed"] = removed
    (out / "run.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="the run record cannot be read"):
        secateur.check(out)
