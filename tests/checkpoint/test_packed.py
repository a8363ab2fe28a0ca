"""Packed folders: the same bits in fewer bytes, read by every command and by transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import secateur
from secateur.checkpoint import Checkpoint, OutputFolder
from secateur.errors import CheckpointError, OutputError
from secateur.export import folders
from secateur.packing import Bitmask
from secateur.packing import layout as packed_format
from secateur.record.check import check_folder
from secateur.sparsity import NofM
from tiny import EVERY_FAMILY, fingerprint, make_model, make_tokens
from tiny import save as save_folder

WEIGHTS = "model.safetensors"
CONV1D = ("gpt2", "openai-gpt")


def prune_on_disk(folder: Path, axis: int = -1, keep: int = 2) -> None:
    """`keep` of every 4 weights, along one dimension of every matrix but the embeddings."""
    tensors = load_file(folder / WEIGHTS)
    for name, tensor in tensors.items():
        wide = tensor.dim() >= 2 and tensor.shape[axis] % 4 == 0
        if wide and not any(part in name for part in ("embed", "wte", "wpe", "lm_head")):
            seen = tensor.transpose(axis, -1)
            groups = seen.reshape(-1, 4).clone()
            groups[:, keep:] = 0
            tensors[name] = groups.view(seen.shape).transpose(axis, -1).contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def contents(folder: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    """Everything that the plain files of a folder hold, bit for bit."""
    found = {}
    for path in folder.glob("model*.safetensors"):
        for name, tensor in load_file(path).items():
            found[name] = (tensor.dtype, tuple(tensor.shape), bits(tensor))
    return found


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path, tokens_file: Path) -> Path:
    """The tiny Llama in bfloat16, pruned to 2:4 by secateur: with its run record."""
    out = tmp_path_factory.mktemp("sparse") / "llama"
    secateur.prune(
        llama_folder, method="wanda", calibration=tokens_file, sequence_length=32, out=out
    )
    return out


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, sparse: Path) -> Path:
    """The same, packed. Not to be written to."""
    out = tmp_path_factory.mktemp("packed") / "llama"
    secateur.pack(sparse, out)
    return out


def test_there_and_back_is_the_same_bits(sparse: Path, packed: Path, tmp_path: Path) -> None:
    before = fingerprint(sparse)
    done = secateur.unpack(packed, tmp_path / "plain")
    assert contents(tmp_path / "plain") == contents(sparse)
    assert fingerprint(sparse) == before
    assert done.forms["2:4"] == 15  # k and v, 16 x 32, would not pay for their headers
    assert done.before < done.after == sum(len(data) for _, _, data in contents(sparse).values())
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        there, back = ((f / name).read_text() for f in (sparse, tmp_path / "plain"))
        assert json.loads(there) == json.loads(back)


def test_the_bundled_model_at_2_of_4_takes_57_percent(tmp_path: Path) -> None:
    secateur.prune("builtin", method="magnitude", pattern="2:4", out=tmp_path / "sparse")
    done = secateur.pack(tmp_path / "sparse", tmp_path / "packed")
    assert done.forms["2:4"] == 42
    assert done.matrices_packed / done.matrices_dense <= 0.57
    on_disk = sum(path.stat().st_size for path in (tmp_path / "packed").glob("*.safetensors"))
    others = done.after - done.matrices_packed
    assert (on_disk - others) / done.matrices_dense <= 0.57  # with all that headers take
    secateur.unpack(tmp_path / "packed", tmp_path / "plain")
    assert contents(tmp_path / "plain") == contents(tmp_path / "sparse")


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_every_family_comes_back(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linear and Conv1D, experts in one tensor and in one each: read here and by transformers."""
    monkeypatch.setattr(packed_format, "OVERHEAD", 0)  # tiny matrices too
    folder = save_folder(make_model(family, dtype=torch.bfloat16), tmp_path / "sparse")
    prune_on_disk(folder, axis=-2 if family in CONV1D else -1)
    done = secateur.pack(folder, tmp_path / "packed")
    assert done.forms["2:4"] >= 6
    checkpoint, plain = Checkpoint(tmp_path / "packed"), Checkpoint(folder)
    assert checkpoint.names == plain.names
    for name in plain.names:
        assert checkpoint.shape(name) == plain.shape(name)
        assert checkpoint.dtype(name) == plain.dtype(name)
        assert bits(checkpoint.load([name])[name]) == bits(plain.load([name])[name])
    if family in CONV1D:
        assert {matrix.axis for matrix in checkpoint.packed.values()} == {-2}
    ours, theirs = secateur.load(tmp_path / "packed"), AutoModelForCausalLM.from_pretrained(folder)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor)


