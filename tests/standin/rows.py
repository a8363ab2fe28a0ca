"""What is done on the stand-in, in a process of its own; `test_standin.py` reads how it went.

    python tests/standin/rows.py FOLDER [KIND...]    prints one JSON object per row: its name, the
                                                     fault if it failed, and what was counted
    python tests/standin/rows.py FOLDER "cuda:on host"      the rows with these words in their name

The CPU's kernels compute on the stand-in, so that results are equal to the bit to those of the CPU
unless PyTorch or we go about it in another way on an accelerator: `NEAR` has those rows.
"""

from __future__ import annotations

import copy
import json
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import secateur
from methods.test_contract import CONTRACT
from secateur.blocks import sweep
from secateur.errors import RecipeError
from secateur.machine import accelerator, memory
from secateur.machine.device import choose_device
from secateur.methods import every, get
from secateur.pruning import fit
from secateur.pruning.prepare import prepare_in_place
from secateur.recipe import Recipe
from secateur.sparsity import parse_pattern
from standin.device import Standin, without_kernel
from tiny import make_model, make_tokens, save, weights_of

KINDS = ("cuda", "mps", "xpu")
MEMORY = 2**30
BLOCKS = 2
MANY = 128
"""Sequences that take more memory than the blocks of the small model."""
WITHOUT = "without float64"
FEW: dict[str, Any] = {"samples": 8, "sequence_length": 16, "batch_size": 4, "dtype": "float32"}
REFINED: dict[str, Any] = {"regional": {"rounds": 1, "samples": 4}}
NEAR = {"wanda++", "wanda++-ro", "alps-ro"}
"""Methods whose weights PyTorch's optimiser makes, which works on all tensors of a list at once on
an accelerator and on one after another on a CPU."""
MADE_UP = {
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
}
"""What the stand-in computes attention with, in place of an accelerator's own kernel."""


def told(row: str, fault: str | None, facts: dict[str, Any]) -> None:
    """Print how a row went."""
    print(json.dumps({"row": row, "fault": fault, **facts}), flush=True)


def waits(gpu: Standin) -> dict[str, Any]:
    """How often the host waited, per block; by file of ours; and the lines that did most of it."""
    events = gpu.table("wait", "d2h")
    files: Counter[str] = Counter()
    for event in events:
        files[event.place.partition(":")[0]] += event.times
    return {
        "waits": files.total() / BLOCKS,
        "files": files,
        "lines": [list(event[:4]) for event in events[:12]],
    }


def options_of(case: Any) -> dict[str, Any]:
    """The options of a short run of a row of the contract table."""
    method = get(case.name)
    fits = method.params(**case.parameters).objection(parse_pattern("2:4")) is None
    fits = fits and not {"competition", "block_size"} & case.parameters.keys()
    refined = REFINED if method.refine.value != "none" else {}
    return {
        "method": case.name,
        "parameters": case.parameters,
        "pattern": "2:4" if fits else "50%",
        **FEW,
        **refined,
    }


