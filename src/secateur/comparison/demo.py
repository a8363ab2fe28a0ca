"""What Secateur does, in a few minutes and without a network: every method on the bundled model.

Calibrated on the standard library's source, measured on modules that the model has never seen; each
pruned model is kept, and goes on writing from the same prompt as the dense one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from secateur import methods
from secateur.bundled import BUILTIN_MODEL
from secateur.checkpoint import load_whole, locate
from secateur.checkpoint.model_facts import load_tokenizer
from secateur.comparison.combinations import plan_runs
from secateur.comparison.pipeline import FinishedRun
from secateur.comparison.runs import Run, refuse_folder, run_comparison
from secateur.comparison.settings import ComparisonSettings
from secateur.data.builtin import BUILTIN
from secateur.errors import DataError
from secateur.machine.waiting import doing
from secateur.progress import Progress
from secateur.record import write_record
from secateur.record.record import Sample

PATTERN = "2:4"
SAMPLES = 32
SEQUENCE_LENGTH = 256
WINDOWS = 64
TOKENS_WRITTEN = 64
PROMPT = '''\
def read_lines(path, encoding="utf-8"):
    """Return a list of the lines of a file."""
    with open(path, encoding=encoding) as'''


def demo_runs(out: Path, names: Sequence[str] = ()) -> list[Run]:
    """Each of these methods at 2:4, once; of none, every method.

    Raises:
        RecipeError: a method is unknown, or named twice.
        OutputError: nothing can be written to the folder.
    """
    refuse_folder(out, BUILTIN_MODEL)
    settings = ComparisonSettings(
        out=str(out),
        methods=tuple(names) or tuple(method.name for method in methods.every()),
        patterns=(PATTERN,),
    )
    return plan_runs(
        settings,
        {
            "model": BUILTIN_MODEL,
            "calibration": BUILTIN,
            "text": BUILTIN,
            "samples": SAMPLES,
            "sequence_length": SEQUENCE_LENGTH,
            "windows": WINDOWS,
            "effort": "fast",
            "bos": "stream",  # as this model was trained: windows of one stream of documents
        },
        keep_models=True,
    )


def demo(
    runs: list[Run], progress: Progress | None = None, *, overwrite: bool = False
) -> Iterator[FinishedRun]:
    """Do the runs, each with a sample of what its model writes; arguments are those of `compare`.

    Raises:
        SecateurError: a run cannot be done; those before it are finished and stay.
    """
    folder = locate(BUILTIN_MODEL)
    tokenizer = load_tokenizer(folder)
    if isinstance(tokenizer, DataError):
        raise tokenizer
    dense = continue_text(folder, tokenizer)
    done = run_comparison(runs, progress, overwrite=overwrite)
    for number, (run, record, repeated) in enumerate(done, 1):
        if record.sample is None:
            pruned = continue_text(run.folder, tokenizer)
            sample = Sample(prompt=PROMPT, dense=dense, pruned=pruned)
            record = record.model_copy(update={"sample": sample})
            write_record(run.folder, record)
        yield FinishedRun(run.name, record, repeated, number, len(runs))


@doing("a model writes on from the prompt")
def continue_text(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """How the model in `folder` goes on after the prompt, taking the likeliest token each time."""
    model = load_whole(folder, torch.float32)
    prompt = tokenizer(PROMPT, return_tensors="pt")["input_ids"]  # [1, tokens]
    vocabulary = model.get_input_embeddings().weight.shape[0]
    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=TOKENS_WRITTEN,
        pad_token_id=0,
        eos_token_id=vocabulary,  # no token ends it
    )
    with torch.no_grad():
        written = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), generation_config=greedy
        )
    text: str = tokenizer.decode(written[0, prompt.shape[1] :], skip_special_tokens=True)
    return text
