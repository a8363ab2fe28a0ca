"""Train the model that Secateur bundles, on the text that every Python installation carries.

    python tools/train_bundled.py OUT --compile

A Llama of 5.5 M parameters, byte-level BPE of 4,096 tokens, context of 512, on the standard
library's source and the language reference; what `secateur.data.builtin` holds out is only measured
on. An hour and a half on two cores that know bfloat16; less where `--device` names a GPU. A run
that was interrupted goes on from its last evaluation. What is written:

    OUT/config.json, model.safetensors, tokenizer.json, ...   as transformers loads them, bfloat16
    OUT/training.csv                                          the loss curve
    OUT/README.md                                             the model card
    OUT.training/                                             to go on from; removed at the end
"""

from __future__ import annotations

import csv
import math
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from secateur.data.builtin import HELD_OUT_MODULES, builtin_documents

VOCABULARY = 4096
CONTEXT = 512  # tokens of a training sequence, of an evaluation window, and the longest it reads
BATCH = 8  # sequences of a step
PEAK_LEARNING_RATE = 3e-3
WARM_UP = 200  # steps
WEIGHT_DECAY = 0.1
EVALUATE_EVERY = 250  # steps
CURVE_WINDOWS = 64  # held-out windows behind a point of the curve

CARD = """\
# The bundled model

A Llama of {parameters:,} parameters ({blocks} blocks, width {width}, {heads} heads of which
{kv_heads} for keys and values, {vocabulary:,} tokens, context {context}, tied embeddings, bfloat16)
that writes Python as the standard library does. It exists to show, without a network, what pruning
does to a really trained language model. It is no use for anything else.

- **Trained on** the source of the standard library of Python {python} and the language reference
  behind `help()` (Python Software Foundation licence): {training_tokens:,} tokens, {epochs:.1f}
  times.
- **Held out**, {heldout_tokens:,} tokens: {heldout}.
- **How**: AdamW (0.9, 0.95), peak rate {rate}, {warm_up} steps of warm-up, cosine to zero, weight
  decay {decay}, {steps:,} steps of {batch} x {context} tokens, bfloat16 autocast over float32
  weights, seed {seed}.
- **Where**: {machine}, torch {torch}, transformers {transformers}, {minutes:.0f} minutes.
- **Held-out perplexity {perplexity:.2f}** (loss {loss:.4f} per token, windows of {context} that do
  not overlap, all of the held-out text).

`python tools/train_bundled.py` made it. The loss curve, all of it in `training.csv`; in the last
fifth of the steps the held-out loss moved by {flat:.3f}:

| step | training loss | held-out loss |
|---:|---:|---:|
{curve}
"""

Row = dict[str, float]
LossOf = Callable[[PreTrainedModel, Tensor], Tensor]
"""(model, tokens [sequences, tokens]) -> what is minimised."""


def main(
    out: Annotated[Path, typer.Argument(help="Folder for the model.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 4000,
    seed: Annotated[int, typer.Option(help="Of the first weights and the order of the text.")] = 0,
    device: Annotated[str, typer.Option(help="As torch names it.")] = "cpu",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Half as fast again; needs a C++ compiler.")
    ] = False,
) -> None:
    """Train the bundled model."""
    logging.disable_progress_bar()
    torch.manual_seed(seed)
    training, heldout = builtin_documents("train"), builtin_documents("test")
    tokenizer = train_tokenizer(training)
    stream = encode(tokenizer, training).to(device)  # [tokens]
    windows = cut(encode(tokenizer, heldout)).to(device)  # [windows, context]
    print(f"{len(stream):,} tokens to train on, {windows.numel():,} held out", flush=True)

    model = new_model(tokenizer).to(device)
    loss_of = torch.compile(next_token_loss) if compiled else next_token_loss
    curve = train(model, stream, windows, steps, Path(f"{out}.training"), loss_of)
    model.to(torch.bfloat16).float()  # the loss of what is written, not of what was trained
    loss = heldout_loss(model, windows)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    write_curve(out / "training.csv", curve)
    card = model_card(model, curve, loss, stream, windows, steps, seed)
    (out / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(Path(f"{out}.training"), ignore_errors=True)
    print(f"held out: loss {loss:.4f}, perplexity {math.exp(loss):.2f}; written to {out}")


def train_tokenizer(documents: dict[str, str]) -> PreTrainedTokenizerFast:
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


def encode(tokenizer: PreTrainedTokenizerFast, documents: dict[str, str]) -> Tensor:
    """All documents, each between `<s>` and `</s>`, as one stream of tokens, int64 [tokens]."""
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(list(documents.values()))
    end = tokenizer.eos_token_id
    return torch.tensor([token for encoding in encodings for token in [*encoding.ids, end]])


def cut(tokens: Tensor) -> Tensor:
    """Windows that do not overlap, [windows, context]."""
    return tokens[: len(tokens) // CONTEXT * CONTEXT].view(-1, CONTEXT)


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with all the parts of a large one, every block of which starts as the identity."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        attn_implementation="eager",  # faster than the fused kernel on a CPU
    )
    model = LlamaForCausalLM(config)
    for block in model.model.layers:
        torch.nn.init.zeros_(block.self_attn.o_proj.weight)
        torch.nn.init.zeros_(block.mlp.down_proj.weight)
    return model


def train(
    model: PreTrainedModel,
    stream: Tensor,
    windows: Tensor,
    steps: int,
    state_folder: Path,
    loss_of: LossOf,
) -> list[Row]:
    """AdamW on random crops of the stream; the loss curve, a row per evaluation."""
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim == 1]
    optimiser = torch.optim.AdamW(
        [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}],
        lr=PEAK_LEARNING_RATE,
        betas=(0.9, 0.95),
        weight_decay=WEIGHT_DECAY,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate(step, steps))
    curve, done, before = restore(state_folder, model, optimiser, schedule)
    crops = stream.unfold(0, CONTEXT, 1)  # [crops, context], a view
    started, losses = time.monotonic() - before, []
    model.train()
    for step in range(done + 1, steps + 1):
        batch = crops[torch.randint(len(crops), (BATCH,)).to(stream.device)]  # [batch, context]
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        losses.append(loss.detach())
        if step % EVALUATE_EVERY == 0 or step == steps:
            row = {
                "step": step,
                "tokens": step * BATCH * CONTEXT,
                "training_loss": torch.stack(losses).mean().item(),
                "heldout_loss": heldout_loss(model, windows[:: len(windows) // CURVE_WINDOWS or 1]),
                "seconds": time.monotonic() - started,
            }
            print("  ".join(f"{name} {value:.5g}" for name, value in row.items()), flush=True)
            curve.append(row)
            losses.clear()
            keep(state_folder, model, optimiser, schedule, curve)
    return curve


def learning_rate(step: int, steps: int) -> float:
    """The share of the peak learning rate that `step`, counted from 0, is taken with."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / max(1, steps - WARM_UP)))


def next_token_loss(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Mean cross-entropy, in nats, of every token of [sequences, tokens] but the first."""
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=model.training):
        logits = model(input_ids=tokens, use_cache=False).logits  # [sequences, tokens, vocabulary]
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten()
    )


