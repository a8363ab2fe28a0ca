"""Whether a run that is finished is the one that is asked for, of pruning or of recovery."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secateur.checkpoint import locate
from secateur.checkpoint.model_facts import load_tokenizer
from secateur.data import adds_nothing
from secateur.errors import DataError, OutputError, SecateurError
from secateur.machine.paths import pinned
from secateur.recipe import Recipe
from secateur.recipe.differences import differences
from secateur.record import RunRecord


def bos_decides(record: RunRecord, recipe: Recipe) -> bool:
    """Whether where BOS stands decides anything: not of given tokens and images, nor where the
    tokenizer adds nothing.

    Args:
        record: of a finished run.
        recipe: of the same run, as it is asked for now.
    """
    texts = [record.calibration, *(measured.protocol for measured in record.evaluations)]
    if all(getattr(text, "bos", None) is None for text in texts):
        return False
    trust = recipe.trust_remote_code
    try:
        folder = locate(pinned(recipe.model, recipe.revision), trust_remote_code=trust)
        tokenizer = load_tokenizer(folder, trust_remote_code=trust)
        return isinstance(tokenizer, DataError) or not adds_nothing(tokenizer)
    except SecateurError:
        return True  # for all that is known


def refuse_another(asked: Mapping[str, Any], told: Mapping[str, Any], folder: Path) -> None:
    """Raise unless what decided a finished run is what is asked for now.

    Args:
        asked, told: what decides either of them.
        folder: of the finished run.

    Raises:
        OutputError: it is another run.
    """
    if differing := differences(asked, told):
        raise OutputError(
            f"this run has {' | '.join(f'{one.name} {one.told_text}' for one in differing)}",
            where=folder,
            wanted=f"{' | '.join(one.asked_text for one in differing)}, as asked now",
            hint="another --out, or --overwrite to do it again",
        )
