"""Our masks against those of the papers' own scripts, on the same model and tokens.

    python benchmarks/oracle.py MODEL ORACLE_FOLDER

ORACLE_FOLDER holds `calibration_tokens.safetensors` (input_ids [sequences, tokens]) and, for every
method, `METHOD_2of4_keep.safetensors`: one uint8 tensor per pruned matrix, its keep-mask packed
along the input dimension with numpy's packbits. The scripts computed and kept weights in float32,
so the model is pruned in memory in float32 here.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import secateur

AT_LEAST = {"wanda": 1.0, "sparsegpt": 0.999, "gblm": 0.998}  # the gblm script rounds to float16


def agreement(model_folder: Path, oracle: Path, method: str) -> tuple[int, int, float]:
    """(weights with the same fate, weights, seconds) of one method at 2:4."""
    tokens = load_file(oracle / "calibration_tokens.safetensors")["input_ids"].long()
    masks = load_file(oracle / f"{method}_2of4_keep.safetensors")
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    began = time.perf_counter()
    secateur.prune(model, method=method, pattern="2:4", calibration=tokens,
                   samples=len(tokens), sequence_length=tokens.shape[1])  # fmt: skip
    seconds = time.perf_counter() - began
    same = total = 0
    for name, packed in masks.items():
        kept = (model.get_parameter(name) != 0).numpy()  # [out, in]
        wanted = np.unpackbits(packed.numpy(), axis=1)[:, : kept.shape[1]].astype(bool)
        same += int((kept == wanted).sum())
        total += kept.size
    return same, total, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("oracle", type=Path)
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    short = []
    for method, least in AT_LEAST.items():
        same, total, seconds = agreement(arguments.model, arguments.oracle, method)
        share = same / total
        print(
            f"{method:<10} {share:.5%} the same, {total - same} of {total} differ, {seconds:.1f} s"
        )
        if share < least:
            short.append(f"{method} agrees on less than {least:.1%}")
    sys.exit("; ".join(short) or 0)


if __name__ == "__main__":
    main()
