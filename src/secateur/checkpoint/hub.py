"""Fetches a model from the Hugging Face hub: what transformers would load of it, and nothing twice.

A repository often holds a model several times: pickles beside safetensors, consolidated files or a
folder `original/` in a maker's own format, copies in half precision. Its files are listed first,
the resolver says which of them are loaded (`weight_files.py`), and those are fetched, all of one
commit. What cannot be used is refused before its weights are fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from glob import escape
from pathlib import Path

from secateur.checkpoint.companions import belongs
from secateur.checkpoint.no_model import no_config
from secateur.checkpoint.weight_files import (
    CONFIG,
    choose_entrance,
    config_of,
    no_weights,
    read_index,
)
from secateur.errors import CheckpointError
from secateur.machine.paths import near_path


def fetch(name: str, revision: str | None, *, trust_remote_code: bool) -> Path:
    """The snapshot of a model in the hub's cache, fetched if need be; that alone where offline.

    Args:
        name: owner/model.
        revision: a branch, a tag or a commit; None is the main branch.
        trust_remote_code: fetch code too.

    Raises:
        CheckpointError: there is no such model or revision, it is out of reach, or not of a kind
            that can be read.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, RevisionNotFoundError

    try:
        listed = HfApi().model_info(name, revision=revision)
    except (HFValidationError, RevisionNotFoundError) as fault:
        raise _out_of_reach(name, revision, fault) from fault
    except Exception as fault:  # the client's, the HTTP library's and the system's own
        try:
            return Path(
                snapshot_download(
                    name, revision=revision, local_files_only=True, allow_patterns=[CONFIG]
                )
            )
        except Exception:
            raise _out_of_reach(name, revision, fault) from fault
    names = [file.rfilename for file in listed.siblings or ()]

    def take(files: Iterable[str], at: str | None) -> Path:
        patterns = [escape(file) for file in files]
        try:
            folder = Path(snapshot_download(name, revision=at, allow_patterns=patterns))
        except Exception as fault:
            raise _out_of_reach(name, revision, fault) from fault
        if listed.sha not in (None, folder.name):
            raise CheckpointError(f"{name} was changed while it was fetched", hint="again")
        return folder

    return _fetch(name, revision, names, take, trust_remote_code)


def _fetch(
    name: str,
    revision: str | None,
    names: list[str],
    take: Callable[[Iterable[str], str | None], Path],
    trust_remote_code: bool,
) -> Path:
    """The snapshot, taken in three steps: what lies beside the weights, their index, the weights.

    Args:
        name, revision: of the repository.
        names: of all its files.
        take: fetches some of them, of a commit or a branch, and gives the snapshot.
        trust_remote_code: take code too.
    """
    beside_each_other = {file for file in names if "/" not in file}
    if CONFIG not in beside_each_other:
        raise no_config(name, names)
    if not any(file.endswith(".safetensors") for file in beside_each_other):
        raise no_weights(beside_each_other, name)
    beside = [file for file in names if belongs(file, with_code=trust_remote_code)]
    folder = take(beside, revision)
    commit = folder.name
    entrance = choose_entrance(beside_each_other, config_of(folder), name)
    weights = [entrance]
    if entrance.endswith(".json"):
        take(weights, commit)
        weights = sorted(set(read_index(folder / entrance).values()))
        for file in weights:
            if file not in beside_each_other:
                raise CheckpointError(f"shard {file} is missing", where=name, hint="another model")
    return take(weights, commit)


def _out_of_reach(name: str, revision: str | None, fault: Exception) -> CheckpointError:
    """What to say of a model that cannot be fetched."""
    kind, near = type(fault).__name__, near_path(Path(name), folder=True)
    if kind == "RevisionNotFoundError":
        return CheckpointError(
            f"{name} has no revision {revision!r}",
            where="the hub",
            wanted="a branch, a tag or a commit of it",
        )
    at = "" if revision is None else f" at revision {revision!r}"
    if kind == "GatedRepoError":
        return CheckpointError(
            f"{name}{at} is only for those who accepted its terms",
            where="the hub",
            hint="accepting them on its page, then `hf auth login`",
        )
    return CheckpointError(
        f"no folder {name!r} here, and no such model could be fetched from the hub{at} ({kind})",
        hint=near or "a local folder, or check the name and the network",
    )
