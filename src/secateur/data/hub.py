"""The two data sets of the pruning papers, read from the Hugging Face hub.

As the published GPTQ, SparseGPT and Wanda scripts do it: of C4 the first training shard of 1,024
and the first validation shard of 8, of WikiText-2 the raw configuration whole. Only data files are
loaded, never code from a repository.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from secateur.errors import DataError, reason
from secateur.machine.waiting import doing

Split = Literal["train", "test"]


@dataclass(frozen=True)
class HubText:
    """Where one data set lives.

    Args:
        repository, configuration: as `datasets.load_dataset` takes them.
        splits: our split -> the repository's own name for it.
        data_files: our split -> the only file to read; without an entry, the whole split.
    """

    repository: str
    configuration: str
    splits: dict[Split, str]
    data_files: dict[Split, str]


HUB_TEXTS = {
    "c4": HubText(
        "allenai/c4",
        "en",
        splits={"train": "train", "test": "validation"},
        data_files={
            "train": "en/c4-train.00000-of-01024.json.gz",
            "test": "en/c4-validation.00000-of-00008.json.gz",
        },
    ),
    "wikitext2": HubText(
        "Salesforce/wikitext",
        "wikitext-2-raw-v1",
        splits={"train": "train", "test": "test"},
        data_files={},
    ),
}


@doing("fetching the text from the hub")
def read_hub(name: str, split: Split) -> tuple[Sequence[str], dict[str, str]]:
    """The documents of a short name in `HUB_TEXTS`, still on disk, and their provenance.

    Raises:
        DataError: the data set is neither cached nor within reach.
    """
    import datasets

    data_set = HUB_TEXTS[name]
    part = data_set.splits[split]
    origin = {
        "repository": data_set.repository,
        "configuration": data_set.configuration,
        "split": part,
    }
    options: dict[str, object] = {}
    if split in data_set.data_files:
        origin["data_file"] = data_set.data_files[split]
        # One shard never has the row count that the data set's card promises for all of them.
        options = {
            "data_files": {part: data_set.data_files[split]},
            "verification_mode": "no_checks",
        }
    try:
        with _quiet("huggingface_hub"):
            data = datasets.load_dataset(
                data_set.repository, data_set.configuration, split=part, **options
            )
        texts: Sequence[str] = data["text"]
    except Exception as error:  # the hub's client raises its own, httpx's and the system's errors
        raise DataError(
            f"data set {name} cannot be loaded from the hub ({reason(error)})",
            where=data_set.repository,
            hint="a local text file or folder instead, or a network (or HTTPS_PROXY) that reaches "
            "huggingface.co",
        ) from error
    origin["documents"] = str(len(texts))
    return texts, origin


@contextmanager
def _quiet(logger_name: str) -> Iterator[None]:
    """Hold back warnings of a logger: the client logs each retry, our one error says it all."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
