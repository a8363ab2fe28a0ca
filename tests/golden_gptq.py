"""What llm-compressor's own GPTQ makes of small matrices, kept beside them.

    python tests/golden_gptq.py CACHE     asks it anew, in its environment, which CACHE has or gets

Its function is called as its modifier calls it: the grids by its observer of extremes, from the
weights as they are given; damping 0.01 of the mean diagonal; columns by descending diagonal, which
it calls static and does if nothing else is said. Weights and scales are float32, as its function
computes. An input that was never anything but zero would differ: it sets the weights of such a
one to 0, and they are rounded like others here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden" / "gptq.safetensors"
FACTS = GOLDEN.with_suffix(".json")
MATRICES = {"small": (24, 64), "wide": (12, 160)}
SCHEMES = {
    "w4a16:g32": {"num_bits": 4, "strategy": "group", "group_size": 32},
    "w4a16:g32:asym": {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False},
    "w4a16:row": {"num_bits": 4, "strategy": "channel"},
    "w4a16:row:asym": {"num_bits": 4, "strategy": "channel", "symmetric": False},
    "w8a16": {"num_bits": 8, "strategy": "channel"},
}
"""By the scheme's name here llm-compressor's arguments."""


def problem(rows: int, width: int) -> dict[str, Tensor]:
    """A weight [rows, width] and the Hessian [width, width] of inputs that have common causes.

    Some of the inputs are far larger than others, as in language models.
    """
    generator = torch.Generator().manual_seed(width)
    causes = torch.randn(8 * width, width // 4, generator=generator)
    inputs = causes @ torch.randn(width // 4, width, generator=generator)
    inputs += 2 * torch.randn(inputs.shape, generator=generator)
    inputs *= torch.randn(width, generator=generator).exp()
    weight = torch.randn(rows, width, generator=generator)
    return {"weight": weight, "hessian": 2 * inputs.T @ inputs / len(inputs)}


def ask(weight: Tensor, hessian: Tensor, arguments: dict[str, Any]) -> dict[str, Tensor]:
    """Weight, scale, zero point and loss by llm-compressor; runs in its environment.

    Args:
        weight: float32 [out, in].
        hessian: float32 [in, in].
        arguments: of its QuantizationArgs.
    """
    from compressed_tensors.quantization import QuantizationArgs
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
    from llmcompressor.observers import Observer

    scheme = QuantizationArgs(**arguments, actorder="static")
    observer = Observer.load_from_registry("memoryless_minmax", base_name="weight", args=scheme)
    grid = observer(weight).get_qparams()
    found, loss, failed = quantize_weight(
        weight[None].clone(), hessian[None].clone(), grid["scale"][None], grid["zero_point"][None],
        None, scheme, percdamp=0.01,
    )  # fmt: skip
    assert not bool(failed.any())
    return {
        "rounded": found[0].contiguous(),
        "scale": grid["scale"].contiguous(),
        "zero": grid["zero_point"].contiguous(),
        "loss": loss,
    }


def record() -> None:
    """Ask for every matrix and scheme, write."""
    from importlib.metadata import version

    kept: dict[str, Tensor] = {}
    for name, shape in MATRICES.items():
        given = problem(*shape)
        kept |= {f"{name}/{part}": tensor for part, tensor in given.items()}
        for scheme, arguments in SCHEMES.items():
            answer = ask(**given, arguments=arguments)
            kept |= {f"{name}/{scheme}/{part}": tensor for part, tensor in answer.items()}
    save_file(kept, GOLDEN)
    names = ("llmcompressor", "compressed-tensors", "torch")
    facts = {
        "command": "python tests/golden_gptq.py CACHE",
        "versions": {name: version(name) for name in names},
    }
    FACTS.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def kept() -> dict[str, Tensor]:
    """The matrices and the answers: MATRIX/weight, MATRIX/SCHEME/rounded, ..."""
    found: dict[str, Tensor] = load_file(GOLDEN)
    return found


def main() -> None:
    """Call this script in llm-compressor's environment, or do there what it is called for."""
    if sys.argv[1:] == ["--here"]:
        record()
    else:
        sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
        import peer_environment  # type: ignore[import-not-found]

        python = peer_environment.peer(Path(sys.argv[1]))
        subprocess.run([str(python), __file__, "--here"], check=True)


if __name__ == "__main__":
    main()
