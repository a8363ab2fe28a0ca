"""The result folder: written beside its name, renamed once it is whole.

    OUT's parent/.OUT.partial/     while the run lasts: one shard per block as it is finished
    OUT/                           at the end, by one rename

A block's shard holds its new matrices and everything else of the block bit for bit as it was read.
Names, dtypes, configuration, tokenizer and licence are those of the source.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from secateur.checkpoint.read import INDEX, PICKLES, SINGLE
from secateur.checkpoint.resident import ResidentModel, unrounded
from secateur.checkpoint.skeleton import StreamedModel
from secateur.errors import OutputError

_NOT_COPIED = (SINGLE, INDEX, "*.safetensors", "*.index.json", *PICKLES, "*.h5", "*.msgpack",
               "*.gguf", "*.onnx", "*.py", "*.md", "run.json", ".*")  # fmt: skip


class OutputFolder:
    """A result folder that appears whole or not at all.

    Use it as a context manager: `write_block` for every block, then `finish`. Leaving without
    `finish` (an error, Ctrl-C) removes what was written.

    Args:
        out: where the result is to be; its parent is made if need be.
        source: folder of the model that is pruned, for the files beside the weights.
        overwrite: replace `out` if it exists.

    Raises:
        OutputError: `out` exists, is or contains the source, or cannot be made.
    """

    def __init__(self, out: Path, source: Path, *, overwrite: bool = False) -> None:
        self.out = out.expanduser().resolve()  # a link stays, what it leads to is replaced
        self.source = source
        self._partial = self.out.parent / f".{self.out.name}.partial"
        self._shards: list[tuple[str, list[str], int]] = []  # file, tensor names, bytes
        self._parents_made: list[Path] = []  # innermost first
        self._finished = False
        self.scratch = self._partial / "scratch"  # for what is of no use once the run is over
        check_output(self.out, source, overwrite=overwrite)

    def __enter__(self) -> Self:
        parent = self.out.parent
        self._parents_made = [path for path in (parent, *parent.parents) if not path.exists()]
        try:
            with _writing(self.out):
                if self._partial.exists():
                    shutil.rmtree(self._partial)
                self.scratch.mkdir(parents=True)
        except OutputError:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._finished:
            self._remove()

    def _remove(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self._partial, ignore_errors=True)
        for folder in self._parents_made:
            with suppress(OSError):  # something else may be in it by now
                folder.rmdir()

    def write_block(self, model: StreamedModel, index: int, changed: dict[str, Tensor]) -> None:
        """Write one finished block of a streamed model as a shard of its own.

        Args:
            model: the model the block is of.
            index: which block.
            changed: parameter name in the model -> new value as stored. What is not named keeps
                its bytes.
        """
        tensors = model.checkpoint.load(model.block_tensors(index))
        for name, value in changed.items():
            for stored, new in model.naming.part(name, value).items():
                old = tensors[stored]
                tensors[stored] = unrounded(new.to("cpu", old.dtype), old, model.dtype).contiguous()
        self._write_shard(tensors, index + 2, len(model.blocks) + 1)

    def write_surroundings(self, model: StreamedModel) -> None:
        """Write everything of a streamed model that is in no block, bit for bit as it was."""
        inside = {
            stored for index in range(len(model.blocks)) for stored in model.block_tensors(index)
        }
        outside = [name for name in model.checkpoint.names if name not in inside]
        self._write_shard(model.checkpoint.load(outside), 1, len(model.blocks) + 1)
        index = {
            "metadata": {"total_size": sum(size for _, _, size in self._shards)},
            "weight_map": {name: file for file, names, _ in self._shards for name in names},
        }
        self._write_text(INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")

    def write_whole(self, model: ResidentModel) -> None:
        """Write a model that was loaded whole, under the names that the hub uses."""
        with _writing(self._partial):
            model.model.save_pretrained(self._partial, safe_serialization=True)

    def finish(self, record: str) -> None:
        """Add the files beside the weights and `run.json`, and give the folder its name."""
        with _writing(self._partial):
            for path in sorted(self.source.iterdir()):
                skipped = any(path.match(pattern) for pattern in _NOT_COPIED)
                if path.is_file() and not skipped and not (self._partial / path.name).exists():
                    shutil.copyfile(path, self._partial / path.name)
        self._write_text("run.json", record)
        shutil.rmtree(self.scratch)
        retired = self.out.parent / f".{self.out.name}.replaced"
        with _writing(self.out):
            if self.out.exists():
                shutil.rmtree(retired, ignore_errors=True)
                self.out.rename(retired)
            try:
                self._partial.rename(self.out)
            except BaseException:
                if retired.exists():
                    retired.rename(self.out)
                raise
            self._finished = True
            _flush_folder(self.out.parent)
        shutil.rmtree(retired, ignore_errors=True)

    def _write_shard(self, tensors: dict[str, Tensor], number: int, count: int) -> None:
        file = f"model-{number:05d}-of-{count:05d}.safetensors"
        path = self._partial / file
        unfinished = path.with_suffix(".unfinished")
        with _writing(path):
            save_file(tensors, unfinished, metadata={"format": "pt"})
            with unfinished.open("rb") as handle:
                os.fsync(handle.fileno())
            unfinished.chmod(0o666 & ~_umask())  # safetensors makes files for their owner only
            unfinished.rename(path)
        size = sum(tensor.nbytes for tensor in tensors.values())
        self._shards.append((file, list(tensors), size))

    def _write_text(self, name: str, text: str) -> None:
        path = self._partial / name
        with _writing(path), path.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A full disk or a missing right is the user's to mend."""
    try:
        yield
    except (OSError, SafetensorError) as fault:
        raise OutputError(f"cannot be written ({fault})", where=path) from fault


def check_output(out: Path, source: Path, *, overwrite: bool) -> None:
    """Raise `OutputError` where a run could not put its result, before any work is done."""
    out, source = out.expanduser().resolve(), source.resolve()
    if source == out or source.is_relative_to(out):
        raise OutputError(
            "the output folder is the model itself, or contains it", where=out, hint="another --out"
        )
    if out.exists() and not out.is_dir():
        raise OutputError("the output exists and is no folder", where=out, hint="another --out")
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise OutputError(
                "the output folder exists and is not empty", where=out, hint="--overwrite"
            )
        if not (out / "config.json").is_file():
            raise OutputError(
                "the output folder holds something else than a model and is not overwritten",
                where=out,
                hint="another --out",
            )
    parent = out
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK) or not parent.is_dir():
        raise OutputError("the output folder cannot be made here", where=parent)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