@torch.no_grad()
def heldout_loss(model: PreTrainedModel, windows: Tensor) -> float:
    """Mean float32 loss per token over windows that do not overlap."""
    model.eval()
    losses = [next_token_loss(model, batch).item() * len(batch) for batch in windows.split(8)]
    model.train()
    return sum(losses) / len(windows)


def keep(
    folder: Path, model: PreTrainedModel, optimiser: Any, schedule: Any, curve: list[Row]
) -> None:
    """Write all that a later run needs to go on from here, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "schedule": schedule.state_dict(),
        "random": torch.get_rng_state(),
    }
    torch.save(state, folder / "state.partial")
    (folder / "state.partial").replace(folder / "state.pt")
    write_curve(folder / "training.csv", curve)


def restore(
    folder: Path, model: PreTrainedModel, optimiser: Any, schedule: Any
) -> tuple[list[Row], int, float]:
    """Go on from `folder` if it has a state: the curve so far, its steps and its seconds."""
    if not (folder / "state.pt").exists():
        return [], 0, 0.0
    state = torch.load(folder / "state.pt", weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    schedule.load_state_dict(state["schedule"])
    torch.set_rng_state(state["random"])
    with (folder / "training.csv").open(newline="") as file:
        curve = [
            {name: float(value) for name, value in row.items()} for row in csv.DictReader(file)
        ]
    print(f"going on from step {curve[-1]['step']:.0f}", flush=True)
    return curve, int(curve[-1]["step"]), curve[-1]["seconds"]


def write_curve(path: Path, curve: list[Row]) -> None:
    """The loss curve as a table, a row per evaluation."""
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(curve[0]))
        table.writeheader()
        table.writerows(
            {name: format(value, ".6g") for name, value in row.items()} for row in curve
        )


def model_card(
    model: LlamaForCausalLM,
    curve: list[Row],
    loss: float,
    stream: Tensor,
    windows: Tensor,
    steps: int,
    seed: int,
) -> str:
    """What was trained, on what, how, where, for how long, and what came of it."""
    config = model.config
    fifth = [row["heldout_loss"] for row in curve if row["step"] >= 0.8 * steps]
    rows = curve[:: max(1, len(curve) // 12)]
    rows = rows if rows[-1] is curve[-1] else [*rows, curve[-1]]
    return CARD.format(
        parameters=model.num_parameters(),
        blocks=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        vocabulary=VOCABULARY,
        context=CONTEXT,
        python=platform.python_version(),
        training_tokens=len(stream),
        epochs=steps * BATCH * CONTEXT / len(stream),
        heldout_tokens=windows.numel(),
        heldout=", ".join(f"`{name}`" for name in sorted(HELD_OUT_MODULES)),
        rate=PEAK_LEARNING_RATE,
        warm_up=WARM_UP,
        decay=WEIGHT_DECAY,
        steps=steps,
        batch=BATCH,
        seed=seed,
        machine=machine(stream.device),
        torch=torch.__version__,
        transformers=transformers.__version__,
        minutes=curve[-1]["seconds"] / 60,
        perplexity=math.exp(loss),
        loss=loss,
        flat=abs(fifth[0] - fifth[-1]),
        curve="\n".join(
            f"| {row['step']:.0f} | {row['training_loss']:.3f} | {row['heldout_loss']:.3f} |"
            for row in rows
        ),
    )


def machine(device: torch.device) -> str:
    """The hardware it was trained on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} {platform.machine()} cores"


if __name__ == "__main__":
    typer.run(main)
