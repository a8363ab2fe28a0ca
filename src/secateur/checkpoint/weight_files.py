"""Says which tensors transformers loads from a model folder, and refuses what depends on luck.

transformers 5 looks, in this order, for

    transformers_weights    a file or an index that config.json names
    model.safetensors       one file; an index beside it is not looked at
    model.safetensors.index.json
                            and then loads every tensor of every shard that the index names,
                            whether the index lists the tensor or not

and, once secateur is imported, for `packed.safetensors.index.json` where config.json says that the
weights are packed. What is followed here is that order. Where two answers are possible (a tensor in
two shards, packed and plain weights side by side), or where something is put on top of the weights
(an adapter), the folder is refused. Everything that reads a model asks here, by `Checkpoint`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.checkpoint.compressed import described
from secateur.checkpoint.conversion import conversion, refuse_quantised
from secateur.checkpoint.header import read_head, read_json
from secateur.checkpoint.packed_folder import (
    NAMED,
    PACKED_INDEX,
    QUANTISED,
    check_version,
    says_packed,
)
from secateur.errors import CheckpointError, some, unreadable
from secateur.machine.limits import MOST_CONFIG_BYTES
from secateur.packing.layout import Head

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
ADAPTER_CONFIG = "adapter_config.json"
"""The file by which transformers knows an adapter, which it puts on top of the weights."""
_WEIGHTS = re.compile(
    r".+\.(safetensors|bin|pte?|pth|ckpt|gguf|ggml|h5|keras|msgpack|onnx|npz|pickle|pkl|distcp|nemo"
    r"|tflite|pdparams|llamafile|engine)"
    r"([-_.](data|tar|gz|xz|zst|bak|old|orig|tmp|\d+|(split|part)[-_\da-z]*))*|.+\.index\.json"
)
"""Names of weights in any library's format, in one piece, in parts, squeezed or put aside, and of
an index of some, in small letters."""
_OF_TRAINING = re.compile(
    r"(training_args|(optimizer|scheduler|scaler|sampler|rng_state|random_states?)([-_.]?\d+)*)"
    r"\.(bin|pt|pth|pkl)"
)
"""What transformers' trainer and accelerate leave beside weights, and is none."""
_OF_MANY_PROCESSES = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
"""Names by which transformers takes a folder for a distributed checkpoint, whatever else it has."""


@dataclass(frozen=True)
class WeightFiles:
    """What a model folder holds of weights, known from headers alone.

    Attributes:
        heads: shape and dtype of every tensor of the files that are loaded, by file.
        tensors: the file that every tensor lies in.
        idle: files of the folder that look like weights, or like an index, and are not loaded.
    """

    heads: Mapping[Path, Head]
    tensors: dict[str, Path]
    idle: tuple[Path, ...]


def find_weights(folder: Path, config: Mapping[str, Any]) -> WeightFiles:
    """The tensors that transformers loads from a folder.

    Args:
        folder: of the model.
        config: the content of its config.json.

    Raises:
        CheckpointError: there are no weights, they are damaged, or which are loaded cannot be told.
    """
    names = names_in(folder)
    entrance = choose_entrance(names, config, folder)
    listed = read_index(folder / entrance) if entrance.endswith(".json") else {}
    files = sorted(set(listed.values())) if listed else [entrance]
    for file in files:
        if file not in names:
            raise CheckpointError(
                f"shard {file} is missing", where=folder, hint="fetching the model again"
            )
    quantised = described(config) is not None
    heads = {folder / file: read_head(folder / file, quantised=quantised) for file in files}
    tensors: dict[str, Path] = {}
    for path, head in heads.items():
        for name in head:
            if name in tensors:
                raise CheckpointError(
                    f"tensor {name!r} lies in {tensors[name].name} and in {path.name}: which of the"
                    " two is loaded is luck",
                    where=folder,
                    wanted="every tensor once",
                    hint="fetching the model again into an empty folder",
                )
            tensors[name] = path
    for name, file in listed.items():
        if tensors.get(name) != folder / file:
            raise CheckpointError(
                f"tensor {name!r} is in the index but not in its shard",
                where=folder / file,
                wanted="an index and shards of the same model",
            )
    loaded = {entrance, *(path.name for path in heads)}
    idle = sorted(name for name in names - loaded if looks_like_weights(name))
    return WeightFiles(heads, tensors, tuple(folder / name for name in idle))


def choose_entrance(names: Collection[str], config: Mapping[str, Any], where: object) -> str:
    """The name of the file or the index that transformers begins with.

    Args:
        names: of the files in the folder, or in a repository's.
        config: the content of config.json.
        where: the folder or the repository.

    Raises:
        CheckpointError: there is none, or which it is cannot be told.
    """
    refuse_quantised(config, where)
    _refuse_additions(names, config, where)
    plain = [name for name in (SINGLE, INDEX) if name in names]
    if says_packed(config):
        check_version(config[QUANTISED], f"{where}/{CONFIG}")
        if PACKED_INDEX in names and not plain:
            return PACKED_INDEX
        if PACKED_INDEX in names:
            raise _both(plain[0], where)
        said = "config.json says that the weights are packed, and they are not"
        raise CheckpointError(said if plain else "no weights", where=where, wanted=PACKED_INDEX)
    if config.get(NAMED) is not None:
        return _named(config, names, where)
    if plain and PACKED_INDEX in names:
        raise _both(plain[0], where)
    if plain:
        return plain[0]
    if PACKED_INDEX in names:
        raise CheckpointError(
            "the weights are packed, and config.json does not say so",
            where=where,
            wanted="the config.json that `secateur pack` wrote",
        )
    raise no_weights(names, where)