def in_memory(case: Any, model: Any, sequences: int = 8) -> Any:
    """The model after it was pruned in place."""
    options = {**options_of(case), "samples": sequences}
    if "regional" in options:
        options["regional"] = {"rounds": 1, "samples": sequences // 2}
    secateur.prune(model, calibration=make_tokens(sequences, 16), **options)
    return model


def compare(case: Any, weights: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
    """Raise unless the masks are equal, and the weights: to the bit, but for `NEAR`."""
    assert weights.keys() == reference.keys()
    for name, expected in reference.items():
        found = weights[name].cpu()
        if case.name in NEAR:
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4, msg=name)
            assert torch.equal(found == 0, expected == 0), f"another mask: {name}"
        else:
            assert torch.equal(found, expected), f"other weights: {name}"


class References(dict[str, dict[str, Tensor]]):
    """Row of the contract table -> the weights after a run on the CPU, when they are asked for.

    Args:
        dense: the model that is pruned.
    """

    def __init__(self, dense: Any) -> None:
        self._dense = dense

    def __missing__(self, name: str) -> dict[str, Tensor]:
        """The weights, from now on known."""
        case = next(case for case in CONTRACT if str(case) == name)
        self[name] = in_memory(case, copy.deepcopy(self._dense)).state_dict()
        return self[name]


@dataclass
class Bench:
    """What the rows share.

    Attributes:
        folder: to write to; beside it lie `model` and `tokens.safetensors`.
        kind: of the accelerator.
        gpu: the stand-in.
        references: row of the contract table -> the weights after a run on the CPU.
    """

    folder: Path
    kind: str
    gpu: Standin
    references: References

    @property
    def model(self) -> Path:
        """The dense model's folder."""
        return self.folder.parent / "model"

    @property
    def tokens(self) -> str:
        """The file of tokens: int64 [8, 16]."""
        return str(self.folder.parent / "tokens.safetensors")

    def options(self, case: Any, device: str) -> dict[str, Any]:
        """Those of a streamed run, but for `out`."""
        given = {"model": self.model, "calibration": self.tokens, "device": device}
        return {**given, **options_of(case)}


Row = Callable[[Bench], dict[str, Any]]


def _model(**changes: Any) -> Any:
    return make_model("llama", num_hidden_layers=BLOCKS, **changes)


def method_in_memory(case: Any) -> Row:
    """A method on a model that lies on the device; the waits of the host per block are counted."""

    def row(bench: Bench) -> dict[str, Any]:
        model = _model().to(bench.kind)
        bench.gpu.reset()
        in_memory(case, model)
        facts = {
            **waits(bench.gpu),
            "lacking": sorted(without_kernel(bench.gpu.launches, "MPS") - MADE_UP),
        }
        compare(case, model.state_dict(), bench.references[str(case)])
        return facts

    return row


def method_with_more(case: Any) -> Row:
    """The same with twice the sequences, batches, steps and columns: how often the host waits."""

    def row(bench: Bench) -> dict[str, Any]:
        model = _model(hidden_size=64, intermediate_size=128).to(bench.kind)
        bench.gpu.reset()
        in_memory(case, model, 16)
        return waits(bench.gpu)

    return row


def method_streamed(case: Any) -> Row:
    """A method from disk to disk."""

    def row(bench: Bench) -> dict[str, Any]:
        out = bench.folder / str(case)
        record = secateur.prune(**bench.options(case, bench.kind), out=out)
        reference = bench.references[str(case)]
        compare(case, weights_of(out), {name: reference[name] for name in weights_of(out)})
        assert record.device == bench.kind
        assert record.machine["accelerator"] == "Stand-in"
        assert (record.peak_device_memory_bytes or 0) > 0
        return {}

    return row


def method_on_host(case: Any) -> Row:
    """Activations that wait in main memory: the same bits as on the device, in less of its memory.

    The last of them are copied while others are at work: from pinned memory only, so that no copy
    to the device makes the host wait.
    """

    def row(bench: Bench) -> dict[str, Any]:
        weights, peaks = [], []
        for place in ("device", "host"):
            model = _model().to(bench.kind)
            bench.gpu.reset()
            options = {**options_of(case), "samples": MANY, "activations": place}
            secateur.prune(model, calibration=make_tokens(MANY, 16), **options)
            weights.append(model.state_dict())
            peaks.append(bench.gpu.peak)
            events = bench.gpu.table()
            copies = [event.kind for event in events if "activations.py" in event.place]
            assert bool(copies) == (place == "host"), events
            assert "h2d" not in copies or bench.kind == "mps", events
        for name, expected in weights[0].items():
            assert torch.equal(weights[1][name], expected), f"other weights: {name}"
        assert peaks[1] < peaks[0], peaks
        return {"peaks": peaks}

    return row


def host_streamed(bench: Bench) -> dict[str, Any]:
    """From disk to disk, with held-out text; stopped with activations on the host, goes on without.

    Ratios that are measured are the same too.
    """
    case = next(case for case in CONTRACT if case.name == "wanda")
    given = bench.options(case, bench.kind) | {"text": bench.tokens, "windows": 4}
    given |= {"pattern": "50%", "allocation": "measured", "parameters": {}}
    whole = secateur.prune(**given, out=bench.folder / "on device", activations="device")
    there = secateur.prune(**given, out=bench.folder / "on host", activations="host")
    out, real = bench.folder / "begun on host", sweep.new_weights

    def stop(block: Any, *args: Any) -> Any:
        if block.index == 1:
            raise KeyboardInterrupt
        return real(block, *args)

    with mock.patch.object(sweep, "new_weights", stop), pytest.raises(KeyboardInterrupt):
        secateur.prune(**given, out=out, activations="host")
    gone_on = secateur.prune(**given, out=out, activations="device")
    expected = weights_of(bench.folder / "on device")
    for record, folder in ((there, bench.folder / "on host"), (gone_on, out)):
        assert record.evaluations[0].perplexity == whole.evaluations[0].perplexity
        assert record.evaluations[0].divergence == whole.evaluations[0].divergence
        for name, weight in weights_of(folder).items():
            assert torch.equal(weight, expected[name]), name
    return {}


def chosen_by_room(bench: Bench) -> dict[str, Any]:
    """auto takes main memory where the device is short of its own; what fits nowhere is refused."""
    given = {
        "method": "wanda++", "activations": "auto", "device": bench.kind, "model": "-",
        "calibration": "-", **FEW, "samples": MANY,
    }  # fmt: skip
    model, tokens = _model(), make_tokens(MANY, 16)

    def placed(free: int, **changes: Any) -> fit.Placement:
        recipe = Recipe.build({**given, **changes})
        with mock.patch.object(fit, "free_bytes", return_value=free):
            return prepare_in_place(model, recipe, None, tokens).activations

    roomy = placed(2**30)
    assert not roomy.host
    assert roomy.notices == ()
    here = roomy.estimated or 0
    there = placed(2**30, activations="host").estimated or 0
    assert there < here
    short = placed(here)
    assert short.host
    assert short.estimated == there
    assert "activations wait in main memory" in short.notices[0]
    assert "may not fit" in placed(there).notices[1]
    with pytest.raises(RecipeError, match=r"about .* GiB are free.*--activations host"):
        placed(round(here / 1.2), activations="device")
    with pytest.raises(RecipeError, match=r"the run takes about .*--method wanda\+\+; try a small"):
        placed(there // 2)
    return {}


def resume(bench: Bench) -> dict[str, Any]:
    """A run that was stopped in its second block goes on to the CPU's weights."""
    case = CONTRACT[2]
    options = {**bench.options(case, bench.kind), "out": bench.folder / "resumed"}
    real = sweep.new_weights

    def stop(block: Any, *args: Any) -> Any:
        if block.index == 1:
            raise KeyboardInterrupt
        return real(block, *args)

    with mock.patch.object(sweep, "new_weights", stop), pytest.raises(KeyboardInterrupt):
        secateur.prune(**options)
    secateur.prune(**options)
    compare(case, weights_of(bench.folder / "resumed"), bench.references[str(case)])
    return {}


def recover(bench: Bench) -> dict[str, Any]:
    """The training of adapters ends near the CPU's, in two precisions, with every zero in place."""
    sparse = bench.folder / "sparse"
    secateur.prune(**bench.options(CONTRACT[0], "cpu"), out=sparse)
    given: dict[str, Any] = {
        "model": sparse, "text": bench.tokens, "steps": 2,
        "sequence_length": 16, "samples": 6, "validation": 2, "batch_size": 2, "rank": 2,
    }  # fmt: skip
    for objective in ("lm", "distill"):
        losses = []
        for device in ("cpu", bench.kind):
            out = bench.folder / f"recovered {objective} {device}"
            dense: dict[str, Any] = {"dense": bench.model} if objective == "distill" else {}
            secateur.recover(
                **given, **dense, objective=objective, device=device, dtype="float32", out=out
            )
            losses.append(weights_of(out))
        for name, expected in losses[0].items():
            torch.testing.assert_close(losses[1][name], expected, rtol=1e-3, atol=1e-4)
    secateur.recover(**given, device=bench.kind, out=bench.folder / "recovered half")
    assert secateur.check(bench.folder / "recovered half").holds
    return {}


def evaluate(bench: Bench) -> dict[str, Any]:
    """Perplexity and divergence, of a plain and a packed folder, are the CPU's."""
    sparse, packed = bench.folder / "to pack", bench.folder / "packed"
    secateur.prune(**bench.options(CONTRACT[0], bench.kind), out=sparse)
    secateur.pack(sparse, packed)
    text = {
        "text": bench.tokens, "sequence_length": 16, "windows": 4,
        "dtype": "float32", "against": bench.model,
    }  # fmt: skip
    bench.gpu.reset()
    here = [secateur.evaluate(folder, **text, device=bench.kind) for folder in (sparse, packed)]
    facts = waits(bench.gpu)
    there = secateur.evaluate(sparse, **text, device="cpu")
    for found in here:
        assert abs(found.perplexity / there.perplexity - 1) < 1e-5
        assert abs(found.divergence / there.divergence - 1) < 1e-4
    return facts


def compared(bench: Bench) -> dict[str, Any]:
    """A comparison, with ratios by outliers and what the model writes itself beside it."""
    done = secateur.compare(
        bench.model, out=bench.folder / "compared", methods=["magnitude", "wanda"],
        text=bench.tokens, windows=2, calibration=bench.tokens, device=bench.kind, **FEW,
    )  # fmt: skip
    assert len(done.records) == 2
    given = bench.options(CONTRACT[2], bench.kind)
    before = torch.get_rng_state()
    secateur.prune(**given | {"calibration": "self"}, out=bench.folder / "self")
    assert torch.equal(torch.get_rng_state(), before)
    for allocation in ("owl", "measured"):
        uneven = given | {"pattern": "50%", "allocation": allocation}
        secateur.prune(**uneven, out=bench.folder / allocation)
    return {}


def blocks_removed(bench: Bench) -> dict[str, Any]:
    """Blocks are chosen and the others mended as on the CPU, wherever hidden states wait."""
    case = next(case for case in CONTRACT if case.name == "magnitude")
    given = bench.options(case, bench.kind)
    given |= {"pattern": "blocks-1", "parameters": {}, "text": bench.tokens, "windows": 4}
    given |= {"calibration": bench.tokens}
    for method, mend in (("magnitude", False), ("shortgpt", False), ("greedy", True)):
        runs = {}
        for place in ("cpu", "device", "host"):
            own: dict[str, Any] = {"method": method, "mend": mend}
            own |= {"device": "cpu"} if place == "cpu" else {"activations": place}
            own |= {"regional": {"rounds": 1}} if mend else {}
            out = bench.folder / f"{method} without a block, {place}, {bench.kind}"
            runs[place] = secateur.prune(**given | own, out=out), weights_of(out)
        record, weights = runs["device"]
        for place, within in (("cpu", 1e-4), ("host", 0.0)):
            other, others = runs[place]
            assert other.removed[0].removed == record.removed[0].removed, (method, place)
            assert weights.keys() == others.keys()
            assert all(torch.allclose(weights[n], others[n], 0, within) for n in weights), method
    return {}


def cliff(bench: Bench) -> dict[str, Any]:
    """A curve is the CPU's, wherever hidden states wait."""
    given = {"text": bench.tokens, "windows": 4, "calibration": bench.tokens, **FEW}
    for unit, method, shares in (("blocks", "greedy", "1"), ("ffn", "ziplm", "25%")):
        asked = {"pattern": unit, "method": method, "shares": shares, **given}
        there = secateur.cliff(bench.model, device="cpu", **asked)
        for place in ("device", "host"):
            here = secateur.cliff(bench.model, device=bench.kind, activations=place, **asked)
            for found, expected in zip(here.points, there.points, strict=True):
                assert found.gone == expected.gone
                assert abs(found.perplexity / expected.perplexity - 1) < 1e-5
                assert abs(found.divergence / expected.divergence - 1) < 1e-4
    return {}


def float64(bench: Bench) -> dict[str, Any]:
    """A checkpoint in float64 is computed in float32 where the device has no float64."""
    expected = "float64" if accelerator.has_float64(torch.device(bench.kind)) else "float32"
    out = bench.folder / f"double by {expected}"
    record = secateur.prune(
        save(make_model("llama", dtype=torch.float64), bench.folder / f"double for {expected}"),
        method="magnitude", device=bench.kind, out=out,
    )  # fmt: skip
    assert record.dtype == expected, record.dtype
    assert {weight.dtype for weight in weights_of(out).values()} == {torch.float64}
    return {}


def without_float64(bench: Bench) -> dict[str, Any]:
    """The same on an xpu that has none."""
    assert not accelerator.has_float64(torch.device(bench.kind))
    return float64(bench)


def device(bench: Bench) -> dict[str, Any]:
    """Names, memory and clocks of the device."""
    kind, gpu = bench.kind, bench.gpu
    count = 1 if kind == "mps" else 2
    assert accelerator.names_here() == tuple(f"{kind}:{number}" for number in range(count))
    assert choose_device("auto").type == choose_device(kind).type == kind
    assert choose_device(f"{kind}:{count - 1}") == torch.device(kind, count - 1)
    there = " or ".join(["cpu", *accelerator.names_here()])
    others = [name for name in KINDS if name != kind]
    for wrong in (f"{kind}:{count}", f"{kind}:", f"{kind}:-1", *others, f"{others[0]}:0"):
        with pytest.raises(RecipeError, match=f"'{wrong}' is not there.* {there}"):
            choose_device(wrong)
    place = torch.device(kind)
    before = memory.free_bytes(place)
    accelerator.forget_peak(place)
    held = torch.ones(1024, 1024, device=kind)
    assert before - memory.free_bytes(place) == held.nbytes
    del held
    assert (accelerator.peak_bytes_of(place) or 0) >= 2**22
    gpu.reset()
    accelerator.wait_for(place)
    accelerator.wait_for(torch.device("cpu"))
    assert [event.times for event in gpu.table("sync")] == [1]
    assert accelerator.accelerator_name(place) == "Stand-in"
    values = accelerator.as_float64(torch.ones(2, device=kind))
    assert values.device.type == ("cpu" if kind == "mps" else kind)
    assert values.dtype == torch.float64
    return {}


def strict(bench: Bench) -> dict[str, Any]:
    """What PyTorch refuses on an accelerator is refused."""
    here, there = torch.ones(4, device=bench.kind), torch.ones(4)
    refused: list[Callable[[], Any]] = [
        lambda: here + there,
        lambda: torch.stack([here, there]),
        here.numpy,
        lambda: torch.rand(4, device=bench.kind, generator=torch.Generator()),
        lambda: torch.empty(2**40, device=bench.kind),
    ]
    if bench.kind == "mps":
        refused.append(here.double)
    for work in refused:
        with pytest.raises((RuntimeError, TypeError)):
            work()
    assert torch.equal((here + 1).cpu(), there + 1)
    return {}


def one_of_each() -> Iterator[Any]:
    """The first row of every method in the contract table."""
    for method in every():
        yield next(case for case in CONTRACT if case.name == method.name)


def rows_of(kind: str) -> dict[str, Row]:
    """Every row of an accelerator by its name."""
    rows: dict[str, Row] = {"device": device, "strict": strict, "float64": float64}
    if kind == "xpu":
        rows[WITHOUT] = without_float64
    rows |= {f"{case} on host": method_on_host(case) for case in one_of_each()}
    rows["chosen by room"] = chosen_by_room
    rows["blocks removed"] = blocks_removed
    rows["cliff"] = cliff
    if kind == "cuda":
        rows["host streamed"] = host_streamed
        rows |= {f"{case} in memory": method_in_memory(case) for case in CONTRACT}
        rows |= {f"{case} streamed": method_streamed(case) for case in CONTRACT}
        rows |= {f"{case} with more": method_with_more(case) for case in one_of_each()}
        return rows | {
            "resume": resume, "recover": recover, "evaluate": evaluate, "compared": compared
        }  # fmt: skip
    rows |= {f"{case} in memory": method_in_memory(case) for case in one_of_each()}
    return rows | {"evaluate": evaluate, "compared": compared}


def main(folder: Path, kinds: list[str]) -> None:
    """Do the rows of some accelerators."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    Standin()  # before PyTorch's autograd runs for the first time
    dense = _model()
    save(dense, folder / "model")
    save_file({"input_ids": make_tokens(8, 16)}, folder / "tokens.safetensors")
    references = References(dense)
    for asked in kinds:
        kind, _, words = asked.partition(":")
        for name, row in rows_of(kind).items():
            if words not in name:
                continue
            began, fault, facts = time.perf_counter(), None, dict[str, Any]()
            with Standin(kind, limit=MEMORY, float64=name != WITHOUT) as gpu:
                try:
                    facts = row(Bench(folder / kind, kind, gpu, references))
                except Exception:
                    fault = traceback.format_exc()
            facts["seconds"] = round(time.perf_counter() - began, 2)
            told(f"{kind}: {name}", fault, facts)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(KINDS))
