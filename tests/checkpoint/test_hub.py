"""A model on the hub: a server of two commits, on this machine, that the hub's own client asks."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from huggingface_hub import constants

import secateur
from secateur.checkpoint import locate
from secateur.errors import CheckpointError, SecateurError
from tiny import Command, make_model, save

NAME = "maker/tiny"
OLD, NEW = "a" * 40, "b" * 40
NORM = {OLD: 1.0, NEW: 2.0}


class Hub:
    """Repositories by name; every file that was fetched is counted."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, dict[str, bytes]]] = {}
        self.refs = {"main": NEW, "v1": OLD, OLD: OLD, NEW: NEW}
        self.fetched: list[str] = []

    def answer(self, path: str, query: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content of what is asked."""
        parts = unquote(path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            name, rest = "/".join(parts[2:4]), parts[4:]
            commit = self.refs.get(rest[1] if rest else "main")
            if name not in self.files:
                return 404, {"X-Error-Code": "RepoNotFound"}, b""
            if commit is None:
                return 404, {"X-Error-Code": "RevisionNotFound"}, b""
            files = self.files[name][commit]
            if rest and rest[0] == "tree":
                tree = [
                    {"type": "file", "path": file, "size": len(data), "oid": _oid(data)}
                    for file, data in files.items()
                ]
                return 200, {}, json.dumps(tree).encode()
            siblings = [{"rfilename": file} for file in files]
            facts = {"id": name, "modelId": name, "sha": commit, "siblings": siblings}
            return 200, {}, json.dumps(facts).encode()
        if parts[2:3] != ["resolve"]:
            return 404, {}, b""
        name, commit, file = "/".join(parts[:2]), self.refs[parts[3]], "/".join(parts[4:])
        data = self.files[name][commit].get(file)
        if data is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{_oid(data)}"'}, data


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub on this machine, with an empty cache."""
    made = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            status, headers, data = made.answer(path, query)
            if self.command == "GET" and "/resolve/" in path:
                made.fetched.append(unquote(path).split("/resolve/")[1].partition("/")[2])
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=lambda: server.serve_forever(0.01), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield made
    server.shutdown()
    server.server_close()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def commits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Two commits of one model: sharded at first, then in one file with the index left behind."""
    root, model, made = tmp_path_factory.mktemp("commits"), make_model("llama"), {}
    for commit, norm in NORM.items():
        with torch.no_grad():
            model.model.norm.weight.fill_(norm)
        more = {"max_shard_size": "60kB"} if commit == OLD else {}
        made[commit] = contents(save(model, root / commit, **more))
    made[NEW] |= {name: data for name, data in made[OLD].items() if name.startswith("model-")}
    made[NEW]["model.safetensors.index.json"] = made[OLD]["model.safetensors.index.json"]
    return made


BESIDE = {
    "LICENSE": b"free", "qwen.tiktoken": b"t", "tokenizer.model.v3": b"v3",
    "additional_chat_templates/tool_use.jinja": b"{{ messages }}",
}  # fmt: skip
NOT_FETCHED = {
    "consolidated.safetensors": b"c", "original/params.json": b"{}", "original/consolidated.00.pth":
    b"o", "fp16/model.safetensors": b"f", "model.fp16.safetensors": b"f", "pytorch_model.bin": b"p",
    "model.gguf": b"g", "README.md": b"r", "modeling_x.py": b"", "onnx/model.onnx": b"",
    "pytorch_model.bin.index.json": b"{}",
}  # fmt: skip


def test_what_loads_is_fetched_and_nothing_twice(
    hub: Hub, commits: dict[str, dict[str, bytes]]
) -> None:
    hub.files[NAME] = {c: {**f, **BESIDE, **NOT_FETCHED} for c, f in commits.items()}
    folder = locate(NAME)
    assert folder.name == NEW
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    shards = {name for name in commits[OLD] if name.startswith("model-")}
    index = {"model.safetensors.index.json"}
    assert there == {*commits[NEW], *BESIDE} - shards - index
    assert sorted(hub.fetched) == sorted(there)
    assert secateur.load(NAME).model.norm.weight.unique().item() == NORM[NEW]
    older = locate(f"{NAME}@v1")
    assert older.name == OLD
    there = {str(path.relative_to(older)) for path in older.rglob("*") if path.is_file()}
    assert there == {*commits[OLD], *BESIDE}


def test_a_revision_is_read_recorded_and_found_offline(
    hub: Hub, commits: dict[str, dict[str, bytes]], tmp_path: Path, tokens_file: Path,
    monkeypatch: pytest.MonkeyPatch, command: Command,
) -> None:  # fmt: skip
    hub.files[NAME] = commits
    run = secateur.prune(NAME, method="magnitude", revision="v1", out=tmp_path / "old")
    assert run.commit == OLD
    assert json.loads((tmp_path / "old" / "run.json").read_text())["commit"] == OLD
    assert run.settings["revision"] == "v1"
    loaded = secateur.load(tmp_path / "old")
    assert loaded.model.norm.weight.unique().item() == NORM[OLD]
    assert secateur.check(NAME, revision=OLD).folder.name == OLD
    assert secateur.prune(NAME, method="magnitude", out=tmp_path / "new").commit == NEW
    status, proof, _ = command("check", NAME, "--revision", "v1", "--json")
    assert status == 0
    assert Path(json.loads(proof)["folder"]).name == OLD
    tokens = ("--text", tokens_file, "--sequence-length", 32, "--json")
    _, scores, _ = command("evaluate", NAME, "--against", f"{NAME}@v1", *tokens)
    assert json.loads(scores)["divergence"] > 0
    assert command("bench", tmp_path / "old", "--revision", "v1").status == 2
    secateur.pack(NAME, tmp_path / "packed", revision="v1")
    assert secateur.load(tmp_path / "packed").model.norm.weight.unique().item() == NORM[OLD]

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate(NAME).name == NEW
    assert locate(f"{NAME}@v1").name == OLD
    with pytest.raises(CheckpointError, match="could be fetched"):
        locate(f"{NAME}@v2")


PICKLED = {"config.json": b"{}", "pytorch_model.bin": b"p", "tokenizer.json": b"{}"}
REFUSED: dict[str, tuple[dict[str, bytes], str]] = {
    "pickles alone": (PICKLED, r"only pickled weights.*\(pytorch_model.bin\) in maker/tiny"),
    "a GGUF file": ({"tiny.Q4.gguf": b"g"}, r"GGUF files \(tiny.Q4.gguf\)"),
    "an adapter": (
        {"adapter_config.json": b"{}", "adapter_model.safetensors": b"a"},
        "an adapter, not a model in maker/tiny",
    ),
    "models in folders": (
        {"model_index.json": b"{}", "text_encoder/config.json": b"{}"},
        "no config.json in maker/tiny.*and in that text_encoder",
    ),
    "a maker's own format": (
        {"params.json": b"{}", "consolidated.safetensors": b"c"},
        "no config.json in maker/tiny.*in the format of transformers",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_before_it_is_fetched(name: str, hub: Hub) -> None:
    files, said = REFUSED[name]
    hub.files[NAME] = {NEW: files}
    with pytest.raises(CheckpointError, match=said):
        locate(NAME)
    assert hub.fetched == []


def test_quantised_weights_are_not_fetched(hub: Hub) -> None:
    config = {"quantization_config": {"quant_method": "mxfp4"}}
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": b"big"}
    hub.files[NAME] = {NEW: files}
    with pytest.raises(CheckpointError, match=r"quantised \(mxfp4\).*Mxfp4Config\(dequantize=True"):
        locate(NAME)
    assert hub.fetched == ["config.json"]


def test_faults_of_names_and_revisions_are_one_line(
    hub: Hub, commits: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    hub.files[NAME] = commits
    for given, said in (
        (f"{NAME}@v9", "maker/tiny has no revision 'v9'"),
        ("maker/nothing", "no such model could be fetched"),
        (f"{tmp_path}@v1", "no revisions, and 'v1' was asked for"),
        ("builtin@v1", "no revisions, and 'v1' was asked for"),
    ):
        with pytest.raises(SecateurError, match=said):
            locate(given)