def read_index(index: Path) -> dict[str, str]:
    """The file beside an index that holds each tensor, as the index says.

    Raises:
        CheckpointError: it is no index that transformers reads.
    """
    wanted = "JSON with a weight_map of tensor names to .safetensors files in the same folder"
    facts = read_json(index, wanted)
    if index.name == PACKED_INDEX:
        check_version(facts.get("metadata"), index)
    weight_map = facts.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("the index has no weight_map", where=index, wanted=wanted)
    for name, file in weight_map.items():
        if not isinstance(file, str) or not is_beside(file) or not file.endswith(".safetensors"):
            raise CheckpointError(
                f"tensor {name!r} is said to be in {file!r}", where=index, wanted=wanted
            )
    if not isinstance(facts.get("metadata"), dict):
        raise CheckpointError(
            "the index has no metadata, without which transformers does not read it",
            where=index,
            wanted='"metadata": {} beside the weight_map',
        )
    return weight_map


def config_of(folder: Path) -> dict[str, Any]:
    """The content of a model's config.json.

    Raises:
        CheckpointError: it is too large, cannot be read, or is no object.
    """
    return read_json(folder / CONFIG, "a model's configuration", MOST_CONFIG_BYTES)


def names_in(folder: Path) -> set[str]:
    """The names of the files in a folder.

    Raises:
        CheckpointError: it cannot be looked into.
    """
    try:
        return {path.name for path in folder.iterdir() if path.is_file()}
    except OSError as fault:
        raise unreadable(folder, fault, CheckpointError) from fault


def is_beside(name: str) -> bool:
    """Whether a name that a stranger wrote is that of a file in the same folder."""
    return name == Path(name).name and name not in ("", "..") and "\0" not in name


def looks_like_weights(name: str) -> bool:
    """Whether a file, by its name, is of weights or an index of some."""
    small = name.lower()
    return bool(_WEIGHTS.fullmatch(small)) and not _OF_TRAINING.fullmatch(small)


def _refuse_additions(names: Collection[str], config: Mapping[str, Any], where: object) -> None:
    """Raise for what makes transformers load something else than the weights of this folder."""
    if ADAPTER_CONFIG in names:
        raise CheckpointError(
            "an adapter lies beside the weights, and transformers puts it on top of them",
            where=where,
            wanted="a model without an adapter",
            hint=f"merging it by peft's merge_and_unload, or taking {ADAPTER_CONFIG} out",
        )
    for name in names:
        if _OF_MANY_PROCESSES.fullmatch(name):
            raise CheckpointError(
                f"{name} makes transformers take this for a distributed checkpoint",
                where=where,
                wanted=f"{SINGLE}, or shards with {INDEX}",
                hint="loading it in transformers, then save_pretrained into a new folder",
            )
    if "configuration_files" in config:
        raise CheckpointError(
            "configuration_files in config.json sends transformers to another configuration",
            where=where,
            wanted="one config.json",
            hint="putting the content of the one that fits into config.json",
        )
    parts = {key: part for key, part in config.items() if isinstance(part, dict)}
    named = [key for key, part in parts.items() if _names_file(part)]
    of_its_own = config.get(NAMED) is not None and not says_packed(config)
    if named or (of_its_own and "text_config" in parts):
        raise CheckpointError(
            f"{NAMED} in a config.json of several parts ({', '.join(named or parts)}): which part"
            " transformers asks depends on the class that loads it",
            where=where,
            wanted=f"{SINGLE} or {INDEX}",
            hint=f"giving the file that name, and taking {NAMED} out",
        )


def _names_file(part: Mapping[str, Any]) -> bool:
    return part.get(NAMED) is not None or any(
        isinstance(deeper, dict) and _names_file(deeper) for deeper in part.values()
    )


def _named(config: Mapping[str, Any], names: Collection[str], where: object) -> str:
    """The file that config.json names, if transformers would load it from this folder."""
    name = config[NAMED]
    fits = isinstance(name, str) and name.endswith((".safetensors", ".safetensors.index.json"))
    if not fits or not is_beside(name) or name not in names:
        raise CheckpointError(
            f"{NAMED} in config.json names {name!r}",
            where=where,
            wanted="a .safetensors file of this folder, or an index of some",
            hint=f"taking it out, if the weights are in {SINGLE} or have an index",
        )
    return str(name)


def _both(plain: str, where: object) -> CheckpointError:
    return CheckpointError(
        f"packed and plain weights side by side ({PACKED_INDEX} and {plain})",
        where=where,
        wanted="one of them",
        hint="taking the other out, with its shards",
    )


def no_weights(names: Collection[str], where: object) -> CheckpointError:
    """What to say of a folder or a repository without weights that can be read."""
    others = [name for name in sorted(names) if looks_like_weights(name)]
    pickles = [name for name in others if any(Path(name).match(pattern) for pattern in PICKLES)]
    if pickles and not any(name.endswith(".safetensors") for name in others):
        return CheckpointError(
            f"only pickled weights, which can run code when they are opened ({some(pickles)})",
            where=where,
            wanted="safetensors",
            hint=f"converting it, if you trust who made it: {conversion(where)}",
        )
    return CheckpointError(
        "no weights" + (f" that transformers loads: {some(others)}" if others else ""),
        where=where,
        wanted=f"{SINGLE} or {INDEX}",
        hint=f"{NAMED} in config.json, if one of these holds all of them" if others else None,
    )
