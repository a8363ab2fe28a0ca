"""`secateur bench`: prompts and decoding of a 2:4 model, dense beside every sparse form.

The same model is loaded once per form: dense; all its 2:4 matrices semi-structured, whether that
wins or not; all of them packed; and as `accelerate_inference` chooses. A ratio is the dense time
over the form's: below 1 the form loses, and the table says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import torch

from secateur.checkpoint import load_whole, locate
from secateur.errors import ModelError, RecipeError, closest, is_out_of_memory
from secateur.inference.accelerate import NO_GAIN, accelerate_inference
from secateur.inference.forms import UnfitError, convert
from secateur.inference.generation import Latency, measure
from secateur.inference.layers import matrix_bytes, replace, two_of_four
from secateur.inference.packed_linear import PackedLinear
from secateur.inference.probe import tune
from secateur.inference.settings import BenchSettings
from secateur.inference.tile import MOST_VECTORS
from secateur.inference.timings import Record
from secateur.machine.accelerator import peak_bytes_of
from secateur.machine.device import choose_device, choose_dtype
from secateur.machine.facts import machine, peak_memory_bytes, reset_peak_memory
from secateur.machine.paths import pinned
from secateur.machine.waiting import doing, each
from secateur.progress import Progress, Quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Column = Literal["dense", "semi-structured", "packed", "chosen"]
COLUMNS: tuple[Column, ...] = get_args(Column)


class Measurement(Record):
    """One form at one batch size."""

    form: Column
    """Which form the 2:4 matrices have."""
    phase: Literal["prefill", "decode"]
    """A whole prompt, or one token after it."""
    batch: int
    """Sequences at once."""
    latency: Latency
    """How long one pass takes."""
    tokens_per_second: float
    """What all sequences together get, by the median pass."""
    ratio: float | None = None
    """Dense median over this one: above 1 the form wins, below 1 it loses."""


class Loaded(Record):
    """What a form takes."""

    form: Column
    """Which form the 2:4 matrices have."""
    sparse_matrices: int
    """How many matrices are not dense."""
    weight_bytes: int
    """Bytes of all weights in memory."""
    peak_bytes: int
    """Most memory in use: of the GPU's allocator on CUDA, of the process on a CPU."""


class BenchReport(Record):
    """Everything measured of one model."""

    model: str
    """Folder or hub name."""
    device: str
    """Where it ran, and the machine."""
    dtype: str
    """Precision of the weights."""
    torch: str
    """Version of PyTorch."""
    prompt_tokens: int
    """Tokens of each prompt."""
    new_tokens: int
    """Tokens decoded after the prompt."""
    repeats: int
    """Passes behind each median, one more before them unmeasured."""
    forms: tuple[Loaded, ...]
    """What each form takes."""
    measurements: tuple[Measurement, ...]
    """How fast each form is, by batch and phase."""
    notices: tuple[str, ...]
    """What was not measured, and why."""


def bench(settings: BenchSettings, progress: Progress | None = None) -> BenchReport:
    """Measure how fast a 2:4 model reads prompts and writes tokens, in every form.

    Args:
        settings: which model, in which forms, and how often.
        progress: told what happens; silent by default.

    Raises:
        RecipeError: an option is out of range, or a sparse form is asked for without CUDA.
        ModelError: the model has no 2:4 matrix, unless dense alone was asked for; or it does not
            write tokens.
        CheckpointError: it cannot be loaded.
    """
    device = choose_device(settings.device)
    prompt, new_tokens, batches = settings.prompt, settings.new_tokens, settings.batches
    asked = _columns(settings.forms, device)
    folder = locate(pinned(settings.model, settings.revision))
    notices = [] if device.type == "cuda" else [f"dense alone is measured: {NO_GAIN}"]
    loaded: list[Loaded] = []
    measurements: list[Measurement] = []
    precision = choose_dtype(settings.dtype, device)
    stored = ""
    with progress or Quiet() as told:
        told.begin("bench", len(asked) * len(batches))
        for column in asked:
            reset_peak_memory(device)
            run = load_whole(folder, precision).to(device).eval()
            stored = str(run.dtype).removeprefix("torch.")
            _check(run, prompt + new_tokens)
            sparse = 0
            if settings.forms is None or asked != ("dense",):
                with doing(f"choosing how to compute {column}"):
                    sparse = _prepare(run, column, batches, notices)
            for batch in each(f"timing {column} at each batch size", batches):
                try:
                    both = measure(run, batch, prompt, new_tokens, settings.repeats)
                except RuntimeError as fault:
                    if not is_out_of_memory(fault):
                        raise
                    notices.append(f"{column}: a batch of {batch} does not fit into memory")
                    continue
                measurements += _measurements(column, batch, both, prompt, measurements)
                told.block(form=column, batch=batch, decode_ms=1000 * both[1].seconds)
            loaded.append(
                Loaded(
                    form=column, sparse_matrices=sparse, weight_bytes=_weight_bytes(run),
                    peak_bytes=peak_bytes_of(device) or peak_memory_bytes(),
                )
            )  # fmt: skip
            del run
    facts = machine(device)
    return BenchReport(
        model=settings.model,
        device=f"{device}: " + ", ".join(f"{name} {fact}" for name, fact in facts.items()),
        dtype=stored,
        torch=torch.__version__,
        prompt_tokens=prompt,
        new_tokens=new_tokens,
        repeats=settings.repeats,
        forms=tuple(loaded),
        measurements=tuple(measurements),
        notices=tuple(dict.fromkeys(notices)),
    )


