"""Does one `regional.step` hold at every width? Output error of a random block, before and after.

    python benchmarks/width.py [--widths 64 128 256 512 1024] [--steps 0.1 0.2 0.35 0.6 1.0]

One block of a random Llama per width (weights of rms 1/sqrt(in), as trained ones have, and inputs
with a decaying spectrum, as real ones have) is pruned to 2:4 by Wanda and refined, in float32. The
paper's setting stands in the last column.
"""

from __future__ import annotations

import argparse

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

import secateur

SEQUENCES, LENGTH = 64, 64


def make(width: int) -> PreTrainedModel:
    """A random one-block Llama whose embedding has a decaying spectrum."""
    torch.manual_seed(width)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=1024, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=1,
            num_attention_heads=max(1, width // 64), num_key_value_heads=max(1, width // 64),
            max_position_embeddings=LENGTH,
        )
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
        spectrum = torch.arange(1, width + 1).float() ** -0.5
        rotation = torch.linalg.qr(torch.randn(width, width)).Q
        model.model.embed_tokens.weight.copy_(torch.randn(1024, width) * spectrum @ rotation)
    return model.eval()


def output_error(width: int, method: str, **options: object) -> float:
    """Relative output error of the block after pruning to 2:4."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 1024, (SEQUENCES, LENGTH), generator=generator)
    run = secateur.prune(
        make(width), method=method, pattern="2:4", calibration=tokens, samples=SEQUENCES,
        sequence_length=LENGTH, **options,
    )  # fmt: skip
    error = run.mean_output_error
    assert error is not None
    return error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--steps", type=float, nargs="+", default=[0.1, 0.2, 0.35, 0.6, 1.0])
    arguments = parser.parse_args()
    steps = arguments.steps
    print("| width | wanda | " + " | ".join(f"step {step:g}" for step in steps) + " | paper |")
    print("|---:|" + "---:|" * (len(steps) + 2))
    for width in arguments.widths:
        cells = [output_error(width, "wanda")]
        cells += [output_error(width, "wanda++-ro", regional={"step": step}) for step in steps]
        cells.append(output_error(width, "wanda++-ro", preset="paper"))
        print(f"| {width} | " + " | ".join(f"{cell:.4f}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
