"""Tiny random models of real families, a tokenizer to go with them, and folders that hold both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from families import (
    BLOCKS,
    EVERY_FAMILY,
    FAMILIES,
    MULTIMODAL_FAMILIES,
    POSITIONS,
    VOCABULARY,
    WIDTH,
    configuration,
)
from secateur.checkpoint import find_blocks, find_matrices

__all__ = ["BLOCKS", "EVERY_FAMILY", "FAMILIES", "POSITIONS", "VOCABULARY", "WIDTH"]


def auto_class(family: str) -> Any:
    """The class of transformers that makes the whole of a family's model."""
    return AutoModelForImageTextToText if family in MULTIMODAL_FAMILIES else AutoModelForCausalLM


def make_model(
    family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
) -> PreTrainedModel:
    """A random model of a family, in evaluation mode, the same for the same arguments.

    Args:
        family: a key of `EVERY_FAMILY`.
        seed: of the weights.
        dtype: of the parameters.
        changes: over the family's configuration, such as `num_hidden_layers=5`.
    """
    config = configuration(family, **changes)
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model: PreTrainedModel = auto_class(family).from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:  # biases and norms are zeros and ones: make them matter
                parameter.add_(0.1 * torch.randn_like(parameter))
            parameter.data = parameter.data.to(dtype)
    kept = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    for name in model.state_dict().keys() & dict(model.named_buffers()).keys():
        if not any(part in name for part in kept):  # and not what no file holds: rotary tables
            buffer = model.get_buffer(name)
            buffer.data = buffer.data.to(dtype if buffer.is_floating_point() else None)
    torch.random.set_rng_state(state)
    model.config.dtype = dtype
    return model.eval()


SENTENCES = (
    "The heron stands in the shallow water and waits for a fish to pass.",
    "An otter dives under the ice, turns over a stone and comes back with a crab.",
    "Badgers dig long setts in the hillside; the oldest are hundreds of years old.",
    "A wren weighs ten grams, and its song carries across the whole garden.",
    "In autumn the stoat changes its coat, and only the tip of the tail stays black.",
    "Voles run through tunnels in the grass where the kestrel cannot follow them.",
)


SPECIAL_TOKENS = ["<pad>", "<s>", "</s>", "<unk>"]
"""Of the tiny tokenizer; the ids are 0 to 3."""


def make_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """A small BPE on bytes, for English without capitals beyond those it was trained on.

    Args:
        template: what it makes of a text `$A`, such as "<s> $A"; None adds nothing.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 8,
        special_tokens=SPECIAL_TOKENS,
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if template is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template,
            special_tokens=[(name, index) for index, name in enumerate(SPECIAL_TOKENS)],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def save(model: PreTrainedModel, folder: Path, **options: Any) -> Path:
    """Write a model and the tiny tokenizer into `folder`; `options` go to `save_pretrained`."""
    model.save_pretrained(folder, **options)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_sparse_model(family: str, **changes: Any) -> PreTrainedModel:
    """One of `make_model` in which every second weight of every prunable matrix is zero."""
    model = make_model(family, **changes)
    for block in find_blocks(model).modules:
        for matrix in find_matrices(block):
            matrix.write(torch.where(torch.arange(matrix.shape[1]) % 2 == 0, matrix.read(), 0))
    return model


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the weight files in a folder, by its name."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(file))
    return tensors


def make_tokens(sequences: int = 8, length: int = 32, seed: int = 0) -> torch.Tensor:
    """Random token ids that are no special tokens: int64 [sequences, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, VOCABULARY - 8, (sequences, length), generator=generator)


class Outcome(NamedTuple):
    """What a command left behind: exit status, standard output, standard error."""

    status: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """Standard error, which is JSON lines where it is no terminal."""
        return [json.loads(line) for line in self.err.splitlines()]


Command = Callable[..., Outcome]


def fingerprint(folder: Path) -> dict[str, str]:
    """Every file under a folder, hidden ones too -> SHA-256 of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
