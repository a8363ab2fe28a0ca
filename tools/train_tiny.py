"""Train a tiny Llama on the text that every Python carries: a real model, offline, in a minute.

    python tools/train_tiny.py demo-output/tiny

The text is the language reference behind `help()` and the source of the standard library. Tests,
bundled tools and tables are left out, and a fixed list of modules is held out for evaluation. What
is written:

    OUT/                         config, tokenizer and bfloat16 weights, as transformers loads them
    TEXT_OUT/calibration/*.txt   documents the model was trained on: to calibrate with
    TEXT_OUT/heldout/*.txt       modules it has never seen: to evaluate on

The same seed, Python and packages give the same model on one kind of processor. Perplexity is
measured as `secateur evaluate` does it: documents joined by blank lines, cut into windows that do
not overlap, `exp` of the mean loss of each window's tokens but its first.
"""

from __future__ import annotations

import math
import sysconfig
import time
from collections.abc import Iterable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Annotated

import torch
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

Documents = dict[str, str]  # name -> text

VOCABULARY = 1024
CONTEXT = 256  # tokens of a training sequence, and the longest the model is made for
BATCH = 4  # sequences of a step
PEAK_LEARNING_RATE = 4e-3
WARM_UP = 0.1  # share of the steps
WINDOW = 128  # tokens of an evaluation window
THREADS = 1  # of so small matrices, a second thread computes little and waits a lot
CALIBRATION_SHARE = 6  # every sixth document is written out to calibrate with
SHORTEST = 1000  # characters; what is shorter is hardly a document
PROGRESS_EVERY = 5.0  # seconds

# Parts of the standard library that are poor in prose, and what an installation adds to it.
LEFT_OUT = {
    *("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo"),
    *("pydoc_data", "encodings", "msilib", "ensurepip", "distutils", "tkinter", "__phello__"),
}
HELD_OUT = {
    *("bisect", "calendar", "contextlib", "csv", "fractions", "heapq", "random"),
    *("sched", "shlex", "textwrap", "timeit", "http.cookies", "json.decoder", "logging.handlers"),
}


def main(
    out: Annotated[Path, typer.Argument(help="Folder for the model.")],
    text_out: Annotated[
        Path | None, typer.Option(help="Folder for the text; by default, `text` beside OUT.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 500,
    seed: Annotated[int, typer.Option(help="Of the first weights and the order of the text.")] = 0,
) -> None:
    """Train a tiny Llama on the text that every Python carries."""
    logging.disable_progress_bar()
    torch.set_num_threads(THREADS)
    torch.manual_seed(seed)
    training, heldout = read_documents()
    write_text(training, heldout, text_out or out.parent / "text")

    tokenizer = train_tokenizer(training)
    training_tokens = encode(tokenizer, training.values())  # [tokens]
    heldout_tokens = encode(tokenizer, ["\n\n".join(heldout.values())])  # [tokens]
    print(
        f"{len(training_tokens):,} tokens to train on, {len(heldout_tokens):,} held out", flush=True
    )

    model = new_model(tokenizer)
    train(model, training_tokens, steps)
    tokenizer.save_pretrained(out)
    model.to(torch.bfloat16).save_pretrained(out)  # last: where there are weights, all is there

    loss = heldout_loss(model.float(), heldout_tokens)
    unigram = unigram_loss(training_tokens, heldout_tokens)
    print(f"held out: loss {loss:.3f}, perplexity {math.exp(loss):.2f}", end=" ")
    print(f"(unigram: loss {unigram:.3f}, perplexity {math.exp(unigram):.2f})")
    print(f"{model.num_parameters():,} parameters written to {out}")


def read_documents() -> tuple[Documents, Documents]:
    """The documents to train on and those held out, by module or topic name, sorted."""
    training = {f"topic.{name}": text for name, text in topics.items()}
    heldout: Documents = {}
    root = Path(sysconfig.get_path("stdlib"))
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts)
        if LEFT_OUT.isdisjoint(parts) and not name.startswith("_sysconfigdata"):
            documents = heldout if name in HELD_OUT else training
            documents[name] = path.read_text(encoding="utf-8", errors="replace")
    return long_enough(training), long_enough(heldout)


def long_enough(documents: Documents) -> Documents:
    """The documents that are not mere stubs, in the order of their names."""
    return {name: text for name, text in sorted(documents.items()) if len(text) >= SHORTEST}


def write_text(training: Documents, heldout: Documents, folder: Path) -> None:
    """Write a share of the training documents, and all held-out ones, one file each."""
    calibration = dict(list(training.items())[::CALIBRATION_SHARE])
    for part, documents in (("calibration", calibration), ("heldout", heldout)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for name, text in documents.items():
            (folder / part / f"{name}.txt").write_text(text, encoding="utf-8")


def train_tokenizer(documents: Documents) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that, as Llama's does, opens every text with `<s>`."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(documents.values(), trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", model_max_length=CONTEXT
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> Tensor:
    """All texts, each opened by `<s>`, as one stream of tokens, [tokens] int64."""
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(list(texts))
    return torch.tensor([token for encoding in encodings for token in encoding.ids])


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with all the parts of a large one, every block of which starts as the identity."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.05,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    for block in model.model.layers:  # a few hundred steps go much further from here
        torch.nn.init.zeros_(block.self_attn.o_proj.weight)
        torch.nn.init.zeros_(block.mlp.down_proj.weight)
    return model


def train(model: LlamaForCausalLM, tokens: Tensor, steps: int) -> None:
    """AdamW on random crops of the stream, with warm-up and a cosine decay to zero."""
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.1, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate(step, steps))
    crops = tokens.unfold(0, CONTEXT, 1)  # [crops, context], a view
    started = reported = time.monotonic()
    for step in range(1, steps + 1):
        batch = crops[torch.randint(len(crops), (BATCH,))]  # [batch, context]
        loss = next_token_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        now = time.monotonic()
        if now - reported >= PROGRESS_EVERY or step == steps:
            reported = now
            line = f"step {step:>4} of {steps}  loss {loss.item():.3f}  {now - started:3.0f} s"
            print(line, flush=True)


def learning_rate(step: int, steps: int) -> float:
    """The share of the peak learning rate that `step`, counted from 0, is taken with."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def next_token_loss(model: LlamaForCausalLM, tokens: Tensor) -> Tensor:
    """Mean cross-entropy, in nats, of every token of [sequences, tokens] but the first."""
    logits = model(input_ids=tokens, use_cache=False).logits  # [sequences, tokens, vocabulary]
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def heldout_loss(model: LlamaForCausalLM, tokens: Tensor) -> float:
    """Mean loss per token over windows that do not overlap."""
    model.eval()
    windows = tokens[: len(tokens) // WINDOW * WINDOW].view(-1, WINDOW)  # [windows, window]
    losses = [next_token_loss(model, batch).item() * len(batch) for batch in windows.split(64)]
    return sum(losses) / len(windows)


def unigram_loss(training: Tensor, heldout: Tensor) -> float:
    """Mean loss per held-out token of the training stream's own token frequencies."""
    counts = torch.bincount(training, minlength=VOCABULARY) + 1  # [vocabulary]
    logarithms = (counts / counts.sum()).log()  # [vocabulary]
    return -logarithms[heldout].mean().item()


if __name__ == "__main__":
    typer.run(main)
