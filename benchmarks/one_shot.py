"""Prune or quantise a model once, in this process, and say what it took.

`peers.py` and `quantised_peer.py` run this.

    PYTHON benchmarks/one_shot.py REQUEST

REQUEST is JSON: program, model, tokens, out, method, dtype, threads, batch_size, for gptq and rtn
the group of weights that shares a scale, and the time at which the process was started. The last
line that is printed is JSON: seconds of

    start       from the start of the process until everything is imported
    load        `AutoModelForCausalLM.from_pretrained`, the same for all that prune in memory
    prune       the call that prunes, or quantises
    save        `save_pretrained`, transformers' own, the same for all that prune in memory; of a
                quantised model llm-compressor's, which writes compressed-tensors

each with `_cpu` for the seconds that all cores worked, and the peak of resident memory at the end
of `prune`, in bytes. This file is run by the Python of the program that it asks for, so it imports
neither program before it knows which.

llm-compressor is called as its documentation does, with nothing that costs time added:

    oneshot(model, dataset=DataLoader, pipeline="sequential", recipe=the modifier)
    modifier    WandaPruningModifier or SparseGPTModifier, sparsity 0.5, mask_structure "2:4",
                all Linear but lm_head; block size and damping are its defaults, which are ours
                GPTQModifier or QuantizationModifier (which rounds to the nearest, without data),
                4 bits, symmetric, a scale for a group; everything else is its default
    data        its own DataLoader form, with the token ids in batches and nothing to tokenize, and
                no attention mask, so that attention may take its causal path
    logging     errors only, no progress bars; nothing is compressed or written at the end
    batches     of one sequence, its default and the faster: 8 x 512 tokens through a block 768 wide
                took 3.2 s of one core; in one batch of eight 3.7 s, and half more memory
    threads     torch's, the same number
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any


def main() -> None:
    request = json.loads(sys.argv[1])
    took = PROGRAMS[request["program"]](request)
    print(json.dumps(took), flush=True)


def by_secateur(request: dict[str, Any]) -> dict[str, Any]:
    """A model in memory."""
    import torch
    from transformers import AutoModelForCausalLM

    import secateur

    took = {"start": time.time() - request["started"]}
    torch.set_num_threads(request["threads"])
    tokens = read_tokens(request)
    model = timed(took, "load", lambda: load(AutoModelForCausalLM, request))
    timed(
        took,
        "prune",
        lambda: secateur.prune(
            model, calibration=tokens, samples=len(tokens), sequence_length=tokens.shape[1],
            pattern="2:4", **options(request),
        ),
    )  # fmt: skip
    took["peak"] = peak()
    timed(took, "save", lambda: model.save_pretrained(request["out"]))
    return {**took, "versions": versions("secateur")}


def by_secateur_from_disk(request: dict[str, Any]) -> dict[str, Any]:
    """Block by block from disk to disk: reading and writing are part of `prune`."""
    import torch

    import secateur

    took = {"start": time.time() - request["started"], "load": 0.0, "save": 0.0}
    torch.set_num_threads(request["threads"])
    sequences, length = read_tokens(request).shape
    timed(
        took,
        "prune",
        lambda: secateur.prune(
            request["model"], out=request["out"], calibration=request["tokens"],
            samples=sequences, sequence_length=length, pattern="2:4", device="cpu",
            dtype=request["dtype"], **options(request),
        ),
    )  # fmt: skip
    took["peak"] = peak()
    return {**took, "versions": versions("secateur")}


def by_llmcompressor(request: dict[str, Any]) -> dict[str, Any]:
    """`oneshot` on a model in memory."""
    os.environ["LLM_COMPRESSOR_LOG_LEVEL"] = "ERROR"
    os.environ["TQDM_DISABLE"] = "1"
    import torch
    from llmcompressor import oneshot
    from torch.utils.data import DataLoader
    from transformers import AutoModelForCausalLM

    took = {"start": time.time() - request["started"]}
    torch.set_num_threads(request["threads"])
    tokens = read_tokens(request)
    model = timed(took, "load", lambda: load(AutoModelForCausalLM, request))
    modifier, quantises = llmcompressor_modifier(request)
    batches = DataLoader(
        [{"input_ids": row} for row in tokens], batch_size=request["batch_size"], shuffle=False
    )
    data: dict[str, Any] = {"pipeline": "datafree"}
    if request["method"] != "rtn":
        data = {
            "dataset": batches, "pipeline": "sequential", "num_calibration_samples": len(tokens),
            "batch_size": request["batch_size"], "shuffle_calibration_samples": False,
        }  # fmt: skip
    timed(
        took,
        "prune",
        lambda: oneshot(model=model, recipe=modifier, processor=NoTokenizer(), **data),
    )
    took["peak"] = peak()
    # the plain method: its own, which oneshot puts in place, would write a recipe beside the model
    save = model.save_pretrained if quantises else partial(type(model).save_pretrained, model)
    timed(took, "save", lambda: save(request["out"]))
    return {**took, "versions": versions("llmcompressor")}


def llmcompressor_modifier(request: dict[str, Any]) -> tuple[Any, bool]:
    """What does the work, and whether it quantises."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    ignore, method = ["re:.*lm_head"], request["method"]
    if method in ("gptq", "rtn"):
        weights = {
            "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group",
            "group_size": request["group"],
        }  # fmt: skip
        kind = {"gptq": GPTQModifier, "rtn": QuantizationModifier}[method]
        groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
        return kind(config_groups=groups, ignore=ignore), True
    kind = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}[method]
    modifier = kind(sparsity=0.5, mask_structure="2:4", targets=["Linear"], ignore=ignore)
    return modifier, False


class NoTokenizer:
    """Stands where `oneshot` would load a tokenizer: the data are tokens already."""

    def save_pretrained(self, folder: str) -> None:
        """Nothing to write."""


def options(request: dict[str, Any]) -> dict[str, Any]:
    """METHOD or METHOD:SCHEDULE, and the batch size if one is given, as Secateur wants them."""
    method, _, schedule = request["method"].partition(":")
    found: dict[str, Any] = {"method": method}
    if schedule:
        found["schedule"] = schedule
    if request["batch_size"]:
        found["batch_size"] = request["batch_size"]
    return found


def read_tokens(request: dict[str, Any]) -> Any:
    """int64 [sequences, tokens]."""
    from safetensors.torch import load_file

    return load_file(request["tokens"])["input_ids"].long()


def load(kind: Any, request: dict[str, Any]) -> Any:
    """The model, in the precision asked for."""
    return kind.from_pretrained(request["model"], dtype=request["dtype"]).eval()


def timed(took: dict[str, Any], name: str, work: Callable[[], Any]) -> Any:
    """Do it, and write down the seconds by the clock and those of all cores."""
    began, worked = time.perf_counter(), time.process_time()
    result = work()
    took[name] = time.perf_counter() - began
    took[f"{name}_cpu"] = time.process_time() - worked
    return result


def peak() -> int:
    """Bytes: the high-water mark of resident memory of this process.

    Not getrusage where it can be helped: on Linux a child begins with its parent's mark.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def versions(program: str) -> dict[str, str]:
    """Of what the numbers depend on."""
    from importlib.metadata import version

    return {name: version(name) for name in (program, "torch", "transformers")}


PROGRAMS = {
    "llm-compressor": by_llmcompressor,
    "secateur": by_secateur,
    "secateur from disk": by_secateur_from_disk,
}

if __name__ == "__main__":
    main()
