"""A GGUF file as a model folder: dequantised once by transformers' reader, kept in a cache.

    CACHE/gguf/NAME-HASH/    the folder: config.json, safetensors, the tokenizer; `gguf-source` says
                             which file it was made from. HASH: the file's SHA-256, its beginning

CACHE is $SECATEUR_CACHE, or ~/.cache/secateur. A folder there may be removed whenever nothing runs.
Weights are in bfloat16 if the file's are, and in float32 otherwise, so that none is rounded again.
What transformers' reader passes over (rotary scaling, windows, a pre-tokeniser it has no code for)
is set from the table of `gguf/kinds.py`; a file with tensors of which it makes nothing is refused.
"""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from secateur.checkpoint.durable import UNFINISHED, flush, sha256, writing
from secateur.errors import CheckpointError, OutputError, SecateurError, reason, some
from secateur.gguf import Header, read_header
from secateur.gguf.library import GGUF_SUFFIX, library
from secateur.gguf.pre_tokenizers import named
from secateur.gguf.rotary import SLOWED, rotary_parameters
from secateur.machine.waiting import doing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CACHE = "SECATEUR_CACHE"
"""Name of the environment variable that says where the folders are kept."""
SOURCE = "gguf-source"
"""File in such a folder that says, as JSON, which file it was made from."""
_HASH = 16
"""Characters of the hash in a folder's name."""
_EMBEDDING = "token_embd.weight"


def is_gguf(path: Path) -> bool:
    """Whether a path is that of a GGUF file, by its name."""
    return path.suffix.lower() == GGUF_SUFFIX and path.is_file()


