"""A model folder as one GGUF file, which llama.cpp and all that is built on it run.

The names, the quantisers and the writer are those of llama.cpp's own `gguf` library; what differs
between transformers and llama.cpp lies in the table of `gguf/kinds.py`. One tensor is in memory at
a time: read, reordered, rounded, written. The types: `gguf_types.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.checkpoint import Checkpoint, StreamedModel, locate
from secateur.checkpoint.claim import claim_file
from secateur.checkpoint.durable import left_unfinished, replacing, writing
from secateur.checkpoint.from_gguf import source_of
from secateur.checkpoint.lock import alone_at
from secateur.checkpoint.naming import NotStreamableError
from secateur.errors import ModelError, OutputError, some
from secateur.export.folders import Packing
from secateur.export.gguf_types import (
    FILE_TYPES,
    GROUP,
    GgufType,
    StoredTensor,
    encode,
    type_of,
)
from secateur.gguf import GgufKind, kind_of, read_vocabulary
from secateur.gguf.library import GGUF_SUFFIX, Value, library
from secateur.gguf.rotary import SLOWED, rotary_metadata, slowed
from secateur.machine.paths import as_path, pinned
from secateur.progress import Progress, Quiet

_VERSION = 2
"""Of the layouts of quantised blocks, which llama.cpp compares."""


def pack_gguf(
    model: str | Path,
    out: str | Path,
    *,
    type: GgufType | str = GgufType.F16,  # noqa: A002 - the word that llama.cpp's tools have
    overwrite: bool = False,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Packing:
    """Write a model as a GGUF file, its tokenizer included.

    Args:
        model: folder or hub name; of a Llama, Mistral, Qwen 2 or 3, or Gemma 2 or 3 (text).
        out: the new file; its name ends in .gguf.
        type: of the matrices: F16, BF16, Q8_0 or Q4_0.
        overwrite: replace the file if it exists.
        revision: branch, tag or commit of a model on the hub; None is its main branch.
        progress: told what happens; silent by default.

    Returns:
        the bytes before and after, and how many tensors have which type.

    Raises:
        SecateurError: the model cannot be read or is of no kind that is written; a weight does not
            fit the type; the file cannot be written; or the gguf library is missing.

    >>> packing = secateur.pack_gguf("pruned", "pruned.gguf", type="Q8_0")
    >>> packing.after < packing.before
    True
    """
    gguf, chosen = library(), _type(type)
    path = _claim(out, overwrite)
    folder = locate(pinned(model, revision))
    checkpoint = Checkpoint(folder)
    kind = kind_of(str(checkpoint.config.get("model_type")), folder)
    try:
        opened = StreamedModel(checkpoint, torch.device("cpu"), torch.float32)
    except NotStreamableError as fault:
        raise ModelError(f"the blocks are not their own ({fault})", where=folder) from fault
    config = opened.model.config
    plan = list(_plan(opened, kind, chosen))
    metadata = {**_general(folder, chosen), **kind.metadata(config)}
    metadata |= rotary_metadata(kind.arch, config)
    vocabulary = read_vocabulary(folder, config.vocab_size)
    metadata |= vocabulary.metadata
    source = opened.watch()
    with progress or Quiet() as progress:
        for text in (*opened.notices, *_notices(opened, plan, chosen, vocabulary.cut)):
            progress.notice(text)
        parts = [(part, list(group)) for part, group in groupby(plan, key=_part)]
        progress.begin("gguf", len(parts))
        with _alone(path, overwrite), replacing(path) as unfinished:
            writer = gguf.GGUFWriter(unfinished, kind.arch)
            try:
                _write_header(writer, metadata, plan)
                for part, group in parts:
                    for stored in group:
                        writer.write_tensor_data(encode(_weight(opened, kind, stored), stored))
                    progress.block(part=part)
            finally:
                writer.close()
            source.check()
    return _packing(path, opened, plan)


def _type(given: GgufType | str) -> GgufType:
    try:
        return GgufType(str(given).upper())
    except ValueError as fault:
        raise ModelError(
            f"no type {str(given)!r} of GGUF", wanted="one of " + ", ".join(GgufType)
        ) from fault


def _claim(out: str | Path, overwrite: bool) -> Path:
    """The file to write.

    Raises:
        OutputError: it cannot be, or its name is none of a GGUF file.
    """
    given = as_path(out, fault=OutputError)
    if given.suffix != GGUF_SUFFIX:
        hint = given / f"model{GGUF_SUFFIX}" if given.is_dir() else f"{given}{GGUF_SUFFIX}"
        raise OutputError(
            "a GGUF file has another name", where=given, wanted=f"one that ends in {GGUF_SUFFIX}",
            hint=str(hint),
        )  # fmt: skip
    return claim_file(given, overwrite=overwrite)


@contextmanager
def _alone(path: Path, overwrite: bool) -> Iterator[None]:
    """Inside, no other run writes the file; what killed ones have left of it is removed.

    Raises:
        OutputError: another run writes it, or has written it meanwhile.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with alone_at(path):
        claim_file(path, overwrite=overwrite)
        with writing(path):
            for left in left_unfinished(path):
                left.unlink()
        yield


