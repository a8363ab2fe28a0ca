"""Disk to tensors and back: what is read, what is refused, and that nothing else is changed."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DeepseekV4Config,
    PreTrainedModel,
    dynamic_module_utils,
)

import secateur
from secateur.checkpoint import (
    Checkpoint,
    Destination,
    OutputFolder,
    ResidentModel,
    StreamedModel,
    find_blocks,
    find_matrices,
    locate,
    open_model,
)
from secateur.errors import CheckpointError, OutputError
from secateur.record.check import check_folder
from tiny import BLOCKS, FAMILIES, Command, fingerprint, make_model, make_tokens

CPU = torch.device("cpu")
Save = Callable[..., Path]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def streamed(folder: Path, dtype: torch.dtype = torch.float32) -> StreamedModel:
    return StreamedModel(Checkpoint(folder), CPU, dtype)


def shard(folder: Path) -> Path:
    """Turn a folder's single file into three shards and their index."""
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    weight_map = {}
    for number in range(3):
        file = f"model-{number + 1:05d}-of-00003.safetensors"
        some = {name: tensors[name] for name in names[number::3]}
        save_file(some, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(some, file))
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    """Change the tensors in a folder's single file."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def reconfigure(folder: Path, **changes: Any) -> Path:
    """Change a folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def all_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor in a folder, whatever file it is in."""
    return {n: t for path in folder.glob("*.safetensors") for n, t in load_file(path).items()}


def identical(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same bit for bit."""
    same_kind = a.dtype == b.dtype and a.shape == b.shape
    return same_kind and torch.equal(
        a.contiguous().flatten().view(torch.uint8), b.contiguous().flatten().view(torch.uint8)
    )


# --- reading ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_a_checkpoint_holds_what_the_model_had(save: Save, dtype: torch.dtype, layout: str) -> None:
    model = make_model("llama", dtype=dtype)
    folder = save(model)
    checkpoint = Checkpoint(shard(folder) if layout == "sharded" else folder)
    state = model.state_dict()
    assert checkpoint.names == sorted(state)
    loaded = checkpoint.load(checkpoint.names)
    for name, value in state.items():
        assert identical(loaded[name], value), name
        assert checkpoint.shape(name) == tuple(value.shape)
        assert checkpoint.dtype(name) == dtype


