"""Says what a model can read: its vocabulary, the longest sequence, its tokenizer, images."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from secateur.checkpoint.block_model import BlockModel
from secateur.errors import DataError, ModelError, reason

PAPERS_LENGTH = 2048
"""Tokens per sequence in the papers, and unless one asks for another: what may be too long."""
_JSON = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "tekken.json"),
)
"""Files of JSON that tokenizers are read from."""
_OTHERS = ("*.model", "*.tiktoken", "vocab.txt", "merges.txt", "vocab.bpe")
"""Patterns of the other files that tokenizers are read from."""


def load_tokenizer(
    folder: Path, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase | DataError:
    """The tokenizer beside a model, or the fault that says why there is none that can be read.

    The fault is for whoever needs a tokenizer to raise: tokens that are given need none.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as fault:  # damage shows in every reader's own exceptions
        return _why_no_tokenizer(folder, fault)


def _why_no_tokenizer(folder: Path, fault: Exception) -> DataError:
    """What keeps the tokenizer in a folder from being read, by its files and what was raised."""
    others = [path for pattern in _OTHERS for path in sorted(folder.glob(pattern))]
    texts = [path for name in _JSON if (path := folder / name).is_file()]
    if "trust_remote_code" in str(fault) or "custom code" in str(fault):
        return DataError(
            "no tokenizer that can be read without running the code beside it",
            where=folder,
            hint="--trust-remote-code, if you trust that code",
        )
    for path in texts:
        try:
            json.loads(path.read_bytes())
        except (ValueError, RecursionError, OSError) as damage:
            return DataError(
                f"no tokenizer that can be read ({reason(damage)})",
                where=path,
                wanted="the file that belongs to the model",
            )
    if not others and not {"tokenizer.json", "vocab.json", "tekken.json"} & {
        path.name for path in texts
    }:
        return DataError(
            "no tokenizer beside the model, to turn text into tokens",
            where=folder,
            wanted="its tokenizer.json, or a .safetensors file of tokens in place of text",
        )
    for path in others:
        package = _package_for(path)
        if package is not None and importlib.util.find_spec(package) is None:
            return DataError(
                f"no tokenizer that can be read without the package {package}",
                where=path,
                hint=f"pip install {package}, or a folder with tokenizer.json",
            )
    return DataError(
        f"no tokenizer that can be read ({type(fault).__name__}: {reason(fault)})",
        where=folder,
        wanted="the tokenizer files that belong to the model",
    )


def _package_for(path: Path) -> str | None:
    """The package that reads a tokenizer's file of its own format."""
    if path.suffix not in (".model", ".tiktoken"):
        return None
    with path.open("rb") as file:
        head = file.read(1)
    return "sentencepiece" if head == b"\n" else "tiktoken"  # the first field of its protocol


def reads_images(source: BlockModel) -> bool:
    """Whether the model is a classifier of images; else it is a language model."""
    name: str = source.model.main_input_name
    return name == "pixel_values"


def vocabulary(source: BlockModel) -> int:
    """How many tokens the model can read.

    Raises:
        ModelError: it reads images, or two things at once.
    """
    name = type(source.model).__name__
    if reads_images(source):
        raise ModelError(f"{name} reads images", wanted="a language model")
    try:
        size: int = source.model.get_input_embeddings().weight.shape[0]
    except (NotImplementedError, AttributeError) as error:
        raise ModelError(
            f"{name} has no one embedding of tokens", wanted="a language model"
        ) from error
    return size


def clip(length: int, source: BlockModel) -> tuple[int, tuple[str, ...]]:
    """`length`, or, if it is the papers', the longest that the model allows and a notice.

    Raises:
        DataError: the model does not allow so many tokens.
    """
    config = source.model.config.get_text_config(decoder=True)
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None or limit < 1 or length <= limit:  # some write -1 for no limit
        return length, ()
    if length != PAPERS_LENGTH:
        raise DataError(
            f"sequences of {length} tokens",
            wanted=f"at most {limit}, as the model allows",
            hint=f"--sequence-length {limit}",
        )
    return limit, (f"sequences are {limit} tokens, the most this model allows, not {length}",)
