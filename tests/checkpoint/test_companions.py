"""Which files beside the weights come along: those that belong to a model, and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import secateur
from secateur.bundled import FOLDER
from secateur.checkpoint.companions import files_beside, leads_inside
from secateur.errors import CheckpointError
from secateur.record.check import check_folder
from tiny import make_model

BELONG = """
config.json generation_config.json tokenizer.json tokenizer.model tokenizer.model.v3 vocab.txt
merges.txt vocab.bpe qwen.tiktoken chat_template.jinja CHAT.JINJA preprocessor_config.json
sentencepiece.bpe.model modules.json LICENSE LICENCE license.txt Licence.md LICENSE-MODEL
LICENSE-2.0 COPYING COPYING.LESSER NOTICE Notice.txt THIRD_PARTY_NOTICES.md USE_POLICY.md
LLAMA_32_LICENSE.pdf gemma-terms.md additional_chat_templates/tool_use.jinja
additional_chat_templates/deeper/rag.jinja qformer_tokenizer/vocab.txt
image_processor/preprocessor_config.json licenses/LICENSE.md 1_Pooling/config.json
legal/NOTICE.txt bpe.codes tekken.json params.json
""".split()  # noqa: SIM905
"""Files that come along, whoever is trusted."""
CODE = ["modeling_own.py", "configuration_own.py"]
"""Files that come along where code is trusted."""
FOREIGN = """
a.PY b.pyc c.so d.sh e.ipynb f.js g.pyd h.dll i.exe j.bat k.cu l.cpp m.html n.wasm o.Py p.pyi
license.PY LICENSE.sh use_policy.js README.md readme.txt training.csv training_args.bin
trainer_state.json all_results.json adapter_config.json adapter_model.safetensors run.json
model.safetensors.index.json other.safetensors model.gguf pytorch_model.bin flax.msgpack
.gitattributes .hidden.json picture.png events.out.tfevents requirements.txt
original/params.json onnx/config.json runs/a.json checkpoint-5/config.json .cache/x.json
additional_chat_templates/evil.py additional_chat_templates/evil.pkl
additional_chat_templates/.hidden.jinja speech_tokenizer/model.safetensors
""".split()  # noqa: SIM905
"""Files that never come along."""


def fill(folder: Path, names: list[str]) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


@pytest.mark.parametrize("with_code", [False, True])
def test_what_belongs_to_a_model(tmp_path: Path, with_code: bool) -> None:
    fill(tmp_path, [*BELONG, *CODE, *FOREIGN])
    listed = {path.as_posix() for path in files_beside(tmp_path, with_code=with_code)}
    assert listed == {*BELONG, *(CODE if with_code else [])}


def test_the_bundled_model_takes_no_table_of_its_training_along() -> None:
    names = {path.name for path in files_beside(FOLDER, with_code=True)}
    assert "tokenizer.json" in names
    assert not names & {"training.csv", "README.md", "model.safetensors"}


def test_sub_folders_are_copied_with_checksums_and_proven(
    save: Callable[..., Path], tmp_path: Path
) -> None:
    folder, out = save(make_model("llama")), tmp_path / "out"
    template = "additional_chat_templates/tool_use.jinja"
    fill(folder, [template, "evil.PY"])
    run = secateur.prune(folder, method="magnitude", out=out)
    assert template in run.files
    assert not (out / "evil.PY").exists()
    assert check_folder(str(out)).complaint is None
    (out / template).write_text("changed")
    assert check_folder(str(out)).complaint == f"not as they were written: {template}"
    packed = tmp_path / "packed"
    secateur.pack(out, packed)
    assert (packed / template).read_text() == "changed"
    assert check_folder(str(packed)).complaint is None


@pytest.mark.parametrize(
    "name",
    ["LICENSE", "additional_chat_templates/a.jinja", "model.safetensors", "config.json",
     "additional_chat_templates"],
)  # fmt: skip
def test_links_out_of_the_folder_are_refused(
    save: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    """A shard, too: its tensors would be published with the result."""
    folder, secret = save(make_model("llama")), tmp_path / "secret"
    secret.mkdir()
    inside = folder / name
    inside.parent.mkdir(exist_ok=True)
    target = secret / Path(name).name
    if inside.exists():
        inside.rename(target)
    elif name == "additional_chat_templates":
        fill(target, ["a.jinja"])
    else:
        target.write_text("secret")
    os.symlink(target, inside)
    with pytest.raises(CheckpointError, match=r"is a link to .*secret"):
        secateur.prune(folder, method="magnitude", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_record_leads_nowhere_else_by_a_link(save: Callable[..., Path], tmp_path: Path) -> None:
    folder = save(make_model("llama", num_hidden_layers=1), "model")
    out = tmp_path / "out"
    secateur.prune(folder, method="magnitude", out=out)
    (tmp_path / "secret").write_text("secret")
    os.symlink("loop", out / "loop")
    os.symlink("../secret", out / "led")
    record = json.loads((out / "run.json").read_text())
    secret = hashlib.sha256(b"secret").hexdigest()
    record["files"] |= {"loop": secret, "led": secret}
    (out / "run.json").write_text(json.dumps(record))
    assert check_folder(str(out)).changed == ("loop", "led")


def test_the_cache_of_the_hub_is_inside(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "123"
    (snapshot / "licenses").mkdir(parents=True)
    (snapshot.parent.parent / "blobs").mkdir()
    (snapshot.parent.parent / "blobs" / "abc").write_text("text")
    os.symlink("../../../blobs/abc", snapshot / "licenses" / "LICENSE")
    assert leads_inside(snapshot, Path("licenses/LICENSE"))
    assert [path.as_posix() for path in files_beside(snapshot, with_code=False)] == [
        "licenses/LICENSE"
    ]
