"""Recovery: zeros stay, the merge loses nothing, a killed run goes on, and faults cost one line."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import AutoModelForCausalLM, PreTrainedModel

import secateur
import tiny
from secateur.checkpoint import load_whole
from secateur.checkpoint.proved import read_proved, write_proved
from secateur.errors import (
    CheckFailedError,
    CheckpointError,
    OutputError,
    RecipeError,
    SecateurError,
)
from secateur.progress import Quiet
from secateur.pruning.pipeline import run_pruning
from secateur.recipe import Recipe
from secateur.record import read_record
from secateur.record.check import check_folder
from secateur.recovery import Recovery, objective, pipeline, run_recovery, training
from secateur.recovery.adapter import (
    Adapters,
    AdapterShape,
    MaskedLora,
    masked_layers,
)
from secateur.recovery.objective import distillation, language_model_loss, teacher_divergence
from secateur.recovery.targets import find_targets
from secateur.recovery.training import Trainable, rate_at


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens with something to learn: every sequence counts upwards; int64 [40, 32]."""
    starts = torch.randint(4, 60, (40, 1), generator=torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("learnable") / "tokens.safetensors"
    save_file({"input_ids": starts + torch.arange(32)}, path)
    return path


def pruned_folder(source: Path, out: Path, pattern: str = "2:4") -> Path:
    run_pruning(Recipe.build({"model": str(source), "out": str(out), "method": "magnitude",
                        "pattern": pattern}))  # fmt: skip
    return out


@pytest.fixture
def settings(sparse_folder: Path, text_file: Path, tmp_path: Path) -> Callable[..., Recovery]:
    """`settings(steps=5)`: a short recovery."""

    def build(**changes: Any) -> Recovery:
        return Recovery.build({
            "model": str(sparse_folder), "out": str(tmp_path / "out"), "text": str(text_file),
            "heldout": str(text_file), "windows": 8, "sequence_length": 32, "validation": 8,
            "batch_size": 4, "samples": 24, "steps": 12, "evaluate_every": 4, "rank": 4,
            "learning_rate": 1e-2, **changes,
        })  # fmt: skip

    return build


def adapted(model: PreTrainedModel, targets: str = "all", masked: bool = True) -> Adapters:
    return Adapters(
        model, AdapterShape(find_targets(model, targets), 4, 8.0, masked),
        lambda name: model.get_parameter(name).dtype if not masked else torch.float32, seed=0,
    )  # fmt: skip


def shake(model: Trainable, seed: int = 1) -> None:
    """As if it had been trained: every factor is random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for factor in model.factors.values():
            factor.copy_(0.1 * torch.randn(factor.shape, generator=generator))


# --- the layer ---


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_merged_weights_compute_what_training_computed(family: str) -> None:
    model, tokens = tiny.make_sparse_model(family), tiny.make_tokens(2, 16)
    before = model(input_ids=tokens).logits
    wrapped = adapted(model)
    assert torch.equal(wrapped(input_ids=tokens).logits, before)  # B starts at zero
    shake(wrapped)
    trained = wrapped(input_ids=tokens).logits
    merged = wrapped.stored()
    wrapped.model.unload()
    plain = dict(model.named_parameters())
    for name, weight in merged.items():
        assert bool((weight[plain[name] == 0] == 0).all())
        assert bool((weight != plain[name]).any())
    pipeline._put(model, merged)
    assert torch.allclose(model(input_ids=tokens).logits, trained, atol=1e-5)
    assert not torch.allclose(trained, before, atol=1e-2)


def test_the_used_weight_is_w_plus_scaled_b_a_where_w_is_not_zero() -> None:
    model = tiny.make_sparse_model("llama")
    shake(adapted(model))
    name, layer = masked_layers(model)[0]
    weight, a, b = (layer.get_base_layer().weight, layer.lora_A["default"].weight,
                    layer.lora_B["default"].weight)  # fmt: skip
    by_hand = (weight + 8.0 / 4 * b @ a) * (weight != 0)
    assert torch.allclose(layer.used_weight(), by_hand, atol=1e-6)
    assert name == "model.layers.0.self_attn.q_proj"


def test_the_used_weight_is_rounded_as_it_will_be_stored_and_its_gradient_is_not() -> None:
    model = tiny.make_sparse_model("llama")
    shake(adapted(model))
    _, layer = masked_layers(model)[0]
    exact = layer.used_weight()
    layer.stored_dtype = torch.bfloat16
    used = layer.used_weight()
    assert used.dtype == torch.float32
    assert torch.equal(used, exact.bfloat16().float())
    assert not torch.equal(used, exact)
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        layer.stored_dtype = dtype
        layer.used_weight().mul(torch.linspace(-1, 1, used.numel()).view_as(used)).sum().backward()
        gradients.append(layer.lora_B["default"].weight.grad.clone())
        layer.lora_B["default"].weight.grad = None
    assert torch.equal(*gradients)


def test_no_gradient_reaches_a_factor_through_a_zero() -> None:
    """The derivative by hand: dL/dB = scale (dL/dW * keep) A'."""
    model, tokens = tiny.make_sparse_model("llama"), tiny.make_tokens(2, 16)
    wrapped = adapted(model)
    shake(wrapped)
    _, layer = masked_layers(model)[0]
    used: list[Tensor] = []
    original = layer.used_weight

    def kept() -> Tensor:
        used.append(original())
        used[-1].retain_grad()
        return used[-1]

    layer.used_weight = kept
    language_model_loss(wrapped, tokens).backward()
    keep = layer.get_base_layer().weight != 0
    by_hand = 2.0 * (used[0].grad * keep) @ layer.lora_A["default"].weight.T
    assert torch.allclose(layer.lora_B["default"].weight.grad, by_hand, atol=1e-6)


def test_autocast_leaves_the_weight_exact() -> None:
    model = tiny.make_sparse_model("llama")
    shake(adapted(model))
    _, layer = masked_layers(model)[0]
    with torch.autocast("cpu", torch.bfloat16):
        used = layer.used_weight()
    assert torch.equal(used, layer.used_weight())


def test_targets_are_chosen_by_kind_and_only_within_the_blocks() -> None:
    model = tiny.make_model("llama")
    every = find_targets(model, "all")
    assert len(every) == 7 * tiny.BLOCKS
    assert "lm_head" not in every
    some = find_targets(model, "q_proj, self_attn.v_proj")
    assert {name.rpartition(".")[2] for name in some} == {"q_proj", "v_proj"}
    assert len(some) == 2 * tiny.BLOCKS
    with pytest.raises(RecipeError, match=r"'q_porj'.*did you mean 'q_proj'"):
        find_targets(model, "q_porj")


def test_only_the_factors_are_trained() -> None:
    model = tiny.make_sparse_model("llama")
    wrapped = adapted(model, "q_proj")
    trained = wrapped.factors
    assert len(trained) == 2 * tiny.BLOCKS
    assert all("lora_" in name for name in trained)
    assert sum(isinstance(layer, MaskedLora) for layer in model.modules()) == tiny.BLOCKS


# --- objectives ---


def test_the_divergence_is_that_of_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    wanted, found = torch.randn(2, 2, 5, 9, generator=generator)
    p, q = F.softmax(wanted[:, :-1], -1), F.softmax(found[:, :-1], -1)
    by_hand = (p * (p / q).log()).sum(-1).mean()
    assert float(teacher_divergence(wanted, found)) == pytest.approx(float(by_hand), rel=1e-5)
    assert float(teacher_divergence(wanted, wanted)) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_the_divergence_is_that_of_autograd(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objective, "TOKENS_AT_ONCE", 2)
    generator = torch.Generator().manual_seed(0)
    wanted, found = torch.randn(2, 3, 6, 9, generator=generator).to(dtype)
    here, there = found.clone().requires_grad_(), found.clone().requires_grad_()
    (3 * teacher_divergence(wanted, here)).backward()
    p, q = (F.log_softmax(of[:, :-1].float(), -1) for of in (wanted, there))
    (3 * (p.exp() * (p - q)).sum(-1).mean()).backward()
    assert here.grad is not None
    assert there.grad is not None
    assert here.grad.dtype == dtype
    assert bool((here.grad[:, -1] == 0).all())
    torch.testing.assert_close(
        here.grad, there.grad, rtol=1e-2 if dtype != torch.float32 else 1e-4, atol=1e-7
    )


def test_distillation_adds_the_block_outputs() -> None:
    dense, model, tokens = (
        tiny.make_model("llama"),
        tiny.make_sparse_model("llama"),
        tiny.make_tokens(2, 16),
    )
    alone = distillation(dense, 0.0)(model, tokens)
    both = distillation(dense, 2.0)(model, tokens)
    with torch.no_grad():
        asked = {"input_ids": tokens, "output_hidden_states": True}
        there, here = dense(**asked).hidden_states[1:], model(**asked).hidden_states[1:]
        apart = [((h - d) ** 2).sum() / (d**2).sum() for d, h in zip(there, here, strict=True)]
    assert len(apart) == tiny.BLOCKS
    expected = 2 * sum(float(each) for each in apart) / tiny.BLOCKS
    assert float((both - alone).detach()) == pytest.approx(expected, rel=1e-4)
    assert float(distillation(dense, 1.0)(dense, tokens).detach()) == pytest.approx(0, abs=1e-6)


# --- the whole ---


@pytest.fixture(scope="module")
def done(
    sparse_folder: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    """One recovery, 24 steps; its folder is not to be written to."""
    out = tmp_path_factory.mktemp("recovered") / "llama"
    values = {
        "model": str(sparse_folder), "out": str(out), "text": str(text_file),
        "heldout": str(text_file), "windows": 8, "sequence_length": 32, "validation": 8,
        "batch_size": 8, "samples": 32, "steps": 24, "evaluate_every": 8, "rank": 8,
        "learning_rate": 2e-2,
    }  # fmt: skip
    return out, run_recovery(Recovery.build(values))


def test_training_takes_back_and_the_merge_loses_nothing(done: tuple[Path, Any]) -> None:
    recovery = done[1].recovery
    assert recovery.recovered.perplexity < 0.8 * recovery.pruned.perplexity
    assert recovery.recovered.negative_log_likelihood == pytest.approx(
        recovery.adapted.negative_log_likelihood, abs=1e-5
    )
    assert recovery.dense is not None  # found through run.json


def test_every_zero_is_kept_in_the_files_and_nothing_else_is_touched(
    done: tuple[Path, Any], sparse_folder: Path
) -> None:
    before, after = tiny.weights_of(sparse_folder), tiny.weights_of(done[0])
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == 7 * tiny.BLOCKS
    for name in changed:
        assert after[name].dtype == torch.bfloat16
        assert torch.equal(before[name] == 0, after[name] == 0)
    proof = check_folder(str(done[0]), "2:4")
    assert not proof.failing
    assert not proof.changed  # the checksums in run.json are those of the new files
    assert proof.files > 0
    assert proof.zeros == done[1].recovery.zeros_after == done[1].recovery.zeros_before


def test_the_files_score_what_the_record_says(done: tuple[Path, Any], text_file: Path) -> None:
    found = secateur.evaluate(done[0], text=text_file, sequence_length=32, windows=8)
    recorded = done[1].recovery.recovered
    assert found.negative_log_likelihood == pytest.approx(
        recorded.negative_log_likelihood, rel=1e-6
    )
    assert AutoModelForCausalLM.from_pretrained(done[0]).config.dtype == torch.bfloat16


def test_the_record_holds_the_pruning_and_the_recovery(done: tuple[Path, Any]) -> None:
    record = read_record(done[0])
    assert record == done[1]
    assert record.recipe["method"] == "magnitude"
    assert [point.step for point in record.recovery.curve] == [0, 8, 16, 24]
    assert record.recovery.curve[0].loss is None
    best = min(record.recovery.curve, key=lambda point: point.validation_loss)
    assert record.recovery.best_step == best.step > 0
    damage = record.recovery.pruned.perplexity - record.recovery.dense.perplexity
    gain = record.recovery.pruned.perplexity - record.recovery.recovered.perplexity
    assert record.recovery.damage_removed == pytest.approx(gain / damage)
    assert not [path for path in done[0].parent.iterdir() if path.name.startswith(".")]


def test_the_same_seed_gives_the_same_bits(settings: Callable[..., Recovery]) -> None:
    first, second = settings(), settings(out=settings().out + "2")
    run_recovery(first)
    run_recovery(second)
    here, there = tiny.weights_of(Path(first.out)), tiny.weights_of(Path(second.out))
    assert all(torch.equal(here[name], there[name]) for name in here)


class _StopError(Exception):
    pass


class _Killed(Quiet):
    """Stands for a kill: raises in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.left = step
        self.told: list[str] = []

    def notice(self, text: str) -> None:
        self.told.append(text)

    def tick(self, phase: str, done: int, total: int) -> None:
        if phase.startswith("loss"):
            self.left -= 1
            if not self.left:
                raise _StopError


@pytest.mark.parametrize("killed_at", [5, 8, 11])
def test_a_killed_run_goes_on_to_the_same_result(
    settings: Callable[..., Recovery], killed_at: int
) -> None:
    whole = run_recovery(settings(out=settings().out + "-whole"))
    killed = _Killed(killed_at)
    with pytest.raises(_StopError):
        run_recovery(settings(), killed)
    assert "recovery.safetensors: the same with resume goes on from there" in killed.told[-1]
    assert not Path(settings().out).exists()
    with pytest.raises(SecateurError, match="--resume"):
        run_recovery(settings())
    out = Path(settings().out)
    (out.parent / f"..{out.name}.recovery.safetensors.0a1b2c3d.unfinished").touch()  # by SIGKILL
    resumed = run_recovery(settings(resume=True))
    assert resumed.recovery.interruptions == 1
    for here, there in zip(resumed.recovery.curve[1:], whole.recovery.curve[1:], strict=True):
        assert here.validation_loss == pytest.approx(there.validation_loss, rel=1e-6)
        assert (here.step, here.loss) == pytest.approx((there.step, there.loss), rel=1e-6)
    assert resumed.recovery.recovered.perplexity == pytest.approx(
        whole.recovery.recovered.perplexity, rel=1e-6
    )
    assert not list(Path(settings().out).parent.glob(".*recovery*"))


def test_a_checkpoint_of_another_run_is_refused_and_named(
    settings: Callable[..., Recovery],
) -> None:
    with pytest.raises(_StopError):
        run_recovery(settings(), _Killed(6))
    with pytest.raises(RecipeError, match=r"learning_rate 0\.01, not 0\.5"):
        run_recovery(settings(learning_rate=0.5, resume=True))
    run_recovery(settings(overwrite=True))


def test_the_dense_model_is_neither_replaced_nor_changed(
    settings: Callable[..., Recovery], llama_folder: Path, tmp_path: Path
) -> None:
    dense = tmp_path / "dense"
    shutil.copytree(llama_folder, dense)
    with pytest.raises(OutputError, match="another that is read"):
        run_recovery(settings(dense=str(dense), out=str(dense), overwrite=True))

    class Change(Quiet):
        def tick(self, phase: str, done: int, total: int) -> None:
            (dense / "config.json").touch()

    with pytest.raises(CheckpointError, match=r"config\.json was changed while the run lasted"):
        run_recovery(settings(dense=str(dense)), Change())
    assert not Path(settings().out).exists()


def test_nothing_to_go_on_with(settings: Callable[..., Recovery]) -> None:
    with pytest.raises(CheckpointError, match="no interrupted recovery"):
        run_recovery(settings(resume=True))


def test_a_damaged_checkpoint_is_one_line(settings: Callable[..., Recovery]) -> None:
    out = Path(settings().out)
    (out.parent / f".{out.name}.recovery.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"cannot be read.*--overwrite"):
        run_recovery(settings(resume=True))


def without(name: str) -> Callable[[dict[str, Tensor], dict[str, Any]], object]:
    return lambda tensors, position: tensors.pop(next(key for key in tensors if name in key))


def reshaped(tensors: dict[str, Tensor], position: dict[str, Any]) -> None:
    name = next(key for key in tensors if key.startswith("best."))
    tensors[name] = tensors[name].T.contiguous()


def test_a_checkpoint_that_does_not_fit_is_one_line(settings: Callable[..., Recovery]) -> None:
    """It proves itself, and still it may be somebody's who wrote it with care."""
    with pytest.raises(_StopError):
        run_recovery(settings(), _Killed(6))
    out = Path(settings().out)
    path = out.parent / f".{out.name}.recovery.safetensors"
    tensors, facts = read_proved(path)
    for change in (
        without("adapter."),
        without("exp_avg_sq"),
        reshaped,
        lambda tensors, position: position.update(curve=[]),
    ):
        changed, position = dict(tensors), json.loads(facts["state"])
        change(changed, position)
        write_proved(path, changed, {"state": json.dumps(position)})
        with pytest.raises(CheckpointError, match=r"the checkpoint .*--overwrite to begin anew"):
            run_recovery(settings(resume=True))
    write_proved(path, tensors, facts)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        run_recovery(settings(resume=True))
    with pytest.raises(OutputError, match="an unfinished `secateur recover` lies here"):
        secateur.prune(settings().model, method="magnitude", out=out)


def test_adapters_stay_beside_the_model(
    settings: Callable[..., Recovery], sparse_folder: Path
) -> None:
    from peft import PeftModel

    record = run_recovery(settings(result="adapters", targets="q_proj,v_proj"))
    out = Path(settings().out)
    before, after = tiny.weights_of(sparse_folder), tiny.weights_of(out)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert record.recovery.adapted == record.recovery.recovered
    assert not check_folder(str(out), "2:4").changed
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    tokens = tiny.make_tokens(2, 16)
    plain = model(input_ids=tokens).logits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        loaded = PeftModel.from_pretrained(model, out / "adapter")
    assert not torch.allclose(loaded(input_ids=tokens).logits, plain, atol=1e-3)


def test_plain_lora_merged_would_leave_no_zero(sparse_folder: Path) -> None:
    """Why the masked layer is there."""
    model = AutoModelForCausalLM.from_pretrained(sparse_folder, dtype=torch.float32)
    wrapped = adapted(model, masked=False)
    shake(wrapped)
    merged = wrapped.model.merge_and_unload()
    weight = merged.model.layers[0].self_attn.q_proj.weight
    assert int((weight == 0).sum()) == 0


def test_a_merge_that_breaks_a_zero_is_refused(
    settings: Callable[..., Recovery], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Adapters.stored

    def broken(adapters: Adapters) -> dict[str, Tensor]:
        merged = real(adapters)
        name = next(iter(merged))
        place = (merged[name] == 0).nonzero()[0]
        merged[name][tuple(place)] = 0.5
        return merged

    monkeypatch.setattr(Adapters, "stored", broken)
    with pytest.raises(CheckFailedError, match=r"broke 1 zeros in model\.layers\.0"):
        run_recovery(settings())
    assert not Path(settings().out).exists()


def test_a_model_without_its_pattern_is_refused_before_any_work(
    settings: Callable[..., Recovery], llama_folder: Path
) -> None:
    with pytest.raises(CheckFailedError, match="not 1:4"):
        run_recovery(settings(pattern="1:4"))
    with pytest.raises(SecateurError, match="no zeros to keep"):
        run_recovery(settings(model=str(llama_folder)))


def test_early_stop_keeps_the_best(
    settings: Callable[..., Recovery], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: Iterator[float] = iter([5.0, 4.0, 4.5, 4.2, 3.0, 2.0, 1.0])
    monkeypatch.setattr(training, "judge", lambda *_: next(losses))
    record = run_recovery(settings(steps=40, patience=2, heldout=None, windows=None))
    assert record.recovery.steps == 12
    assert record.recovery.best_step == 4
    assert record.recovery.recovered is None


def test_accumulated_batches_make_the_step_of_one_large_batch(
    settings: Callable[..., Recovery],
) -> None:
    one = run_recovery(settings(steps=4, batch_size=8))
    two = run_recovery(settings(steps=4, batch_size=4, accumulation=2, out=settings().out + "2"))
    assert two.recovery.curve[-1].validation_loss == pytest.approx(
        one.recovery.curve[-1].validation_loss, rel=1e-5
    )


def test_bfloat16_trains_too(settings: Callable[..., Recovery]) -> None:
    record = run_recovery(settings(dtype="bfloat16", steps=8))
    recovery = record.recovery
    assert recovery.recovered.perplexity < recovery.pruned.perplexity
    assert recovery.recovered.negative_log_likelihood == pytest.approx(
        recovery.adapted.negative_log_likelihood, abs=1e-5
    )


def test_distillation_brings_the_model_nearer_to_the_dense_one(
    settings: Callable[..., Recovery], sparse_folder: Path, llama_folder: Path, text_file: Path
) -> None:
    run_recovery(settings(objective="distill", block_weight=0.1, dense=str(llama_folder)))
    apart = [
        secateur.evaluate(
            folder, text=text_file, against=llama_folder, sequence_length=32, windows=8
        ).divergence
        for folder in (sparse_folder, settings().out)
    ]
    assert apart[1] < 0.9 * apart[0]


def test_conv1d_and_other_families_are_recovered(
    save: Callable[..., Path], tmp_path: Path, settings: Callable[..., Recovery]
) -> None:
    dense = save(tiny.make_model("gpt2"))
    sparse = pruned_folder(dense, tmp_path / "sparse")
    record = run_recovery(settings(model=str(sparse), steps=4))
    assert not check_folder(settings().out, None).failing
    assert record.recovery.zeros_after == record.recovery.zeros_before


def test_a_sparse_model_without_a_record_can_be_recovered(
    settings: Callable[..., Recovery], sparse_folder: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for path in sparse_folder.iterdir():
        if path.name != "run.json":
            (foreign / path.name).write_bytes(path.read_bytes())
    record = run_recovery(settings(model=str(foreign), steps=4))
    assert record.recovery.dense is None
    assert record.recovery.damage_removed is None
    assert not check_folder(settings().out, "2:4").failing


def test_a_divergent_run_is_named(settings: Callable[..., Recovery]) -> None:
    with pytest.raises(SecateurError, match="not finite"):
        run_recovery(settings(learning_rate=1e30, warm_up=0, gradient_norm=1e30))
    assert not Path(settings().out).exists()


# --- settings ---


def test_the_rate_rises_then_falls_as_a_cosine(settings: Callable[..., Recovery]) -> None:
    chosen = settings(steps=100, warm_up=10, learning_rate=1.0)
    assert rate_at(5, chosen) == pytest.approx(0.5)
    assert rate_at(10, chosen) == rate_at(11, chosen) == pytest.approx(1.0)
    assert rate_at(56, chosen) == pytest.approx(0.5)
    assert rate_at(100, chosen) == pytest.approx((1 - math.cos(math.pi / 90)) / 2)
    assert rate_at(1, settings(steps=100, warm_up=0, learning_rate=1.0)) == 1.0


def test_every_sequence_comes_once_before_any_comes_twice(
    settings: Callable[..., Recovery],
) -> None:
    chosen = settings(batch_size=4)
    numbered = torch.arange(10)[:, None]
    steps = [training.batches_of(step, numbered, chosen) for step in range(5)]
    assert [[len(batch) for batch in batches] for batches in steps] == [[4]] * 5
    drawn = torch.cat([batch[:, 0] for batches in steps for batch in batches])
    assert sorted(drawn[:10].tolist()) == sorted(drawn[10:].tolist()) == list(range(10))
    assert drawn[:10].tolist() != drawn[10:].tolist()


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"rank": 0}, "rank=0"),
        ({"objective": "kl"}, "objective='kl'"),
        ({"block_weight": 1.0}, "block_weight goes with objective distill"),
        ({"resume": True, "overwrite": True}, "give one of them"),
        ({"learning_rte": 1.0}, "unknown key 'learning_rte'.*did you mean 'learning_rate'"),
        ({"dtype": "float16"}, "dtype='float16'"),
    ],
)
def test_a_fault_in_the_settings_is_named(
    settings: Callable[..., Recovery], values: dict[str, Any], fault: str
) -> None:
    with pytest.raises(RecipeError, match=fault):
        settings(**values)


@pytest.mark.parametrize("change", ["missing", "misshapen"])
@pytest.mark.parametrize("which", ["dense", "model"])
def test_a_model_that_lacks_a_matrix_is_refused(
    sparse_folder: Path, llama_folder: Path, settings: Callable[..., Recovery], tmp_path: Path,
    which: str, change: str,
) -> None:  # fmt: skip
    """Dense or sparse: transformers would draw the matrix at random and train against that."""
    name = "model.layers.1.mlp.up_proj.weight"
    source = {"dense": llama_folder, "model": sparse_folder}[which]
    folder = tmp_path / "lacking"
    folder.mkdir()
    for file in source.glob("*.json"):
        if not file.name.endswith(".index.json"):
            (folder / file.name).write_bytes(file.read_bytes())
    tensors = tiny.weights_of(source)
    tensors[name] = tensors[name][:-4].contiguous()
    if change == "missing":
        del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    wrong = settings(**{which: str(folder)}, objective="distill", heldout=None, windows=None)
    with pytest.raises(CheckpointError) as caught:
        run_recovery(wrong)
    assert name in str(caught.value) or "up_proj" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_whole_model_that_lacks_a_matrix_is_refused(llama_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((llama_folder / "config.json").read_bytes())
    tensors = tiny.weights_of(llama_folder)
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="1 weights are missing"):
        load_whole(tmp_path)


def test_distillation_without_a_dense_model_is_refused(
    settings: Callable[..., Recovery], sparse_folder: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for path in sparse_folder.iterdir():
        (foreign / path.name).write_bytes(path.read_bytes())
    record = json.loads((foreign / "run.json").read_text())
    record["settings"]["model"] = "/nowhere"
    (foreign / "run.json").write_text(json.dumps(record))
    with pytest.raises(RecipeError, match="--dense"):
        run_recovery(settings(model=str(foreign), objective="distill"))
