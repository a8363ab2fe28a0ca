"""A model folder written anew, smaller: every matrix packed where that saves bytes; and back.

Some tensors are in memory at a time: those of one shard of the result. A matrix is read, packed and
let go before the next; experts that transformers stacks to one parameter are packed all or none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from secateur.checkpoint import Checkpoint, Destination, OutputFolder, RunIdentity, locate
from secateur.checkpoint.packed_folder import (
    PACKED_INDEX,
    QUANT_METHOD,
    VERSION,
    packed_config,
    says_packed,
)
from secateur.checkpoint.weight_files import CONFIG
from secateur.errors import CheckpointError, OutputError
from secateur.machine.paths import as_path, pinned
from secateur.packing.layout import PARTS, pack_tensor, saved
from secateur.progress import Progress, Quiet
from secateur.record import read_record

SHARD_BYTES = 1_000_000_000
"""Most bytes of dense tensors in one shard, unless a single tensor is larger: what fits into the
memory of any machine that can run the model."""


@dataclass(frozen=True)
class Packing:
    """The outcome of packing or unpacking the weights of a model.

    Attributes:
        out: the folder written.
        before, after: bytes of all tensors in the source and in the result.
        matrices_dense, matrices_packed: bytes of the matrices that are packed, dense and packed.
        forms: how many tensors are packed in each form ("2:4", "bitmask"), and how many are not.
    """

    out: Path
    before: int
    after: int
    matrices_dense: int
    matrices_packed: int
    forms: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return {**asdict(self), "out": str(self.out)}


def pack(
    model: str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Packing:
    """Write a packed copy of a model.

    Args:
        model: folder or hub name.
        out: the new folder.
        overwrite: replace it if it exists.
        revision: branch, tag or commit of a model on the hub; None is its main branch.
        trust_remote_code: copy the code that lies beside the weights too.
        progress: told what happens; silent by default.

    Returns:
        the bytes before and after, and how many tensors have which form.

    Raises:
        SecateurError: the model cannot be read or is packed already; or the result not written.

    >>> packing = secateur.pack("pruned", "packed")
    >>> packing.after < packing.before
    True
    """
    checkpoint = _open(pinned(model, revision), trust_remote_code)
    if checkpoint.packed:
        raise CheckpointError("packed already", where=checkpoint.folder, hint="secateur unpack")
    if checkpoint.quantised:
        raise CheckpointError(
            "quantised already: packed matrices have values of 16 or 32 bits, and would be larger",
            where=checkpoint.folder,
            hint="the folder as it is, or packing a model that is not quantised",
        )
    for name in checkpoint.names:
        if name.endswith(PARTS):
            raise CheckpointError(
                f"tensor {name!r} has a name that is kept for packed ones",
                where=checkpoint.folder,
                wanted=f"names that end in none of {', '.join(PARTS)}",
            )
    tally = _Tally()
    with progress or Quiet() as progress, _output(checkpoint, out, overwrite, "pack") as output:
        shards = _plan(checkpoint)
        progress.begin("pack", len(shards))
        for number, groups in enumerate(shards, start=1):
            tensors: dict[str, Tensor] = {}
            for names in groups:
                tensors.update(_pack_group(checkpoint.load(names), tally))
            output.write_shard(_file("packed", number, len(shards)), tensors)
            progress.block(shard=number)
        text = (checkpoint.folder / CONFIG).read_text(encoding="utf-8")
        output.write_file(CONFIG, packed_config(text))
        if not tally.packed:
            progress.notice(
                "no matrix has zeros enough to be smaller packed: the copy is as large as the model"
                " (fewer or narrower blocks are small as they are)"
            )
        files = output.seal(PACKED_INDEX, {"format": QUANT_METHOD, "version": VERSION})
        _finish(output, checkpoint, files)
    return tally.result(output.out)


def unpack(
    model: str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Packing:
    """Write a plain copy of a packed model, its tensors bit for bit as they were.

    Args:
        model: folder or hub name of a packed model.
        out: the new folder.
        overwrite: replace it if it exists.
        revision: branch, tag or commit of a model on the hub; None is its main branch.
        trust_remote_code: copy the code that lies beside the weights too.
        progress: told what happens; silent by default.

    Returns:
        the bytes before and after, and how many tensors have which form.

    Raises:
        SecateurError: the model cannot be read or is not packed; or the result not written.

    >>> packing = secateur.unpack("packed", "plain")
    >>> packing.after > packing.before
    True
    """
    checkpoint = _open(pinned(model, revision), trust_remote_code)
    if not says_packed(checkpoint.config):
        raise CheckpointError(
            "not packed", where=model, wanted="a folder that `secateur pack` wrote"
        )
    tally = _Tally()
    with progress or Quiet() as progress, _output(checkpoint, out, overwrite, "unpack") as output:
        shards = _plan(checkpoint)
        progress.begin("unpack", len(shards))
        for number, groups in enumerate(shards, start=1):
            tensors = checkpoint.load([name for names in groups for name in names])
            for name, tensor in tensors.items():
                stored = checkpoint.stored_bytes(name)
                form = checkpoint.packed[name].form if name in checkpoint.packed else None
                tally.add("dense" if form is None else str(form), tensor.nbytes, stored)
            output.write_shard(_file("model", number, len(shards)), tensors)
            progress.block(shard=number)
        _finish(output, checkpoint, output.seal())
    packing = tally.result(output.out)
    return Packing(
        packing.out, packing.after, packing.before, packing.matrices_dense,
        packing.matrices_packed, packing.forms,
    )  # fmt: skip


class _Tally:
    """Adds up sizes as tensors pass."""

    def __init__(self) -> None:
        self.forms: Counter[str] = Counter()
        self.dense = self.packed = self.others = 0

    def add(self, form: str, dense: int, packed: int) -> None:
        """Count one tensor, by its bytes."""
        self.forms[form] += 1
        if form == "dense":
            self.others += dense
        else:
            self.dense += dense
            self.packed += packed

    def result(self, out: Path) -> Packing:
        """The sum of what was counted."""
        return Packing(
            out, self.others + self.dense, self.others + self.packed, self.dense, self.packed,
            dict(self.forms.most_common()),
        )  # fmt: skip


def _pack_group(tensors: Mapping[str, Tensor], tally: _Tally) -> Iterator[tuple[str, Tensor]]:
    """Pack tensors that are packed all or none, or leave them dense, whichever is smaller."""
    results = {name: pack_tensor(name, tensor) for name, tensor in tensors.items()}
    packed = {name: each for name, each in results.items() if each is not None}
    gain = sum(saved(tensors[name], parts) for name, (_, parts) in packed.items())
    whole = len(packed) == len(tensors) and gain > 0
    for name, tensor in tensors.items():
        if whole:
            matrix, parts = packed[name]
            tally.add(str(matrix.form), tensor.nbytes, sum(p.nbytes for p in parts.values()))
            yield from parts.items()
        else:
            tally.add("dense", tensor.nbytes, tensor.nbytes)
            yield name, tensor


def _plan(checkpoint: Checkpoint) -> list[list[list[str]]]:
    """Shards of groups of the names of tensors: the tensors of a group become one parameter.

    These are of one shape and one name but for a number behind the first, that of their block:
    "layers.3.experts.17.up_proj.weight".
    """
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name in checkpoint.names:
        head, number, tail = re.match(r"(\D*)(\d*)(.*)", name).groups()  # type: ignore[union-attr]
        alike = (head, number, re.sub(r"\.\d+\.", ".#.", tail))
        groups.setdefault((*alike, checkpoint.shape(name), checkpoint.dtype(name)), []).append(name)
    shards: list[list[list[str]]] = [[]]
    filled = 0
    for names in groups.values():
        size = sum(checkpoint.dense_bytes(name) for name in names)
        if shards[-1] and filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(names)
        filled += size
    return shards


def _open(model: str, trust_remote_code: bool) -> Checkpoint:
    folder = locate(model, trust_remote_code=trust_remote_code)
    return Checkpoint(folder, trust_remote_code=trust_remote_code)


def _output(checkpoint: Checkpoint, out: str | Path, overwrite: bool, command: str) -> OutputFolder:
    checkpoint.source.watch()
    destination = Destination(
        as_path(out, fault=OutputError),
        checkpoint.folder,
        overwrite=overwrite,
        with_code=checkpoint.trust_remote_code,
        command=command,
    )
    return OutputFolder(destination, RunIdentity({"packing": str(checkpoint.folder)}))


def _finish(output: OutputFolder, checkpoint: Checkpoint, files: dict[str, str]) -> None:
    """Name the folder; a run record in the source goes along, with the files' new checksums.

    Raises:
        CheckpointError: the source is not what it was.
        OutputError: the result cannot be written.
    """
    checkpoint.source.check()
    record = read_record(checkpoint.folder)
    if record is None:
        output.finish(None)
    else:
        renewed = record.model_copy(update={"files": files})
        output.finish(renewed.model_dump_json(indent=2) + "\n")


def _file(start: str, number: int, count: int) -> str:
    return f"{start}-{number:05d}-of-{count:05d}.safetensors"