def test_a_name_that_a_rule_of_the_family_takes_away_is_read_as_it_stands(tmp_path: Path) -> None:
    """Its rule for the norm within attention would rename the final norm too."""
    config = DeepseekV4Config(
        vocab_size=128, hidden_size=32, moe_intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, q_lora_rank=16,
        n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, o_groups=2, o_lora_rank=16,
        index_n_heads=2, index_head_dim=16, sliding_window=12, mlp_layer_types=["moe", "moe"],
        layer_types=["heavily_compressed_attention", "compressed_sparse_attention"],
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    source = open_model(tmp_path, torch.device("cpu"))
    assert isinstance(source, StreamedModel)
    assert set(source.naming.parameters) == set(model.state_dict())
    assert source.naming.tensors_of("model.norm.weight") == ["model.norm.weight"]


def test_nothing_is_kept_of_the_files(save: Save) -> None:
    folder = save(make_model("llama"))
    checkpoint = Checkpoint(folder)
    value = checkpoint.load(["model.norm.weight"])["model.norm.weight"]
    before = value.clone()
    (folder / WEIGHTS).write_bytes(b"\0" * (folder / WEIGHTS).stat().st_size)
    assert torch.equal(value, before)


@pytest.mark.parametrize("model_type", ["perceptron9000", "llama"])
def test_code_beside_the_weights_is_never_run(save: Save, tmp_path: Path, model_type: str) -> None:
    folder = save(make_model("llama"))
    planted = tmp_path / "planted"
    code = f"open({str(planted)!r}, 'w').close()\nclass C: pass\n"
    for file in ("configuration_evil.py", "modeling_evil.py", "__init__.py"):
        (folder / file).write_text(code)
    reconfigure(
        folder,
        model_type=model_type,
        auto_map={
            "AutoConfig": "configuration_evil.C",
            "AutoModelForCausalLM": "modeling_evil.C",
        },
    )
    if model_type == "llama":
        open_model(folder, CPU)
    else:
        with pytest.raises(CheckpointError, match="not one that transformers knows"):
            open_model(folder, CPU)
    assert not planted.exists()


@pytest.mark.filterwarnings("ignore")  # transformers' own, on loading code
def test_trusted_code_is_run_with_a_notice_and_goes_along(
    save: Save, tokens_file: Path, text_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, command: Command,
) -> None:  # fmt: skip
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = save(make_model("llama"))
    for kind, base in (("configuration", "Config"), ("modeling", "ForCausalLM")):
        lines = [f"from transformers import Llama{base}", f"class Own{base}(Llama{base}):"]
        if kind == "modeling":
            lines = ["from .configuration_own import OwnConfig", *lines]
        lines.append(
            "    model_type = 'own'" if base == "Config" else "    config_class = OwnConfig"
        )
        (folder / f"{kind}_own.py").write_text("\n".join(lines) + "\n")
    places = {"AutoConfig": "configuration_own.OwnConfig"}
    places["AutoModelForCausalLM"] = "modeling_own.OwnForCausalLM"
    reconfigure(folder, model_type="own", architectures=["OwnForCausalLM"], auto_map=places)
    options: dict[str, Any] = {
        "method": "wanda",
        "calibration": tokens_file,
        "sequence_length": 32,
        "samples": 8,
    }
    with pytest.raises(CheckpointError, match="--trust-remote-code"):
        secateur.prune(folder, out=tmp_path / "out", **options)
    run = secateur.prune(folder, out=tmp_path / "out", trust_remote_code=True, **options)
    assert run.architecture == "OwnForCausalLM"
    assert any("is trusted and may run with all your rights" in line for line in run.notices)
    assert (tmp_path / "out" / "modeling_own.py").is_file()
    with pytest.raises(CheckpointError, match="--trust-remote-code"):
        check_folder(str(tmp_path / "out"), None)
    assert check_folder(str(tmp_path / "out"), None, trust_remote_code=True).complaint is None

    # no command trusts it unasked; with the option each of them runs it, and takes it along
    commands: list[tuple[object, ...]] = [
        ("recover", tmp_path / "out", "--text", tokens_file, "--out", tmp_path / "recovered",
         "--sequence-length", 16, "--steps", 1, "--samples", 4, "--validation", 2),
        ("evaluate", tmp_path / "out", "--tasks", "offline", "--text", text_folder, "--limit", 4),
        ("compare", folder, "--methods", "wanda", "--calibration", tokens_file, "--text",
         text_folder, "--samples", 4, "--sequence-length", 16, "--windows", 2, "--limit", 4,
         "--tasks", "offline", "--out", tmp_path / "table"),
    ]  # fmt: skip
    for arguments in commands:
        for trust in ([], ["--trust-remote-code"]):
            status, _, told = command(*arguments, *trust)
            assert status == (0 if trust else 2), told
            assert ("or --trust-remote-code" in told) is not bool(trust)
    assert (tmp_path / "recovered" / "modeling_own.py").is_file()
    assert (tmp_path / "table" / "runs" / "wanda_2of4_seed0" / "modeling_own.py").is_file()


@pytest.mark.parametrize("name", ["./none", "/none", "~/none-at-all", "none", "a/b/c"])
def test_no_such_folder(name: str) -> None:
    with pytest.raises(CheckpointError, match="no model folder"):
        locate(name)


def test_a_hub_name_out_of_reach_is_one_line() -> None:
    with pytest.raises(CheckpointError, match="no such model could be fetched") as caught:
        locate("nobody/nothing")
    assert "\n" not in str(caught.value)


# --- a model made real piece by piece ---


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_open_piece_is_real(save: Save, family: str) -> None:
    model = make_model(family)
    source = streamed(save(model))
    reference = dict(model.named_parameters())

    def real() -> set[str]:
        return {name for name, p in source.model.named_parameters() if not p.is_meta}

    assert real() == set()
    for index in range(len(source.blocks)):
        prefix = source.blocks.prefix(index)
        with source.open_block(index) as block:
            assert block is source.blocks.modules[index]
            assert real() == {name for name in reference if name.startswith(prefix)}
            for name, parameter in block.named_parameters():
                assert torch.equal(parameter, reference[prefix + name])
                assert not parameter.requires_grad
            assert not any(module.training for module in block.modules())
        assert real() == set()
    with source.open_surroundings() as opened:
        inside = source.blocks.path + "."
        assert real() == {name for name in reference if not name.startswith(inside)}
        for name in real():
            assert torch.equal(opened.get_parameter(name), reference[name])
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert (
            opened.get_output_embeddings().weight is opened.get_input_embeddings().weight
        ) == tied
    assert real() == set()


def test_pieces_close_after_an_error(save: Save) -> None:
    source = streamed(save(make_model("llama")))
    with pytest.raises(ZeroDivisionError), source.open_block(1):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), source.open_surroundings():
        raise ZeroDivisionError
    assert all(parameter.is_meta for parameter in source.model.parameters())