def _plan(opened: StreamedModel, kind: GgufKind, chosen: GgufType) -> Iterator[StoredTensor]:
    """Every tensor of the file, in the order of the blocks.

    Raises:
        ModelError: a parameter has no name in GGUF.
    """
    config = opened.model.config
    name_of = kind.names(config.num_hidden_layers)
    factors = slowed(config)
    if factors is not None:
        yield StoredTensor(SLOWED, "", tuple(factors.shape), "F32")
    shapes = {name: tuple(tensor.shape) for name, tensor in opened.model.state_dict().items()}
    head = "lm_head.weight" if config.tie_word_embeddings else None
    for parameter, shape in shapes.items():
        if parameter == head:
            continue  # the embedding is the output head, too
        name = name_of(parameter)
        if name is None:
            raise ModelError(
                f"{parameter!r} has no name in a GGUF of {kind.arch!r}",
                where=opened.checkpoint.folder,
            )
        yield StoredTensor(name, parameter, shape, type_of(name, shape, chosen))


def _part(stored: StoredTensor) -> str:
    """What a tensor belongs to: a block, or itself."""
    return ".".join(stored.name.split(".")[:2])


def _general(folder: Path, chosen: GgufType) -> dict[str, Value]:
    source = source_of(folder)
    return {
        "general.type": "model",
        "general.name": folder.name if source is None else source.stem,
        "general.file_type": FILE_TYPES[chosen],
        "general.quantization_version": _VERSION,
    }


def _notices(
    opened: StreamedModel, plan: list[StoredTensor], chosen: GgufType, cut: tuple[str, ...]
) -> Iterator[str]:
    """What the file has not, or has in another way than was asked."""
    wide = [stored.name for stored in plan if stored.type == "F16" != chosen]
    if wide:
        yield f"{some(wide)}: F16, because {GROUP} does not divide their width"
    if cut:
        yield f"tokens without a row in the embedding are left out: {some(map(repr, cut))}"
    if opened.unused:
        yield f"tensors that are no part of the model are left out: {some(sorted(opened.unused))}"


def _write_header(writer: Any, metadata: dict[str, Value], plan: list[StoredTensor]) -> None:
    for key, value in metadata.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_string(key, value)
    gguf = library()
    for stored in plan:
        type_ = gguf.GGMLQuantizationType[stored.type]
        writer.add_tensor_info(
            stored.name, stored.shape, np.dtype(np.float32), stored.nbytes, raw_dtype=type_
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def _weight(opened: StreamedModel, kind: GgufKind, stored: StoredTensor) -> Tensor:
    """One tensor as it lies in the file, but in the dtype of its source."""
    config = opened.model.config
    if stored.name == SLOWED:
        factors = slowed(config)
        assert factors is not None
        return factors
    naming = opened.naming
    tensors = opened.checkpoint.load(naming.tensors_of(stored.parameter))
    return kind.stored(stored.name, naming.join(stored.parameter, tensors), config)


def _packing(path: Path, opened: StreamedModel, plan: list[StoredTensor]) -> Packing:
    checkpoint, naming = opened.checkpoint, opened.naming
    dense = packed = 0
    for stored in plan:
        if stored.rounded:
            tensors = naming.tensors_of(stored.parameter)
            dense += sum(map(checkpoint.dense_bytes, tensors))
            packed += stored.nbytes
    before = sum(map(checkpoint.dense_bytes, checkpoint.names))
    after = sum(stored.nbytes for stored in plan)
    forms = Counter(stored.type for stored in plan)
    return Packing(path, before, after, dense, packed, dict(forms.most_common()))
