"""Train the small mixture of experts that the removal of experts is measured on.

    python tools/train_mixture.py OUT TRAINING_TEXT HELD_OUT... --compile

A Qwen3-MoE of 5.0 M parameters (8 experts in each of 4 blocks, of which 2 see a token), byte-level
BPE of 4,096 tokens, context of 512, on books: TRAINING_TEXT is one file, packed by xz or not, with
a form feed between books; HELD_OUT are books that are only measured on. An hour on one
core that knows bfloat16. A run that was interrupted goes on from its last evaluation. What is
written is what `train_bundled.py` writes. The card also tells what the router learnt:

    load        each expert's share of the held-out tokens, by block; a fair one is 1/8
    by chance   the perplexity with two experts drawn anew for every token, weighed 1/2 each
"""

from __future__ import annotations

import lzma
import math
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import train_bundled
import transformers
import typer
from torch import Tensor, nn
from train_bundled import BATCH, CONTEXT, VOCABULARY, Row
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func
from transformers.utils import logging

EXPERTS, ACTIVE = 8, 2
BALANCE = 0.01
"""Weight of the load-balancing loss beside that of the tokens."""

CARD = """\
# A small trained mixture of experts

A Qwen3-MoE of {parameters:,} parameters ({blocks} blocks, width {width}, {heads} heads of which
{kv_heads} for keys and values, {experts} experts of width {expert_width}, {active} of which see a
token with weights that sum to 1, {vocabulary:,} tokens, context {context}, tied embeddings,
bfloat16) that writes English as old novels do. It exists to show what the removal of experts does
to a mixture whose router has learnt something. It is no use for anything else.

- **Trained on** {books:,} public-domain books, {training_tokens:,} tokens, of which it saw
  {seen:,} in random crops.
- **Held out**, {heldout_tokens:,} tokens: {heldout}.
- **How**: AdamW (0.9, 0.95), peak rate {rate}, {warm_up} steps of warm-up, cosine to zero, weight
  decay {decay}, {steps:,} steps of {batch} x {context} tokens, transformers' load-balancing loss
  of each block with weight {balance}, bfloat16 autocast over float32 weights, seed {seed}.
- **Where**: {machine}, torch {torch}, transformers {transformers}, {minutes:.0f} minutes.
- **Held-out perplexity {perplexity:.2f}** (loss {loss:.4f} per token, windows of {context} that do
  not overlap, all of the held-out text).
- **The same with experts drawn by chance: {by_chance:.2f}.** So much hangs on the router.

Each expert's share of the held-out tokens that a block sends out (a fair one is {fair:.3f}):

| block | {numbers} |
|---:|{rule}
{load}

`python tools/train_mixture.py` made it; `python benchmarks/experts.py` measures with it what
removing experts costs. The loss curve, all of it in `training.csv`; in the last
fifth of the steps the held-out loss moved by {flat:.3f}:

| step | training loss | held-out loss |
|---:|---:|---:|
{curve}

The training loss includes the load-balancing loss, about {balance} x {active}.
"""


def main(
    out: Annotated[Path, typer.Argument(help="Folder for the model.")],
    training_text: Annotated[Path, typer.Argument(help="Books, a form feed between them.")],
    held_out: Annotated[list[Path], typer.Argument(help="Books to measure on, a file each.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of the first weights and the order of the text.")] = 0,
    device: Annotated[str, typer.Option(help="As torch names it.")] = "cpu",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Half as fast again; needs a C++ compiler.")
    ] = False,
) -> None:
    """Train the mixture."""
    logging.disable_progress_bar()
    torch.manual_seed(seed)
    training = read_books(training_text)
    heldout = {path.stem: path.read_text(encoding="utf-8") for path in held_out}
    tokenizer = train_bundled.train_tokenizer(training)
    stream = train_bundled.encode(tokenizer, training).to(device)  # [tokens]
    windows = train_bundled.cut(train_bundled.encode(tokenizer, heldout)).to(device)
    print(f"{len(stream):,} tokens to train on, {windows.numel():,} held out", flush=True)

    model = new_model(tokenizer).to(device)
    loss_of = torch.compile(balanced_loss) if compiled else balanced_loss
    state = Path(f"{out}.training")
    curve = train_bundled.train(model, stream, windows, steps, state, loss_of)
    model.to(torch.bfloat16).float()  # the loss of what is written, not of what was trained
    facts = {
        "books": len(training),
        "training_tokens": len(stream),
        "heldout_tokens": windows.numel(),
        "heldout": ", ".join(name.replace("_", " ") for name in sorted(heldout)),
        "steps": steps,
        "seed": seed,
        "machine": train_bundled.machine(stream.device),
        **measure(model, windows),
    }
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    train_bundled.write_curve(out / "training.csv", curve)
    (out / "README.md").write_text(card(model, curve, facts), encoding="utf-8")
    shutil.rmtree(state, ignore_errors=True)
    print(f"held out: perplexity {math.exp(facts['loss']):.2f}; written to {out}")