def _columns(forms: Sequence[str] | None, where: torch.device) -> tuple[Column, ...]:
    """What is to be measured, dense first."""
    if forms is None:
        return COLUMNS if where.type == "cuda" else ("dense",)
    for form in forms:
        if form not in COLUMNS:
            raise RecipeError(f"unknown form {form!r}", wanted=closest(form, COLUMNS))
        if form != "dense" and where.type != "cuda":
            raise RecipeError(f"form {form!r} needs CUDA", wanted=f"dense: {NO_GAIN}")
    if not forms:
        raise RecipeError("no form", wanted=f"some of {', '.join(COLUMNS)}")
    return tuple(column for column in COLUMNS if column in forms)


def _check(model: PreTrainedModel, length: int) -> None:
    """Raise unless the model writes tokens, and has places for so many."""
    if not model.can_generate():
        raise ModelError(
            "the model writes no tokens",
            where=type(model).__name__,
            wanted="a causal decoder",
        )
    config = model.config.get_text_config(decoder=True)
    allowed = getattr(config, "max_position_embeddings", None)
    if allowed is not None and length > allowed:
        raise RecipeError(
            f"prompt and new tokens are {length} together",
            wanted=f"at most {allowed}, which is what the model allows",
            hint="a smaller --prompt",
        )


def _prepare(
    model: PreTrainedModel, column: Column, batches: Sequence[int], notices: list[str]
) -> int:
    """Give the 2:4 matrices their form; how many are sparse then."""
    by_shape = two_of_four(model)
    if column == "dense":
        return 0
    if column == "chosen":
        return accelerate_inference(model, vectors=batches).changed
    sparse = 0
    for (rows, columns, dtype, where), layers in by_shape.items():
        tiles = {}
        try:
            if column == "packed":
                trial = convert(next(iter(layers.values())), "packed")
                for batch in sorted({min(batch, MOST_VECTORS) for batch in batches}):
                    x = torch.randn(batch, columns, dtype=dtype, device=where)
                    tiles[batch] = tune([trial], x)[0]
            replace(model, layers, column, tiles)
            sparse += len(layers)
        except UnfitError as fault:
            notices.append(f"{column}: {rows} x {columns} stays dense: {fault}")
    return sparse


def _measurements(
    column: Column,
    batch: int,
    both: tuple[Latency, Latency],
    prompt: int,
    earlier: Sequence[Measurement],
) -> list[Measurement]:
    made = []
    phases: tuple[Literal["prefill", "decode"], ...] = ("prefill", "decode")
    for phase, latency, tokens in zip(phases, both, (prompt, 1), strict=True):
        dense = next(
            (
                other.latency.seconds
                for other in earlier
                if (other.form, other.phase, other.batch) == ("dense", phase, batch)
            ),
            None,
        )
        made.append(
            Measurement(
                form=column,
                phase=phase,
                batch=batch,
                latency=latency,
                tokens_per_second=batch * tokens / latency.seconds,
                ratio=None if dense is None or column == "dense" else dense / latency.seconds,
            )
        )
    return made


def _weight_bytes(model: PreTrainedModel) -> int:
    """Of all weights in memory, each once."""
    taken: dict[int, int] = {}
    for module in model.modules():
        if isinstance(module, PackedLinear):
            taken[id(module)] = matrix_bytes(module)
        for name, parameter in module.named_parameters(recurse=False):
            is_matrix = isinstance(module, torch.nn.Linear) and name == "weight"
            taken[id(parameter)] = matrix_bytes(module) if is_matrix else parameter.nbytes
    return sum(taken.values())