def test_pieces_close_when_the_file_breaks_while_they_open(save: Save) -> None:
    folder = shard(save(make_model("llama")))
    source = streamed(folder)
    (folder / "model-00002-of-00003.safetensors").write_bytes(b"")
    for piece in (source.open_block(1), source.open_surroundings()):
        with pytest.raises(CheckpointError, match="cannot be read"), piece:
            pass
    assert all(parameter.is_meta for parameter in source.model.parameters())


def test_what_is_written_into_an_open_block_is_let_go(save: Save) -> None:
    source = streamed(save(make_model("llama")))
    with source.open_block(0) as block:
        find_matrices(block)[0].write(torch.zeros(32, 32))
    with source.open_block(0) as block:
        assert find_matrices(block)[0].read().abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precision_of_computing_and_of_storage(llama_folder: Path, dtype: torch.dtype) -> None:
    source = streamed(llama_folder, dtype)
    with source.open_block(0) as block:
        assert {parameter.dtype for parameter in block.parameters()} == {dtype}
    assert source.storage_dtype("model.layers.0.mlp.up_proj.weight") == torch.bfloat16
    assert open_model(llama_folder, CPU).dtype == torch.bfloat16


@pytest.mark.parametrize("held", ["embedding", "head", "both"])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_tied_embeddings_whichever_the_file_holds(save: Save, family: str, held: str) -> None:
    model = make_model(family, tie_word_embeddings=True)
    folder = save(model)
    name = next(n for n in load_file(folder / WEIGHTS) if n.endswith("embed_tokens.weight"))

    def change(tensors: dict[str, Tensor]) -> None:
        if held != "embedding":
            tensors["lm_head.weight"] = tensors[name].clone()
        if held == "head":
            del tensors[name]

    source = streamed(rewrite(folder, change))
    with source.open_surroundings() as opened:
        embedding, head = opened.get_input_embeddings(), opened.get_output_embeddings()
        assert torch.equal(embedding.weight, model.get_input_embeddings().weight)
        assert head.weight.data_ptr() == embedding.weight.data_ptr()
    assert all(parameter.is_meta for parameter in source.model.parameters())