def read_books(path: Path) -> dict[str, str]:
    """The books of one file, by their number."""
    data = path.read_bytes()
    text = (lzma.decompress(data) if path.suffix == ".xz" else data).decode()
    return {str(number): book for number, book in enumerate(text.split("\f")) if book.strip()}


def new_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3MoeForCausalLM:
    """A Qwen3-MoE with all the parts of a large one, every block starting as the identity."""
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,  # of a block without experts; there is none
        moe_intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        num_experts=EXPERTS,
        num_experts_per_tok=ACTIVE,
        norm_topk_prob=True,
        router_aux_loss_coef=BALANCE,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        attn_implementation="eager",  # faster than the fused kernel on a CPU
    )
    model = Qwen3MoeForCausalLM(config)
    for block in model.model.layers:
        nn.init.zeros_(block.self_attn.o_proj.weight)
        nn.init.zeros_(block.mlp.experts.down_proj)
    return model


def balanced_loss(model: Qwen3MoeForCausalLM, tokens: Tensor) -> Tensor:
    """The loss of the tokens [sequences, tokens], and that of a load that is out of balance."""
    with torch.autocast(tokens.device.type, torch.bfloat16):
        output = model(input_ids=tokens, use_cache=False, output_router_logits=True)
    loss = nn.functional.cross_entropy(
        output.logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten()
    )
    unbalanced = [  # of each block: in one of all blocks they make up for each other
        load_balancing_loss_func((logits,), EXPERTS, ACTIVE) for logits in output.router_logits
    ]
    return loss + BALANCE * torch.stack(unbalanced).mean()


def measure(model: Qwen3MoeForCausalLM, windows: Tensor) -> dict[str, Any]:
    """The held-out loss, the load of every expert [blocks, experts], and the loss by chance."""
    load = torch.zeros(len(model.model.layers), EXPERTS)

    def count(number: int, chosen: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        load[number] += torch.bincount(chosen.flatten(), minlength=EXPERTS).cpu()
        return chosen, weights

    def draw(number: int, chosen: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        order = torch.rand(len(chosen), EXPERTS).argsort(dim=1)
        return order[:, :ACTIVE].to(chosen.device), torch.full_like(weights, 1 / ACTIVE)

    with routed(model, count):
        loss = train_bundled.heldout_loss(model, windows)
    with routed(model, draw):
        by_chance = train_bundled.heldout_loss(model, windows)
    shares = load / load.sum(dim=1, keepdim=True)
    return {"loss": loss, "by_chance": math.exp(by_chance), "shares": shares.tolist()}


@contextmanager
def routed(model: Qwen3MoeForCausalLM, change: Any) -> Iterator[None]:
    """Inside, every router sends a token where `change` says.

    Args:
        model: the model.
        change: (number of the block, experts chosen [tokens, 2], their weights) -> the same two.
    """

    def hook(number: int) -> Any:
        def changed(router: nn.Module, inputs: Any, output: Any) -> Any:
            logits, weights, chosen = output
            chosen, weights = change(number, chosen, weights)
            return logits, weights, chosen

        return changed

    with ExitStack() as hooks:
        for number, block in enumerate(model.model.layers):
            hooks.callback(block.mlp.gate.register_forward_hook(hook(number)).remove)
        yield


def card(model: Qwen3MoeForCausalLM, curve: list[Row], facts: dict[str, Any]) -> str:
    """What was trained, on what, how, where, for how long, and what came of it."""
    config, steps = model.config, facts["steps"]
    fifth = [row["heldout_loss"] for row in curve if row["step"] >= 0.8 * steps]
    rows = curve[:: max(1, len(curve) // 12)]
    rows = rows if rows[-1] is curve[-1] else [*rows, curve[-1]]
    return CARD.format(
        **facts,
        parameters=model.num_parameters(),
        blocks=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        experts=EXPERTS,
        expert_width=config.moe_intermediate_size,
        active=ACTIVE,
        vocabulary=VOCABULARY,
        context=CONTEXT,
        seen=steps * BATCH * CONTEXT,
        rate=train_bundled.PEAK_LEARNING_RATE,
        warm_up=train_bundled.WARM_UP,
        decay=train_bundled.WEIGHT_DECAY,
        batch=BATCH,
        balance=BALANCE,
        torch=torch.__version__,
        transformers=transformers.__version__,
        minutes=curve[-1]["seconds"] / 60,
        perplexity=math.exp(facts["loss"]),
        fair=1 / EXPERTS,
        numbers=" | ".join(str(number) for number in range(EXPERTS)),
        rule="---:|" * EXPERTS,
        load="\n".join(
            f"| {number} | " + " | ".join(f"{share:.3f}" for share in shares) + " |"
            for number, shares in enumerate(facts["shares"])
        ),
        flat=abs(fifth[0] - fifth[-1]),
        curve="\n".join(
            f"| {row['step']:.0f} | {row['training_loss']:.3f} | {row['heldout_loss']:.3f} |"
            for row in rows
        ),
    )


if __name__ == "__main__":
    typer.run(main)