def folder_of(path: Path) -> Path:
    """The model folder of a GGUF file: one that was made before, or made now.

    Raises:
        CheckpointError: the file is no GGUF file, damaged, or of a kind that is not read.
        OutputError: the folder cannot be written.
        SecateurError: the gguf library is missing.
    """
    header = read_header(path)
    library()
    seen = path.stat()
    checksum = _checksum(path, seen.st_size, seen.st_mtime_ns, seen.st_ino)
    named = cache() / f"{path.stem[:80]}-{checksum[:_HASH]}"
    folder = next(iter(sorted(cache().glob(f"*-{checksum[:_HASH]}"))), named)  # under any name
    if not _is_whole(folder):
        source = {"file": str(path.resolve()), "sha256": checksum}
        try:
            with doing(f"dequantising {path.name} into {folder}"), writing(folder):
                _make(header, folder, source)
        except OutputError as fault:
            hint = f"{CACHE}=FOLDER, which says where such folders are made"
            raise OutputError(fault.what, where=folder, hint=hint) from fault
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether a folder was made before, and its files have the sizes that they had."""
    try:
        sizes = json.loads((folder / SOURCE).read_text("utf-8"))["sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def cache() -> Path:
    """The folder under which the folders are kept."""
    given = os.environ.get(CACHE)
    return (Path(given).expanduser() if given else Path.home() / ".cache" / "secateur") / "gguf"


def source_of(folder: Path) -> Path | None:
    """The GGUF file that a folder was made from; None of any other."""
    try:
        return Path(json.loads((folder / SOURCE).read_text("utf-8"))["file"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def notice_of(folder: Path) -> str | None:
    """What to say of a folder that was made from a GGUF file; None of any other."""
    source = source_of(folder)
    if source is None:
        return None
    return f"{source} is read from {folder}, where its weights lie dequantised"


@functools.lru_cache(maxsize=32)
def _checksum(path: Path, *seen: int) -> str:
    """The SHA-256 of a file, computed once as long as it is what was seen of it."""
    with doing(f"hashing {path.name}"):
        return sha256(path)


def _make(header: Header, folder: Path, source: dict[str, str]) -> None:
    """Write the folder under another name, then give it its own."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=UNFINISHED, dir=folder.parent)
    unfinished = Path(place)
    try:
        try:
            _write(header, unfinished)
        except (SecateurError, SafetensorError, MemoryError):
            raise
        except Exception as fault:  # the reader's many exceptions, on what a file may hold
            if isinstance(fault, OSError) and fault.errno is not None:  # not one of transformers'
                raise
            raise CheckpointError(
                f"transformers does not read it ({reason(fault)})",
                where=header.path,
                hint="the checkpoint in safetensors that it was made from",
            ) from fault
        sizes = {path.name: path.stat().st_size for path in unfinished.iterdir()}
        told = json.dumps({**source, "sizes": sizes}, indent=2)
        (unfinished / SOURCE).write_text(told + "\n", "utf-8")
        for path in unfinished.iterdir():
            flush(path)
        if folder.is_dir() and not _is_whole(folder):  # damaged, and of no use to anybody
            shutil.rmtree(folder)
        try:
            unfinished.rename(folder)
        except OSError:
            if not _is_whole(folder):  # another process made it meanwhile
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(header: Header, folder: Path) -> None:
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with _alone(header.path, folder) as alone:
        config = _configuration(header, alone)
        tokenizer = _tokenizer(header, alone)
    model = _empty_model(header, config)
    with redirect_stderr(io.StringIO()):  # its bar: standard error is for lines
        read = load_gguf_checkpoint(str(header.path), True, model, header.dtype)
    loaded = model.load_state_dict(read["tensors"], strict=False, assign=True)
    model.tie_weights()
    if left := [name for name, weight in model.named_parameters() if weight.is_meta]:
        raise CheckpointError(
            f"transformers' reader finds no {some(left + loaded.unexpected_keys)}",
            where=header.path,
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _alone(path: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """The arguments by which transformers reads the file alone, and nothing that lies beside it."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        link = Path(place) / f"model{GGUF_SUFFIX}"
        try:
            link.symlink_to(path.resolve())
        except OSError:  # Windows lets few make links
            shutil.copyfile(path, link)
        yield {
            "pretrained_model_name_or_path": place, "gguf_file": link.name,
            "local_files_only": True, "trust_remote_code": False,
        }  # fmt: skip


def _configuration(header: Header, alone: dict[str, Any]) -> Any:
    """transformers' configuration of the model, with all that its reader passes over."""
    metadata, kind = header.metadata, header.kind
    config = AutoConfig.from_pretrained(**alone)
    values = kind.attributes(config, metadata)
    for name in ("bos", "eos"):
        values[f"{name}_token_id"] = metadata.get(f"tokenizer.ggml.{name}_token_id")
    values["pad_token_id"] = metadata.get("tokenizer.ggml.padding_token_id")
    if _EMBEDDING not in header.tensors:
        raise CheckpointError(
            f"no tensor {_EMBEDDING!r}", where=header.path, wanted="a whole model"
        )
    values["vocab_size"] = header.tensors[_EMBEDDING][0]
    factors = _factors(header) if SLOWED in header.tensors else None
    values["rope_parameters"] = rotary_parameters(kind.arch, metadata, config, factors)
    values["tie_word_embeddings"] = "output.weight" not in header.tensors
    known = config.to_dict()
    return type(config)(**{**known, **values, "dtype": header.dtype})


def _factors(header: Header) -> Tensor:
    """By how much each pair of channels is slowed, float32 [d/2]."""
    reader = library().GGUFReader(header.path)
    (found,) = (tensor for tensor in reader.tensors if tensor.name == SLOWED)
    return torch.from_numpy(found.data.copy()).float()


def _empty_model(header: Header, config: Any) -> PreTrainedModel:
    """The model without weights; the file has every tensor of it, in its shape, and no other.

    Raises:
        CheckpointError: it has not.
    """
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=header.dtype)
    name_of = header.kind.names(config.num_hidden_layers)
    head = "lm_head.weight" if config.tie_word_embeddings else None
    wanted = {
        str(name_of(name)): tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if name != head
    }
    if SLOWED in header.tensors:
        wanted[SLOWED] = header.tensors[SLOWED]
    wrong = sorted({*wanted.items()} ^ {*header.tensors.items()})
    if wrong:
        name = wrong[0][0]
        there = list(header.tensors[name]) if name in header.tensors else "not there"
        asked = list(wanted[name]) if name in wanted else "no such tensor"
        others = len({name for name, _ in wrong}) - 1
        raise CheckpointError(
            f"tensor {name!r} is {there}" + (f", and {others} more are wrong" if others else ""),
            where=header.path,
            wanted=f"{asked}, as {header.kind.arch} of the sizes that the file states",
            hint="the checkpoint in safetensors that it was made from",
        )
    return model


def _tokenizer(header: Header, alone: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer, cut as the file says: transformers has no code for some names."""
    path = header.path
    tokenizer = AutoTokenizer.from_pretrained(**alone)
    rows = header.tensors[_EMBEDDING][0]
    backend = tokenizer.backend_tokenizer
    written = json.loads(backend.to_str())
    if header.metadata.get("tokenizer.ggml.model") == "gpt2":
        named(header.metadata.get("tokenizer.ggml.pre"), path).set_in(written)
    added = written["added_tokens"]  # GPT-2's own end of text, too, which the file may not have
    written["added_tokens"] = [token for token in added if token["id"] < rows]
    tokenizer._tokenizer = type(backend).from_str(json.dumps(written))
    if len(tokenizer) > rows:
        raise CheckpointError(
            f"{len(tokenizer)} tokens for {rows} rows of the embedding",
            where=path,
            wanted="a row for every token",
        )
    return tokenizer
