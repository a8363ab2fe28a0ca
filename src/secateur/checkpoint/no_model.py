"""Says what was given in place of a model folder, and where the model may be."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from secateur.checkpoint.header import read_json
from secateur.checkpoint.weight_files import ADAPTER_CONFIG, CONFIG, looks_like_weights
from secateur.errors import CheckpointError, some
from secateur.machine.paths import near_path

_FOLDER = "a model folder as transformers' save_pretrained writes it"
_GIVEN = "a folder, a GGUF file, a hub name such as owner/model, or builtin"
_WRAPPERS = {
    "_orig_mod.": "saving it from what torch.compile was given, model._orig_mod",
    "base_model.model.": "saving it after peft's merge_and_unload",
    ".base_layer.": "saving it after peft's merge_and_unload",
    ".weight_orig": "saving it after torch.nn.utils.prune.remove",
    ".parametrizations.": "saving it after torch.nn.utils.parametrize.remove_parametrizations",
    ".qweight": "the checkpoint that its weights were quantised from",
    "_forward_module.": "saving it from within its wrapper",
    "module.": "saving it from within DataParallel or DistributedDataParallel, model.module",
}
"""Parts of names that wrappers leave in a file -> the way out; the first that is there counts."""
MOST_LOOKED_AT = 200
"""Sub-folders that are looked into for a model at most: enough for every step of a training."""


def not_a_folder(path: Path) -> CheckpointError:
    """What to say of a file that was given as a model."""
    kind, hint = "a file", None
    if path.suffix in (".zip", ".tar", ".gz", ".tgz", ".zst"):
        kind, hint = "an archive", "unpacking it"
    elif path.name == CONFIG or looks_like_weights(path.name):
        kind = "a file of a model"
        if (path.parent / CONFIG).is_file():
            hint = f"the folder that it is in: {path.parent}"
        else:
            hint = f"a folder that has it and its {CONFIG}"
    return CheckpointError(f"no model folder {str(path)!r}: it is {kind}", wanted=_GIVEN, hint=hint)


def no_such_folder(given: str, path: Path) -> CheckpointError:
    """What to say of a path where nothing is."""
    hint = near_path(path, folder=True)
    if "huggingface.co/" in given:
        hint = "/".join(given.partition("huggingface.co/")[2].split("/")[:2])
    return CheckpointError(f"no model folder {given!r}", wanted=_GIVEN, hint=hint)


def no_config(where: Path | str, names: Collection[str]) -> CheckpointError:
    """What to say of a folder or a repository without config.json.

    Args:
        where: the folder, or the name of the repository.
        names: of the files in it.
    """
    gguf = sorted(name for name in names if name.endswith(".gguf"))
    if ADAPTER_CONFIG in names:
        return _adapter(where)
    if gguf:
        file = where / gguf[0] if isinstance(where, Path) else f"{gguf[0]}, once it is fetched"
        return CheckpointError(
            f"GGUF files ({some(gguf)}) and no {CONFIG}",
            where=where,
            wanted=_FOLDER,
            hint=f"the file itself: {file}",
        )
    hint, models = None, _models_below(where) if isinstance(where, Path) else []
    below = sorted(name.removesuffix(f"/{CONFIG}") for name in names if name.endswith(f"/{CONFIG}"))
    if models:
        hint = "a model that is in it: " + some(models)
    elif below:
        hint = f"fetching it to a folder, and in that {some(below)}"
    elif any(name.startswith("consolidated") or name == "params.json" for name in names):
        hint = "the release of this model in the format of transformers"
    elif any(looks_like_weights(name) for name in names):
        hint = f"the {CONFIG} that belongs to the weights"
    nothing = isinstance(where, Path) and not any(where.iterdir())
    empty = " (the folder is empty)" if nothing else ""
    return CheckpointError(f"no {CONFIG}{empty}", where=where, wanted=_FOLDER, hint=hint)


def missing_weights(
    absent: Collection[str], unused: Collection[str], where: object
) -> CheckpointError:
    """What to say of weights that a model has and its files do not hold under these names.

    Args:
        absent: names of the weights that are missing.
        unused: names of tensors in the files that the model has no place for.
        where: the folder.
    """
    hint = next((made for mark, made in _WRAPPERS.items() if any(mark in n for n in unused)), None)
    example = min(absent)
    prefixes = [name.removesuffix(example) for name in unused if name.endswith(f".{example}")]
    if hint is None and prefixes:
        hint = f"names without {min(prefixes)!r} in front"
    there = f"; the files hold {some(sorted(unused))}, which it does not have" if unused else ""
    return CheckpointError(
        f"{len(absent)} weights are missing, such as {example!r}{there}",
        where=where,
        wanted="every weight of the architecture in config.json",
        hint=hint,
    )


def _models_below(folder: Path) -> list[str]:
    """Folders within a folder that hold a model; the snapshots of a repository in the cache."""
    below = [folder / name for name in _folders(folder)]
    if folder / "snapshots" in below:
        below = [folder / "snapshots" / name for name in _folders(folder / "snapshots")]
    return [str(path) for path in below if (path / CONFIG).is_file()]


def _folders(parent: Path) -> list[str]:
    try:
        names = sorted(path.name for path in parent.iterdir() if path.is_dir())
    except OSError:
        return []
    return names[:MOST_LOOKED_AT]


def _adapter(where: Path | str) -> CheckpointError:
    """What to say of a folder of adapters: how the model is made that it stands for."""
    base = None
    if isinstance(where, Path):
        with suppress(CheckpointError):
            base = read_json(where / ADAPTER_CONFIG, "").get("base_model_name_or_path")
    code = (
        "import sys; from peft import AutoPeftModelForCausalLM as M;"
        " M.from_pretrained(sys.argv[1]).merge_and_unload().save_pretrained(sys.argv[2])"
    )
    merge = f"python -c {shlex.quote(code)} {shlex.quote(str(where))} "
    merge += shlex.quote(f"{where}-merged")
    of = f" of {base}" if isinstance(base, str) and base else ""
    return CheckpointError(
        f"an adapter{of}, not a model", where=where, wanted=_FOLDER, hint=f"merging it: {merge}"
    )
