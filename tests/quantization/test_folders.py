"""Pruned and quantised in one sweep: what is written is what the next block saw, and is read so."""

from __future__ import annotations

import builtins
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, PreTrainedModel

import secateur
from secateur.blocks import rounding, sweep
from secateur.checkpoint import Checkpoint
from secateur.errors import CheckpointError, ModelError, RecipeError, SecateurError
from secateur.quantization import gptq, parse_scheme
from tiny import fingerprint, make_model, make_sparse_model, make_tokens, weights_of

OPTIONS: dict[str, Any] = {"samples": 8, "sequence_length": 32, "batch_size": 3}
CASES: dict[str, dict[str, Any]] = {
    "w4a16:g32": {"method": "sparsegpt", "pattern": "2:4"},
    "w8a16": {"pattern": "dense"},
    "w4a16:g32:asym": {"method": "wanda", "pattern": "50%", "schedule": "matrix"},
    "fp8": {"method": "magnitude", "pattern": "2:4"},
    "w4a16:row": {"method": "sparsegpt", "pattern": "2:4", "mend": True, "effort": "fast"},
    "w8a16:asym": {"method": "alps-ro", "pattern": "4:8", "effort": "fast"},
}


def prune(model: Path, tokens: Path, out: Path | None, **options: Any) -> Any:
    return secateur.prune(model, calibration=tokens, out=out, **{**OPTIONS, **options})


