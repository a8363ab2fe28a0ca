"""Gradients by matrix, written one at a time: what GBLM computes once and reads often.

    FOLDER/NAME.safetensors    the gradient of matrix NAME, while a run lasts
    FILE.safetensors           those of all matrices, where they are to be kept

Both are plain safetensors files of float32 matrices [out, in] by parameter name; their metadata say
what the gradients are of, and have the SHA-256 of every matrix. A folder needs the memory of one
matrix to fill and to read. A single file is made from one at the end, of tensors that the system
maps from the disk and may drop again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from secateur.checkpoint.claim import claim_file
from secateur.checkpoint.durable import (
    flush,
    left_unfinished,
    unfinished_name,
    write_tensors,
    writing,
)
from secateur.checkpoint.fingerprint import sha256_of
from secateur.checkpoint.lock import alone_at
from secateur.errors import CheckpointError, RecipeError
from secateur.machine import processes

_SUM, _SOURCE = "sha256 of ", "source"
"""Keys of the metadata: before the name of a matrix, and of the digests of the model's tensors."""


class GradientFile:
    """Gradients by parameter name, on disk: one safetensors file, or a folder of them.

    Make one with `create` and fill it with `write`; or `open` one that was filled. Of several
    processes the first has it on its disk, and reads it for all.

    Args:
        path: of the file or the folder.
        facts: metadata for what is written, and of what is read.

    Attributes:
        source: SHA-256 by name of the tensors of the model that they are of, where it was read from
            files: goes into a single file, and comes back with it.
    """

    def __init__(self, path: Path, facts: Mapping[str, str] | None = None) -> None:
        self.path = path
        self._facts = dict(facts or {})
        self._sums: dict[str, str] = {}
        self.source: dict[str, str] = {}

    @classmethod
    @contextmanager
    def create(
        cls,
        path: Path,
        facts: Mapping[str, str],
        *,
        one_file: bool = False,
        overwrite: bool = False,
    ) -> Iterator[GradientFile]:
        """A folder of gradients, to be filled inside; it gets its name at the end.

        An error inside leaves nothing behind, and of several runs one at a time can be here.

        Args:
            path: where the gradients are to be.
            facts: what they are of, for the metadata.
            one_file: make them one file at the end.
            overwrite: whether that file may replace another.

        Raises:
            OutputError: they cannot be written, or another run is writing them; or a file is
                where they are to be one.
        """
        if not processes.first():
            yield cls(path)
            return
        with alone_at(path):
            if one_file:
                claim_file(path, overwrite=overwrite)
            unfinished = unfinished_name(path)
            with writing(path):
                for left in left_unfinished(path):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
                unfinished.mkdir()
            try:
                gradients = cls(unfinished, facts)
                yield gradients
                if one_file:
                    claim_file(path, overwrite=overwrite)  # nothing was put there meanwhile
                    source = {_SOURCE: json.dumps(gradients.source)} if gradients.source else {}
                    write_tensors(path, _mapped(unfinished), {**facts, **gradients._sums, **source})
                else:
                    with writing(path):
                        flush(unfinished)
                        shutil.rmtree(path, ignore_errors=True)  # of other facts
                        unfinished.rename(path)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)

    @classmethod
    def open(
        cls, path: Path, shapes: Mapping[str, tuple[int, int]], facts: Mapping[str, str]
    ) -> GradientFile:
        """Gradients that were made before, after checking that they are of this model.

        Args:
            path: of the file or the folder.
            shapes: (out, in) of every matrix of the model, by parameter name.
            facts: what the gradients must be of.

        Raises:
            CheckpointError: they cannot be read, or lack a matrix or have it in another shape.
            RecipeError: their metadata differ from `facts`.
        """
        if not path.exists():
            raise CheckpointError(
                "no such file of gradients", where=path, wanted="one that --save-gradients wrote"
            )
        if not os.access(path, os.R_OK):
            raise CheckpointError(
                "the gradients may not be read", where=path, wanted="a file that you may read"
            )
        gradients = cls(path, facts)
        metadata: dict[str, str] = {}
        try:
            by_file: dict[Path, list[str]] = {}
            for name in shapes:
                by_file.setdefault(gradients._file_of(name), []).append(name)
            for file, names in by_file.items():
                with safe_open(file, framework="pt") as stored:
                    metadata |= stored.metadata() or {}
                    for name in names:
                        if tuple(stored.get_slice(name).get_shape()) != tuple(shapes[name]):
                            raise CheckpointError(
                                f"the gradient of {name!r} has another shape",
                                where=path,
                                wanted=f"{list(shapes[name])}, the model's",
                            )
        except (SafetensorError, OSError) as fault:
            raise CheckpointError(
                f"not the gradients of this model ({fault})",
                where=path,
                wanted="a file that --save-gradients wrote for it",
            ) from fault
        gradients.source = _digests(metadata.get(_SOURCE, "{}"), path)
        for key, value in facts.items():
            if metadata.get(key) != value:
                raise RecipeError(
                    f"the gradients have {key} {metadata.get(key)!r}",
                    where=path,
                    wanted=f"{value!r}, as in this run",
                    hint="computing them again",
                )
        return gradients

    def write(self, name: str, gradient: Tensor) -> None:
        """Store one matrix, float32 [out, in].

        Raises:
            OutputError: it cannot be written.
        """
        if processes.first():
            values = gradient.detach().to("cpu", torch.float32).contiguous()  # [out, in]
            proof = {_SUM + name: sha256_of([values])}
            write_tensors(self._file_of(name), {name: values}, {**self._facts, **proof})
            self._sums |= proof

    def read(self, name: str) -> Tensor:
        """One matrix, float32 [out, in].

        Raises:
            CheckpointError: it is not what was written, or another run's is in its place.
        """
        return processes.from_first(lambda: self._load(name))

    def _load(self, name: str) -> Tensor:
        try:
            with safe_open(self._file_of(name), framework="pt") as file:
                metadata = file.metadata() or {}
                gradient: Tensor = file.get_tensor(name).clone()
        except (SafetensorError, OSError) as fault:
            raise _not_as_written(name, self.path, f"cannot be read any more ({fault})") from fault
        if any(metadata.get(key) != value for key, value in self._facts.items()):
            raise _not_as_written(name, self.path, "was replaced by another run")
        if metadata.get(_SUM + name, proof := sha256_of([gradient])) != proof:
            raise _not_as_written(name, self.path, "is not as it was written")
        return gradient

    def _file_of(self, name: str) -> Path:
        """The file that one matrix lies in."""
        return self.path / f"{name}.safetensors" if self.path.is_dir() else self.path


def _mapped(folder: Path) -> dict[str, Tensor]:
    """The matrices of a folder, mapped: they come into memory as they are used."""
    return {
        name: gradient
        for file in sorted(folder.glob("*.safetensors"))
        for name, gradient in load_file(file).items()
    }


def _not_as_written(name: str, path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"the gradient of {name!r} {what}", where=path, hint="computing them again (--restart)"
    )


def _digests(text: str, path: Path) -> dict[str, str]:
    """The digests of the source's tensors, as `create` wrote them.

    Raises:
        CheckpointError: they are none.
    """
    try:
        return {str(name): str(digest) for name, digest in dict(json.loads(text)).items()}
    except (ValueError, TypeError, RecursionError) as fault:
        raise CheckpointError(
            "its metadata cannot be read", where=path, wanted="a file that --save-gradients wrote"
        ) from fault
