"""The stand-in without numbers: what a model of any size would take, in seconds.

    gpu = hollow("cuda", limit=8 * 2**30)        # once in a process, and not to be taken back
    with gpu:
        secateur.prune(llama("7b", blocks=2), device="cuda", ...)
        gpu.peak

The model lies in main memory as zeros that nobody has touched. What a run asks the device for is
made up: numbers are 1, and no factorisation fails.
"""

from __future__ import annotations

import linecache
import sys
from types import FrameType

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from standin.device import OURS, Standin

LLAMAS = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
           "num_key_value_heads": 32},
    "70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64,
            "num_key_value_heads": 8},
}  # fmt: skip
"""Size -> what tells a Llama 2 of it from others."""
FALSE = ("failed", "< 0", "changed = ")
"""What is in a line of our code that asks for a sign of failure, or of change."""


def hollow(name: str, limit: int) -> Standin:
    """A stand-in that holds no numbers, from now to the end of the process."""
    gpu = Standin(name, limit=limit)
    gpu.device.be_hollow(_imagined)
    return gpu


def llama(size: str, blocks: int) -> PreTrainedModel:
    """Some blocks of a Llama 2 in bfloat16, all zero, in main memory."""
    config = LlamaConfig(
        **LLAMAS[size], num_hidden_layers=blocks, vocab_size=32000,
        max_position_embeddings=4096, dtype=torch.bfloat16,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    for module in model.modules():
        for key, value in module._parameters.items():
            if value is not None:
                zeros = torch.zeros(value.shape, dtype=torch.bfloat16)
                module._parameters[key] = nn.Parameter(zeros, requires_grad=False)
    with torch.device("cpu"):
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


def _imagined() -> float:
    """A number that our code asks the device for."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and OURS not in frame.f_code.co_filename:
        frame = frame.f_back
    if frame is None:
        return 1.0
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    return 0.0 if any(sign in line for sign in FALSE) else 1.0