@pytest.fixture(scope="module", params=list(CASES))
def folder(
    request: pytest.FixtureRequest,
    llama_folder: Path,
    tokens_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A model that was pruned and quantised by each scheme; the folder is called after it."""
    out: Path = tmp_path_factory.mktemp("quantised") / request.param.replace(":", "-")
    prune(llama_folder, tokens_file, out, quantize=request.param, **CASES[request.param])
    return out


def scheme_of(folder: Path) -> str:
    return folder.name.replace("-", ":")


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(make_tokens(2, 16, seed=5)).logits
    return found


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
def test_transformers_dequantises_to_the_very_weights_that_the_run_had(
    folder: Path, llama_folder: Path, tokens_file: Path
) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    in_memory = AutoModelForCausalLM.from_pretrained(llama_folder)
    tokens = load_file(tokens_file)["input_ids"]
    scheme = scheme_of(folder)
    secateur.prune(in_memory, calibration=tokens, quantize=scheme, **{**OPTIONS, **CASES[scheme]})
    ours = dict(in_memory.state_dict())
    assert theirs.dtype == torch.bfloat16
    for name, weight in theirs.state_dict().items():
        assert torch.equal(weight, ours[name]), name
    assert torch.equal(logits(theirs), logits(in_memory))
    assert torch.equal(logits(secateur.load(folder)), logits(theirs))
    checkpoint = Checkpoint(folder)
    assert all(torch.equal(checkpoint.load([name])[name], ours[name]) for name in checkpoint.names)


def test_transformers_runs_the_folder_as_it_is(folder: Path) -> None:
    if scheme_of(folder).endswith("asym"):  # of which the run has a notice
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            AutoModelForCausalLM.from_pretrained(folder)
        return
    running = AutoModelForCausalLM.from_pretrained(folder)
    found, ours = logits(running), secateur.load(folder)
    if scheme_of(folder) == "fp8":  # and rounds what every quantised layer reads

        def rounded(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            scale = args[0].abs().amax(-1, keepdim=True) / 448
            levels = (args[0] / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
            return (levels.to(scale.dtype) * scale,)

        for layer in ours.model.layers.modules():
            if isinstance(layer, nn.Linear):
                layer.register_forward_pre_hook(rounded)
    torch.testing.assert_close(found, logits(ours), rtol=0, atol=0.05)


def test_the_files_are_those_of_the_format(folder: Path, llama_folder: Path) -> None:
    scheme, tensors = parse_scheme(scheme_of(folder)), weights_of(folder)
    dense = weights_of(llama_folder)
    told = json.loads((folder / "config.json").read_text())["quantization_config"]
    form = "float-quantized" if scheme.floating else "pack-quantized"
    group = told["config_groups"]["group_0"]
    assert (told["quant_method"], told["format"]) == ("compressed-tensors", form)
    assert (told["quantization_status"], told["ignore"]) == ("compressed", ["lm_head"])
    assert (group["targets"], group["format"]) == (["Linear"], form)
    assert group["weights"]["num_bits"] == scheme.bits
    assert group["weights"]["strategy"] == ("group" if scheme.group else "channel")
    assert group["weights"]["symmetric"] == scheme.symmetric
    assert (group["input_activations"] is not None) == scheme.floating
    for name, weight in dense.items():
        if ".layers." not in name or weight.dim() < 2:
            assert torch.equal(tensors.pop(name), weight)
            continue
        rows, columns = weight.shape
        scale = tensors.pop(f"{name}_scale")
        assert scale.dtype == torch.bfloat16
        assert scale.shape == (rows, columns // (scheme.group or columns))
        if scheme.floating:
            assert tensors.pop(name).dtype == torch.float8_e4m3fn
            continue
        packed = tensors.pop(f"{name}_packed")
        assert packed.dtype == torch.int32
        assert packed.shape == (rows, columns * scheme.bits // 32)
        assert tensors.pop(f"{name}_shape").tolist() == [rows, columns]
        if not scheme.symmetric:
            assert tensors.pop(f"{name}_zero_point").dtype == torch.int32
    assert tensors == {}


def test_the_record_knows_the_bytes_and_check_proves_pattern_and_grid(folder: Path) -> None:
    proof = secateur.check(folder)
    assert proof.complaint is None
    (count,) = proof.grids.kinds.values()
    assert count == sum(kind.matrices for kind in proof.kinds)
    record = json.loads((folder / "run.json").read_text())
    assert record["weight_bytes"] == sum(t.nbytes for t in weights_of(folder).values())
    assert record["stages"][0]["settings"]["quantize"] == scheme_of(folder)
    measured = secateur.evaluate(folder, text="builtin", sequence_length=32, windows=2)
    assert measured.perplexity > 1


def test_check_finds_what_is_not_on_its_grid(folder: Path, tmp_path: Path) -> None:
    scheme, copy = scheme_of(folder), tmp_path / "copy"
    shutil.copytree(folder, copy)
    shard = copy / "model-00002-of-00004.safetensors"
    tensors = load_file(shard)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[f"{name}_scale"][3] = -1.0
    save_file(tensors, shard, metadata={"format": "pt"})
    proof = secateur.check(copy)
    assert proof.grids.off == (name,)
    assert "not quantised as they are to be" in str(proof.complaint)
    record = json.loads((folder / "run.json").read_text())
    other = "w8a16:g32" if scheme != "w8a16:g32" else "fp8"
    record["stages"][0]["settings"]["quantize"] = other
    (copy / "run.json").write_text(json.dumps(record))
    assert len(secateur.check(copy).grids.off) == sum(kind.matrices for kind in proof.kinds)


@pytest.mark.parametrize("at", [1, 2])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(
    folder: Path, llama_folder: Path, tokens_file: Path, tmp_path: Path, at: int
) -> None:
    real, out, scheme = rounding.round_weights, tmp_path / folder.name, scheme_of(folder)

    def round_weights(block: Any, *args: Any) -> Any:
        if block.index == at:
            raise KeyboardInterrupt
        return real(block, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "round_weights", round_weights)
        with pytest.raises(KeyboardInterrupt):
            prune(llama_folder, tokens_file, out, quantize=scheme, **CASES[scheme])
    assert not out.exists()
    prune(llama_folder, tokens_file, out, quantize=scheme, **CASES[scheme])
    left, right = fingerprint(out), fingerprint(folder)
    del left["run.json"], right["run.json"]
    assert left == right


def test_what_would_leave_the_grid_is_refused(
    folder: Path, text_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="quantised already"):
        secateur.pack(folder, tmp_path / "packed")
    with pytest.raises(ModelError, match="training would move them off their grid"):
        secateur.recover(folder, text=text_folder, out=tmp_path / "recovered", steps=1)


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers by an old name
def test_adapters_are_trained_beside_quantised_weights(
    folder: Path, text_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "recovered"
    record = secateur.recover(
        folder, text=text_folder, out=out, result="adapters", steps=2, samples=8, validation=2,
        sequence_length=32, learning_rate=0.01,
    )  # fmt: skip
    assert record.recovery is not None
    assert record.recovery.zeros_after == record.recovery.zeros_before
    left, right = weights_of(out), weights_of(folder)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert secateur.check(out).holds
    theirs = AutoModelForCausalLM.from_pretrained(
        out, quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    ours = secateur.load(out)
    before = logits(ours)
    with_adapters = [
        logits(PeftModel.from_pretrained(model, str(out / "adapter"))) for model in (ours, theirs)
    ]
    assert torch.equal(*with_adapters)
    assert not torch.equal(with_adapters[0], before)


def test_pruning_a_quantised_folder_gives_plain_weights(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "plain"
    record = secateur.prune(folder, method="magnitude", pattern="2:4", out=out)
    assert any("matrices are quantised" in line for line in record.notices)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    assert {weight.dtype for weight in weights_of(out).values()} == {torch.bfloat16}


def test_blocks_see_what_the_quantised_ones_give(
    llama_folder: Path, tokens_file: Path, tmp_path: Path
) -> None:
    text = {"text": "builtin", "windows": 2}
    run = prune(llama_folder, tokens_file, tmp_path / "out", method="wanda", pattern="50%",
                quantize="w4a16", **text)  # fmt: skip
    after = secateur.evaluate(tmp_path / "out", text="builtin", windows=2, sequence_length=32)
    assert run.evaluations[0].perplexity == pytest.approx(after.perplexity, rel=1e-5)
    assert "groups of 128 do not divide 32, 64 inputs: all matrices get groups of 32" in run.notices


def test_gptq_loses_less_than_the_nearest(llama_folder: Path, tokens_file: Path) -> None:
    errors = {
        by: prune(llama_folder, tokens_file, None, pattern="dense", quantize="w4a16:row",
                  quantize_by=by, text="builtin", windows=2).mean_output_error
        for by in ("gptq", "rtn")
    }  # fmt: skip
    assert errors["gptq"] < 0.9 * errors["rtn"]


@pytest.mark.parametrize("quantize_by", ["gptq", "rtn"])
@pytest.mark.parametrize("options", [{"method": "sparsegpt", "mend": True}, {"method": "alps-ro"}])
def test_the_regional_optimiser_works_through_the_rounding(
    llama_folder: Path, options: Any, quantize_by: str
) -> None:
    """What it judges is the rounded block, of which it keeps the zeros and the grid."""
    model = AutoModelForCausalLM.from_pretrained(llama_folder)
    given = {"samples": 24, "sequence_length": 32, "quantize_by": quantize_by, **options}
    run = secateur.prune(
        model, calibration=make_tokens(24, 32), quantize="w4a16:g32", effort="fast", **given
    )
    judged = [block.judged for block in run.blocks if block.judged is not None]
    assert len(judged) == len(run.blocks)
    assert all(after < before for before, after in judged)
    weight = model.model.layers[0].self_attn.q_proj.weight.detach()
    assert int((weight.view(-1, 4) == 0).sum(1).min()) == 2
    assert max(len(group.unique()) for group in weight.view(-1, 32)) <= 16


def test_some_matrices_may_be_left_out(
    llama_folder: Path, tokens_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    prune(llama_folder, tokens_file, out, pattern="dense", quantize="w8a16",
          exclude=["down_proj"], dense_first=1)  # fmt: skip
    told = json.loads((out / "config.json").read_text())["quantization_config"]
    assert "model.layers.1.mlp.down_proj" in told["ignore"]
    assert "model.layers.0.self_attn.q_proj" in told["ignore"]
    assert "model.layers.1.self_attn.q_proj" not in told["ignore"]
    running = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(logits(running), logits(secateur.load(out)), rtol=0, atol=0.05)
    assert secateur.check(out).complaint is None


def test_the_zeros_of_a_sparse_model_stay_where_nothing_is_pruned(
    save: Callable[..., Path], tokens_file: Path, tmp_path: Path
) -> None:
    source, out = save(make_sparse_model("llama", dtype=torch.bfloat16)), tmp_path / "out"
    prune(source, tokens_file, out, pattern="dense", quantize="w4a16:g32")
    dense, sparse = weights_of(source), Checkpoint(out)
    for name in sparse.quantised:
        assert bool((sparse.load([name])[name][dense[name] == 0] == 0).all())
    assert secateur.check(out, pattern="2:4").complaint is None


def test_a_second_stage_quantises_what_lost_blocks(
    llama_folder: Path, tokens_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    stages = [
        {"method": "magnitude", "pattern": "blocks-1"},
        {"pattern": "dense", "quantize": "w4a16:g32"},
    ]
    prune(llama_folder, tokens_file, out, stages=stages)
    assert secateur.check(out).complaint is None
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 2
    assert logits(AutoModelForCausalLM.from_pretrained(out)).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "dense"}, "prunes nothing: give quantize"),
        ({"patterns": {"mlp": "dense"}}, "prunes nothing: give quantize"),
        ({"pattern": "dense", "quantize": "w4a16", "method": "wanda"}, "leave method out"),
        ({"quantize": "int4"}, "no scheme 'int4'"),
        ({"quantize_by": "rtn"}, "give quantize too"),
        ({"quantize": "w4a16", "quantize_by": "best"}, "wanted one of gptq, rtn"),
        ({"quantize": "w4a16", "quantize_by": "gptq", "calibration": None, "method": "magnitude"},
         "gptq needs calibration text"),
        ({"quantize": "w4a16", "pattern": "blocks-1", "method": "magnitude"},
         "is for a stage after it"),
        ({"quantize": "w4a16", "mend": True, "method": "alps-ro"}, "leave mend out"),
        ({"quantize": "w4a16", "mend": True, "method": "magnitude", "calibration": None},
         "mend needs calibration text"),
        ({"quantize": "w4a16", "mend": True, "method": "wanda", "schedule": "matrix"},
         "leave schedule out"),
        ({"mend": True, "method": "wanda"}, "or is quantised: leave it out"),
        ({"quantize": "w4a16", "images": "i", "calibration": None}, "is for language models"),
        ({"stages": [{"method": "magnitude", "quantize": "w4a16"}, {"method": "wanda"}]},
         "quantise in the last stage"),
        ({"stages": [{"method": "magnitude", "quantize": "w4a16"}, {"kind": "recover"}]},
         "quantise in the last stage"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_told_in_a_line(options: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as fault:
        secateur.prune("m", out="o", **{"calibration": "c", **options})
    assert "\n" not in str(fault.value)


def test_a_pattern_that_every_model_has_proves_nothing() -> None:
    with pytest.raises(RecipeError, match="every model has the pattern dense"):
        secateur.check("m", pattern="dense")


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize("scheme", ["w4a16:row", "w8a16", "fp8"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_lie_one_by_one(
    save: Callable[..., Path], tokens_file: Path, tmp_path: Path, family: str, scheme: str
) -> None:
    source, out = save(make_model(family, dtype=torch.bfloat16)), tmp_path / "out"
    options: dict[str, Any] = {"method": "wanda", "pattern": "2:4", "quantize": scheme}
    run = prune(source, tokens_file, out, **options)
    proof = secateur.check(out)
    assert proof.complaint is None
    stored, dense = weights_of(out), weights_of(source)
    assert run.weight_bytes == sum(tensor.nbytes for tensor in stored.values())
    router = next(name for name in dense if name.endswith(".gate.weight"))
    assert torch.equal(stored[router], dense[router])
    told = json.loads((out / "config.json").read_text())["quantization_config"]
    assert router.removesuffix(".weight") in told["ignore"]
    assert not any(".experts." in name for name in told["ignore"])
    in_memory = AutoModelForCausalLM.from_pretrained(source)
    tokens = load_file(tokens_file)["input_ids"]
    secateur.prune(in_memory, calibration=tokens, **{**OPTIONS, **options})
    theirs = AutoModelForCausalLM.from_pretrained(
        out, quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    for name, weight in in_memory.state_dict().items():
        assert torch.equal(theirs.get_parameter(name), weight), name
    assert torch.equal(logits(secateur.load(out)), logits(in_memory))


@pytest.mark.parametrize(
    ("family", "message"),
    [("gpt2", r"as \[in, out\] is"), ("granitemoe", "that lie in one tensor are")],
)
def test_layers_that_are_not_written_quantised_are_refused_before_any_work(
    save: Callable[..., Path], tokens_file: Path, tmp_path: Path, family: str, message: str
) -> None:
    source = save(make_model(family))
    with pytest.raises(ModelError, match=f"{message} not written quantised"):
        prune(source, tokens_file, tmp_path / "out", pattern="dense", quantize="w8a16")
    assert not (tmp_path / "out").exists()
    run = prune(source, tokens_file, None, pattern="dense", quantize="w8a16", text="builtin",
                windows=1)  # fmt: skip
    assert run.evaluations[0].perplexity > 1  # it can be measured all the same


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "w8a16", "exclude": [r"experts\.1"]}, "some experts and not all are"),
        ({"quantize": "w8a16:asym"}, "experts with zero points are"),
        (
            {"quantize": "w8a16", "exclude": ["experts"]},
            "16 bits beside layers in w8a16",
        ),
    ],
)
def test_experts_that_transformers_would_not_load_are_refused(
    save: Callable[..., Path], tokens_file: Path, tmp_path: Path, options: Any, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        prune(
            save(make_model("mixtral")), tokens_file, tmp_path / "out", pattern="dense", **options
        )


def test_experts_may_be_left_out_of_fp8(
    save: Callable[..., Path], tokens_file: Path, tmp_path: Path
) -> None:
    source, out = save(make_model("mixtral")), tmp_path / "out"
    prune(source, tokens_file, out, pattern="dense", quantize="fp8", exclude=["experts"])
    told = json.loads((out / "config.json").read_text())["quantization_config"]
    assert "model.layers.0.block_sparse_moe.experts.1.w1" in told["ignore"]
    checkpoint, model = Checkpoint(out), secateur.load(out)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(checkpoint.load([name])[name], model.get_parameter(name))
    assert logits(AutoModelForCausalLM.from_pretrained(out)).isfinite().all()


@pytest.mark.parametrize("command", ["prune", "open"])
def test_without_the_library_a_line_says_what_to_install(
    folder: Path, llama_folder: Path, tokens_file: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, command: str,
) -> None:  # fmt: skip
    real = builtins.__import__

    def refuse(name: str, *args: Any, **more: Any) -> Any:
        if name.startswith("compressed_tensors"):
            raise ImportError(name)
        return real(name, *args, **more)

    for name in [name for name in sys.modules if name.startswith("compressed_tensors")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)
    pruned = {"pattern": "dense", "quantize": "w8a16"}
    commands: dict[str, Callable[[], Any]] = {
        "prune": lambda: prune(llama_folder, tokens_file, tmp_path / "out", **pruned),
        "open": lambda: secateur.evaluate(folder, text="builtin", sequence_length=32),
    }
    with pytest.raises(SecateurError, match=r"pip install 'secateur\[quantize\]'"):
        commands[command]()
    assert not (tmp_path / "out").exists()


def test_a_pruned_block_is_rounded_by_what_it_reads_itself(
    llama_folder: Path, tokens_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inputs of down_proj are what pruned gate and up give, not what they gave."""
    given, hessians = list[Tensor](), list[Tensor]()

    def recorded(weights: Any, hessian: Tensor, *others: Any) -> Any:
        given.extend(weights)
        hessians.append(hessian.clone())
        return gptq(weights, hessian, *others)

    monkeypatch.setattr(rounding, "gptq", recorded)
    model = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    secateur.prune(
        model, calibration=tokens_file, method="wanda", pattern="2:4", quantize="w8a16", **OPTIONS
    )
    again = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    block = again.model.layers[0]
    attention, mlp = block.self_attn, block.mlp
    in_order = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj,
                mlp.gate_proj, mlp.up_proj, mlp.down_proj)  # fmt: skip
    for layer, weight in zip(in_order, given, strict=False):
        layer.weight.data.copy_(weight)
    read: list[Tensor] = []
    mlp.down_proj.register_forward_hook(lambda _, inputs, __: read.append(inputs[0]))
    again(load_file(tokens_file)["input_ids"][: OPTIONS["samples"]])
    (x,) = read
    expected = 2 * torch.einsum("nti,ntj->ij", x, x) / len(x)
    torch.testing.assert_close(hessians[3], expected.detach())


