"""Finds the folder of a model by what was given: a path, a name on the hub, or builtin."""

from __future__ import annotations

from pathlib import Path

from secateur.bundled import BUILTIN_MODEL, FOLDER
from secateur.errors import CheckpointError


def locate(model: str | Path, *, trust_remote_code: bool = False) -> Path:
    """The folder of a model: `model` itself, the bundled one, or the snapshot of a hub name.

    Code is fetched with the model only if it is trusted.

    Raises:
        CheckpointError: there is no such folder, and the hub has no such model or is out of reach.
    """
    if model == BUILTIN_MODEL:
        return FOLDER
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    name = str(model)
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise CheckpointError(
            f"no model folder {name!r}",
            wanted="a folder, a hub name such as owner/model, or builtin",
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "LICENSE*"]
    patterns += ["*.py"] if trust_remote_code else []
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as fault:
        raise CheckpointError(
            f"no folder {name!r} here, and no such model could be fetched from the hub"
            f" ({type(fault).__name__})",
            hint="a local folder, or check the name and the network",
        ) from fault