def test_gpt2_as_the_hub_holds_it(save: Save, tmp_path: Path) -> None:
    """Names without the "transformer." prefix, and the causal masks as tensors."""
    model = make_model("gpt2")

    def change(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        for index in range(BLOCKS):
            tensors[f"h.{index}.attn.bias"] = torch.ones(1, 1, 64, 64).tril()

    folder = rewrite(save(model), change)
    source = streamed(folder)
    reference = dict(model.named_parameters())
    with source.open_block(2) as block:
        for name, parameter in block.named_parameters():
            assert torch.equal(parameter, reference[f"transformer.h.2.{name}"])
    copy_through(source, tmp_path / "out")
    before, after = all_tensors(folder), all_tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(identical(before[name], after[name]) for name in before)


@pytest.mark.parametrize("family", FAMILIES)
def test_matrices_are_seen_as_out_by_in(family: str) -> None:
    model = make_model(family)
    matrices = find_matrices(find_blocks(model).modules[0])
    seen: dict[str, tuple[int, int]] = {}
    for matrix in matrices:
        matrix.owner.register_forward_hook(
            lambda _, args, output, name=matrix.name: seen.update(
                {name: (output.shape[-1], args[0].shape[-1])}
            )
        )
    model(make_tokens(1, 8))
    assert seen == {matrix.name: matrix.shape for matrix in matrices}


# --- a model in memory ---


def state_of(model: PreTrainedModel) -> dict[str, tuple[Any, ...]]:
    """What must be as before: device, dtype, gradients, training, values."""
    facts: dict[str, tuple[Any, ...]] = {
        name: (p.device, p.dtype, p.requires_grad, p.detach().clone())
        for name, p in model.named_parameters()
    }
    facts.update({f"training of {name}": (m.training,) for name, m in model.named_modules()})
    facts.update({f"buffer {n}": (b.dtype, b.clone()) for n, b in model.named_buffers()})
    return facts


def same_state(a: dict[str, tuple[Any, ...]], b: dict[str, tuple[Any, ...]]) -> bool:
    return a.keys() == b.keys() and all(
        identical(x, y) if isinstance(x, Tensor) else x == y
        for name in a
        for x, y in zip(a[name], b[name], strict=True)
    )


def mixed_model() -> PreTrainedModel:
    """A model in bfloat16 with one norm in float32, some parts frozen, some in training mode."""
    model = make_model("llama", dtype=torch.bfloat16)
    model.model.norm.float()
    model.train()
    model.model.layers[1].mlp.eval()
    model.model.embed_tokens.requires_grad_(False)
    model.model.layers[2].requires_grad_(False)
    return model


@pytest.mark.parametrize("fault", [None, ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_in_memory_is_given_back_as_it_was(
    dtype: torch.dtype, fault: type[BaseException] | None
) -> None:
    model = mixed_model()
    model.model.norm.to(torch.bfloat16)  # nothing that a lower precision could round
    before = state_of(model)
    source = ResidentModel(model, CPU, dtype)
    for piece in (source.open_block(1), source.open_surroundings()):
        try:
            with piece as opened:
                outside = isinstance(opened, PreTrainedModel)
                norm = opened.model.norm if outside else opened.input_layernorm
                assert norm.weight.dtype == dtype
                assert not norm.weight.requires_grad
                assert not norm.training
                if fault is not None:
                    raise fault
        except (ZeroDivisionError, KeyboardInterrupt):
            pass
        assert same_state(before, state_of(model))


def test_what_is_written_into_an_open_block_stays() -> None:
    model = mixed_model()
    source = ResidentModel(model, CPU, torch.float32)
    with source.open_block(1) as block:
        find_matrices(block)[0].write(torch.full((32, 32), 0.5))
    weight = model.model.layers[1].self_attn.q_proj.weight
    assert weight.dtype == torch.bfloat16
    assert bool((weight == 0.5).all())
    assert weight.requires_grad


def test_a_lower_computing_precision_does_not_round_the_model() -> None:
    """Embeddings, norms and heads are nobody's to change, whatever the run computes in."""
    model = make_model("llama", dtype=torch.float32)
    before = state_of(model)
    source = ResidentModel(model, CPU, torch.bfloat16)
    with source.open_surroundings():
        pass
    with source.open_block(0):
        pass
    assert same_state(before, state_of(model))


def test_storage_precision_is_known_while_a_piece_is_open() -> None:
    source = ResidentModel(mixed_model(), CPU, torch.float32)
    name = "model.layers.0.mlp.up_proj.weight"
    with source.open_block(0):
        assert source.storage_dtype(name) == torch.bfloat16


# --- writing ---


def copy_through(
    source: StreamedModel, out: Path, changed: dict[str, Tensor] | None = None, **options: Any
) -> None:
    """Write a model as a run does, with some parameters changed."""
    with OutputFolder(Destination(out, source.checkpoint.folder, **options)) as output:
        for index in range(len(source.blocks)):
            prefix = source.blocks.prefix(index)
            these = {n: v for n, v in (changed or {}).items() if n.startswith(prefix)}
            output.store_block(source, index, these)
        output.write_rest(source)
        output.seal()
        output.finish("{}\n")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_only_what_changed_differs(save: Save, tmp_path: Path, family: str, layout: str) -> None:
    folder = save(make_model(family, dtype=torch.bfloat16))
    rewrite(folder, lambda t: t.update({"left.over": torch.arange(5)}))
    if layout == "sharded":
        shard(folder)
    source = streamed(folder)
    matrix = find_matrices(source.blocks.modules[1])[0]
    name = source.blocks.prefix(1) + matrix.name
    new = torch.randn(source.model.get_parameter(name).shape).to(torch.bfloat16)
    copy_through(source, tmp_path / "out", {name: new})
    before, after = all_tensors(folder), all_tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    (stored,) = source.naming.tensors_of(name)
    assert {n for n in before if not identical(before[n], after[n])} == {stored}
    assert identical(after[stored], new)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.get_parameter(name), new)


def test_every_tensor_keeps_a_dtype_of_its_own(save: Save, tmp_path: Path) -> None:
    folder = save(make_model("llama", dtype=torch.bfloat16))
    norms = {f"model.layers.{i}.input_layernorm.weight": torch.rand(32) for i in range(BLOCKS)}
    rewrite(folder, lambda t: t.update(norms))
    copy_through(streamed(folder), tmp_path / "out")
    before, after = all_tensors(folder), all_tensors(tmp_path / "out")
    assert all(identical(before[name], after[name]) for name in before)
    assert {after[name].dtype for name in norms} == {torch.float32}


def test_the_index_is_right(save: Save, tmp_path: Path) -> None:
    folder = save(make_model("llama"))
    copy_through(streamed(folder), tmp_path / "out")
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / "out" / file)
    tensors = all_tensors(tmp_path / "out")
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())


