"""A file of gradients, written one matrix at a time: what GBLM computes once and reads often.

It is a plain safetensors file of float32 matrices [out, in] by parameter name, whose header is
written first, since all shapes are known; so no more than one matrix is in memory. Its metadata
say what the gradients are of.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from secateur.checkpoint.durable import flush
from secateur.errors import CheckpointError, OutputError, RecipeError
from secateur.machine import processes


class GradientFile:
    """Gradients by parameter name, on disk.

    Make one with `create` and fill it with `write`; or `open` one that was filled. Of several
    processes the first has it on its disk, and reads it for all.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    @contextmanager
    def create(
        cls, path: Path, shapes: Mapping[str, tuple[int, int]], facts: Mapping[str, str]
    ) -> Iterator[GradientFile]:
        """A file for matrices of these shapes, to be filled inside; it gets its name at the end.

        An error inside leaves nothing behind. `facts` go into the metadata.
        """
        if not processes.first():
            yield cls(path)
            return
        header: dict[str, object] = {"__metadata__": dict(facts)}
        end = 0
        for name, shape in shapes.items():
            begin, end = end, end + 4 * math.prod(shape)
            header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # the format wants the data aligned
        unfinished = path.with_name(path.name + ".unfinished")
        try:
            with unfinished.open("wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                file.truncate(8 + len(text) + end)
            yield cls(unfinished)
            flush(unfinished)
            unfinished.rename(path)
        except OSError as fault:
            raise OutputError(f"cannot be written ({fault})", where=path) from fault
        finally:
            unfinished.unlink(missing_ok=True)

    @classmethod
    def open(
        cls, path: Path, shapes: Mapping[str, tuple[int, int]], facts: Mapping[str, str]
    ) -> GradientFile:
        """A filled file, after checking that it is of this model and made as asked.

        Raises:
            CheckpointError: it cannot be read, or lacks a matrix or has it in another shape.
            RecipeError: its metadata differ from `facts`.
        """
        if not path.is_file():
            raise CheckpointError(
                "no such file of gradients", where=path, wanted="one that --save-gradients wrote"
            )
        try:
            with safe_open(path, framework="pt") as file:
                found = file.metadata() or {}
                for name, shape in shapes.items():
                    if tuple(file.get_slice(name).get_shape()) != tuple(shape):
                        raise CheckpointError(
                            f"the gradient of {name!r} has another shape",
                            where=path,
                            wanted=f"{list(shape)}, the model's",
                        )
        except (SafetensorError, OSError) as fault:
            raise CheckpointError(
                f"not the gradients of this model ({fault})",
                where=path,
                wanted="a file that --save-gradients wrote for it",
            ) from fault
        for key, wanted in facts.items():
            if found.get(key) != wanted:
                raise RecipeError(
                    f"the gradients have {key} {found.get(key)!r}",
                    where=path,
                    wanted=f"{wanted!r}, as in this run",
                    hint="computing them again",
                )
        return cls(path)

    def write(self, name: str, gradient: Tensor) -> None:
        """Store one matrix, float32 [out, in]."""
        if not processes.first():
            return
        with self.path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            length = int.from_bytes(memory[:8], "little")
            begin, end = json.loads(memory[8 : 8 + length])[name]["data_offsets"]
            values = gradient.detach().to("cpu", torch.float32).contiguous().numpy()
            memory[8 + length + begin : 8 + length + end] = values.tobytes()

    def read(self, name: str) -> Tensor:
        """One matrix, float32 [out, in]."""

        def load() -> Tensor:
            with safe_open(self.path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name).clone()
                return tensor

        return processes.from_first(load)