def test_from_pretrained_gives_a_plain_model(sparse: Path, packed: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(packed)
    dense = AutoModelForCausalLM.from_pretrained(sparse)
    assert model.dtype == dense.dtype == torch.bfloat16
    assert not hasattr(model.config, "quantization_config")
    ids = make_tokens()[:2, :8]
    assert torch.equal(model(ids).logits, dense(ids).logits)
    said = {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(model.generate(ids, **said), dense.generate(ids, **said))
    model.save_pretrained(tmp_path / "saved")
    assert contents(tmp_path / "saved") == contents(sparse)
    assert "quantization_config" not in json.loads((tmp_path / "saved/config.json").read_text())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_it_loads_in_another_precision(sparse: Path, packed: Path, dtype: torch.dtype) -> None:
    ours = secateur.load(packed, dtype=dtype)
    theirs = AutoModelForCausalLM.from_pretrained(sparse, dtype=dtype)
    for name, tensor in theirs.state_dict().items():
        assert ours.state_dict()[name].dtype == tensor.dtype
        assert torch.equal(ours.state_dict()[name], tensor)


def test_load_takes_plain_folders_too(sparse: Path) -> None:
    ours, theirs = secateur.load(sparse), AutoModelForCausalLM.from_pretrained(sparse)
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))