def test_a_comparison_tells_bytes_where_a_row_is_quantised(
    llama_folder: Path, tokens_file: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {**OPTIONS, "calibration": tokens_file, "text": "builtin",
                               "windows": 1}  # fmt: skip
    runs = [
        secateur.prune(llama_folder, method="sparsegpt", pattern="2:4", **{**options, **more})
        for more in ({}, {"quantize": "w4a16:g32"})
    ]
    assert runs[0].weight_bytes == sum(t.nbytes for t in weights_of(llama_folder).values())
    found = secateur.compare(
        llama_folder, methods="sparsegpt,magnitude", patterns="2:4,dense", seeds="0,1",
        quantize="none,w4a16:g32", quantize_by="rtn", out=tmp_path / "compared", **options,
    )  # fmt: skip
    assert found is not None
    names = {path.parent.name for path in (tmp_path / "compared" / "runs").glob("*/run.json")}
    assert names == {
        *(f"sparsegpt_2of4{scheme}_seed{n}" for scheme in ("", "_w4a16-g32") for n in (0, 1)),
        "magnitude_2of4_seed0", "magnitude_2of4_w4a16-g32_seed0", "dense_w4a16-g32_seed0",
    }  # fmt: skip
    table = (tmp_path / "compared" / "table.md").read_text()
    assert "weights (MB)" in table
    assert f"{runs[1].weight_bytes / 1e6:.1f}" in table  # type: ignore[operator]
    for name in ("sparsegpt (quantize=w4a16:g32)", "no pruning (quantize=w4a16:g32)", "sparsegpt"):
        assert f"| {name} |" in table
    assert "Prune more, or round more" in (tmp_path / "compared" / "report.html").read_text()


def test_zeros_take_no_bytes_where_they_are_packed(
    llama_folder: Path, tokens_file: Path, tmp_path: Path
) -> None:
    """A bit for every place, and so many for every other weight; as `pack` writes it."""
    options: dict[str, Any] = {
        **OPTIONS, "calibration": tokens_file, "method": "wanda", "text": "builtin", "windows": 1
    }  # fmt: skip
    stored_bits = 8 * next(iter(weights_of(llama_folder).values())).itemsize
    for scheme, bits in ((None, stored_bits), ("w4a16:g32", 4), ("w8a16", 8)):
        run = secateur.prune(llama_folder, pattern="2:4", quantize=scheme, **options)
        matrices = [matrix for block in run.blocks for matrix in block.matrices]
        saved = sum(m.zeros * bits // 8 - m.rows * -(-m.columns // 8) for m in matrices)
        assert run.packed_bytes == (run.weight_bytes or 0) - saved
        assert saved > 0
    few = secateur.prune(llama_folder, pattern="5%", quantize="w4a16:g32", **options)
    assert few.packed_bytes == few.weight_bytes  # the bits would take more than the zeros do
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    run = secateur.prune(llama_folder, pattern="2:4", out=plain, **options)
    secateur.pack(plain, out=packed)
    stored = weights_of(packed)
    counted = {matrix.name: matrix for block in run.blocks for matrix in block.matrices}
    names = [name.removesuffix(".mask") for name in stored if name.endswith(".mask")]
    for matrix in [counted[name] for name in names]:  # not the smallest: `pack` lets them be
        size = (matrix.rows * matrix.columns - matrix.zeros) * stored_bits // 8
        size += matrix.rows * -(-matrix.columns // 8)
        parts = (stored[f"{matrix.name}.{part}"].nbytes for part in ("values", "mask"))
        assert sum(parts) == size
    assert names