def test_what_is_copied_and_what_is_not(save: Save, tmp_path: Path) -> None:
    folder = save(make_model("llama"))
    copied = ["LICENSE", "chat_template.jinja", "vocab.txt", "tokenizer.model", "special.json"]
    dropped = [
        "README.md", "modeling_evil.py", "pytorch_model.bin", "pytorch_model.bin.index.json",
        "tf_model.h5", "run.json", ".gitattributes", "other.safetensors", "model.gguf",
    ]  # fmt: skip
    for name in copied + dropped:
        (folder / name).write_text(name)
    (folder / "onnx").mkdir()
    checkpoint = Checkpoint(folder)
    copy_through(StreamedModel(checkpoint, CPU, torch.float32), tmp_path / "out")
    there = set(os.listdir(tmp_path / "out"))
    assert set(copied) <= there
    assert there & {*dropped, "onnx"} == {"run.json"}
    assert (tmp_path / "out" / "run.json").read_text() == "{}\n"
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert len(modes) == 1  # shards can be read by whoever reads the rest


@pytest.mark.parametrize("fault", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_nothing(save: Save, tmp_path: Path, fault: type[BaseException]) -> None:
    source = streamed(save(make_model("llama")))
    before = fingerprint(tmp_path)

    def fail() -> None:
        out = tmp_path / "new" / "deep" / "out"
        with OutputFolder(Destination(out, source.checkpoint.folder)) as output:
            output.store_block(source, 0, {})
            assert fingerprint(tmp_path) != before
            raise fault

    with pytest.raises(fault):
        fail()
    assert fingerprint(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_a_failure_keeps_folders_that_were_there(save: Save, tmp_path: Path) -> None:
    source = streamed(save(make_model("llama")))
    (tmp_path / "mine").mkdir()
    with (
        pytest.raises(ZeroDivisionError),
        OutputFolder(Destination(tmp_path / "mine" / "new" / "out", source.checkpoint.folder)),
    ):
        raise ZeroDivisionError
    assert list((tmp_path / "mine").iterdir()) == []


def test_leaving_without_finish_is_a_failure(save: Save, tmp_path: Path) -> None:
    source = streamed(save(make_model("llama")))
    with OutputFolder(Destination(tmp_path / "out", source.checkpoint.folder)) as output:
        output.store_block(source, 0, {})
    assert os.listdir(tmp_path) == ["model"]


def test_a_link_stays_and_what_it_leads_to_is_replaced(save: Save, tmp_path: Path) -> None:
    source = streamed(save(make_model("llama")))
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    copy_through(source, tmp_path / "link")
    (tmp_path / "real" / "mark.json").write_text("old")
    copy_through(source, tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert not (tmp_path / "real" / "mark.json").exists()
    assert (tmp_path / "real" / INDEX).is_file()
    assert sorted(os.listdir(tmp_path)) == ["link", "model", "real"]


def test_what_a_killed_run_left_does_not_matter(save: Save, tmp_path: Path) -> None:
    source = streamed(save(make_model("llama")))
    (tmp_path / ".out.partial" / "state").mkdir(parents=True)
    (tmp_path / ".out.partial" / "model-00009-of-00009.safetensors").write_text("old")
    copy_through(source, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*00009*"))
    assert sorted(os.listdir(tmp_path)) == ["model", "out"]


def test_the_old_result_survives_when_the_new_one_cannot_take_its_place(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = streamed(save(make_model("llama")))
    copy_through(source, tmp_path / "out")
    (tmp_path / "out" / "mark.json").write_text("old")
    before = fingerprint(tmp_path)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == ".out.partial":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OutputError, match="cannot be written"):
        copy_through(source, tmp_path / "out", overwrite=True)
    assert fingerprint(tmp_path) == before