@pytest.mark.parametrize(
    "imports",
    [
        "import secateur; from transformers import AutoModelForCausalLM as M",
        "from transformers import AutoModelForCausalLM as M; import secateur",
        "import secateur; from transformers import LlamaForCausalLM as M",
        "from transformers import LlamaForCausalLM as M; import secateur",
        "import secateur.checkpoint.naming; from transformers import LlamaForCausalLM as M",
    ],
)
def test_importing_secateur_is_enough(packed: Path, imports: str) -> None:
    """In another process, where no test has loaded more than that."""
    code = f"import sys; {imports}; print(M.from_pretrained(sys.argv[1]).num_parameters())"
    done = subprocess.run(
        [sys.executable, "-c", code, str(packed)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == secateur.load(packed).num_parameters()


def test_transformers_alone_refuses_it(packed: Path) -> None:
    """Random weights in silence would be the worst of answers."""
    code = (
        "import sys; from transformers import AutoModelForCausalLM as M\n"
        "try: M.from_pretrained(sys.argv[1])\n"
        "except Exception as fault: print(fault)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(packed)], capture_output=True, text=True, check=True
    )
    assert "`import secateur` before loading" in done.stdout


def test_the_proof_and_the_checksums_hold_for_packed_folders(packed: Path, tmp_path: Path) -> None:
    for folder in (packed, secateur.unpack(packed, tmp_path / "plain").out):
        proof = check_folder(str(folder), None)
        assert proof.complaint is None
        assert str(proof.pattern) == "2:4"
        assert proof.zeros * 2 == proof.weights
        assert proof.files >= 6


def test_a_packed_model_is_pruned_like_a_plain_one(
    llama_folder: Path, tmp_path: Path, tokens_file: Path
) -> None:
    """What comes out is a plain folder, the same to the byte."""
    prune_on_disk(save_folder(AutoModelForCausalLM.from_pretrained(llama_folder), tmp_path / "a"))
    secateur.pack(tmp_path / "a", tmp_path / "packed")
    outs = []
    for source in ("a", "packed"):
        outs.append(tmp_path / f"{source}-pruned")
        secateur.prune(
            tmp_path / source, method="wanda", pattern="1:4", calibration=tokens_file,
            sequence_length=32, out=outs[-1],
        )  # fmt: skip
    assert contents(outs[0]) == contents(outs[1])
    configs = [json.loads((out / "config.json").read_text()) for out in outs]
    assert configs[0] == configs[1]


def test_the_form_is_chosen_for_each_matrix(llama_folder: Path, tmp_path: Path) -> None:
    folder = save_folder(AutoModelForCausalLM.from_pretrained(llama_folder), tmp_path / "mixed")
    tensors = load_file(folder / WEIGHTS)
    up, down = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"
    query = "model.layers.0.self_attn.q_proj.weight"
    tensors[up].view(-1, 4)[:, 1:] = 0
    tensors[down][torch.rand(tensors[down].shape) < 0.7] = 0
    tensors[query].view(-1, 4)[:, 2:] = 0
    tensors[query][0, :3] = 1  # one group is too full
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    secateur.pack(folder, tmp_path / "packed")
    found = {name: each.form for name, each in Checkpoint(tmp_path / "packed").packed.items()}
    assert found == {up: NofM(1, 4), down: Bitmask(), query: Bitmask()}
    secateur.unpack(tmp_path / "packed", tmp_path / "plain")
    assert contents(tmp_path / "plain") == contents(folder)


def test_experts_of_one_parameter_are_packed_all_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers collects packed ones in one list and plain ones in another: order would go."""
    monkeypatch.setattr(packed_format, "OVERHEAD", 0)
    folder = save_folder(make_model("mixtral", dtype=torch.bfloat16), tmp_path / "moe")
    tensors = load_file(folder / WEIGHTS)
    first = sorted(name for name in tensors if "layers.1." in name and name.endswith(".w1.weight"))
    assert len(first) == 4
    for name in first[1:]:  # the first stays dense
        tensors[name].view(-1, 4)[:, 1:] = 0
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    secateur.pack(folder, tmp_path / "packed")
    found = Checkpoint(tmp_path / "packed").packed
    assert set(found) == set(first)
    assert found[first[0]].form == Bitmask()
    ours, theirs = secateur.load(tmp_path / "packed"), AutoModelForCausalLM.from_pretrained(folder)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor)


def test_a_model_of_several_shards(
    sparse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "SHARD_BYTES", 20_000)
    out = secateur.pack(sparse, tmp_path / "packed").out
    files = sorted(path.name for path in out.glob("packed-*.safetensors"))
    assert len(files) >= 3
    assert files[0] == f"packed-00001-of-{len(files):05d}.safetensors"
    secateur.unpack(out, tmp_path / "plain")
    assert contents(tmp_path / "plain") == contents(sparse)
    model = AutoModelForCausalLM.from_pretrained(out)
    dense = AutoModelForCausalLM.from_pretrained(sparse)
    assert all(map(torch.equal, model.state_dict().values(), dense.state_dict().values()))


def test_the_layout_is_what_the_page_says(packed: Path, sparse: Path) -> None:
    """A reader written from docs/packed.md alone, one weight at a time."""
    name = "model.layers.1.mlp.down_proj.weight"
    index = json.loads((packed / "packed.safetensors.index.json").read_text())
    assert (index["metadata"]["format"], index["metadata"]["version"]) == ("secateur-packed", 1)
    with safe_open(packed / index["weight_map"][name + ".values"], framework="pt") as file:
        values, mask, layout = (
            file.get_tensor(name + part) for part in (".values", ".mask", ".layout")
        )
    _, n, m, axis, *shape = layout.tolist()
    assert (n, m, axis) == (2, 4, -1)
    dense, left = [], iter(values.view(torch.int16).flatten().tolist())
    for row in mask.tolist():
        dense += [next(left) if row[i // 8] >> i % 8 & 1 else 0 for i in range(shape[1])]
    stored = Checkpoint(sparse).load([name])[name]
    assert stored.view(torch.int16).flatten().tolist() == dense


def test_nothing_is_left_where_packing_fails(
    sparse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    with pytest.raises(OutputError, match="not empty"):
        secateur.pack(sparse, tmp_path / "out")
    monkeypatch.setattr(OutputFolder, "seal", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        secateur.pack(sparse, tmp_path / "out", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "config.json").read_text() == "{}"
    monkeypatch.undo()
    secateur.pack(sparse, tmp_path / "out", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert Checkpoint(tmp_path / "out").packed


def test_a_tensor_that_cannot_be_placed_is_said(packed: Path, tmp_path: Path) -> None:
    """A missing weight is an error of `load`, not a random one."""
    out = secateur.unpack(packed, tmp_path / "plain").out
    (file,) = out.glob("*.safetensors")
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    index = out / "model.safetensors.index.json"
    facts = json.loads(index.read_text())
    del facts["weight_map"]["model.norm.weight"]
    index.write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match=r"1 weights are missing.*model.norm.weight"):
        secateur.load(out)
