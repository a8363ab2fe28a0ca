"""What `real.py` does with pruned models that it kept: ask tasks, train back, pack and load.

    OUT/MODEL/SETTING/tasks.jsonl      a line for every task: three models on the same questions
    OUT/MODEL/SETTING/recovery.jsonl   a line for every model: scores before and after, sizes
    OUT/MODEL/SETTING/recovered, packed

A line counts for the models that it was made of, by when they were pruned; what is there is not
done again.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from real_log import Log, Notices
from real_plan import KEPT, Texts
from transformers import AutoTokenizer

import secateur
from secateur.evaluation import EvaluationSettings, TaskScore
from secateur.evaluation.continuation import NAME as CONTINUATION
from secateur.evaluation.zero_shot import Questions
from secateur.recovery import InterruptedRecovery

Finished = Sequence[tuple[Any, Any]]
PROMPT, WRITTEN = "The history of the city begins with", 48
"""What a packed and a plain model continue, and how many tokens they write."""
PROBE = 4
"""Steps after which it is known how long one takes; the first half warms up."""
PROBED = 8 * PROBE
"""Sequences that these steps read, of the batch size that `recover` has by itself."""


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every line of a file that may not be there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _add(path: Path, entry: Mapping[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def ask(finished: Finished, texts: Texts, log: Log, options: argparse.Namespace) -> None:
    """Ask the dense model, Wanda's and ALPS-RO's every task, one task after the other."""
    by_method = {record.method: (run, record) for run, record in finished}
    if not all(method in by_method for method in KEPT):
        return
    runs = [by_method[method][0] for method in KEPT]
    setting = runs[0].folder.parents[1]
    made_of = [by_method[method][1].created for method in KEPT]
    folders = [Path(runs[0].recipe.model), *(run.folder for run in runs)]
    for task in task_names(options):
        asked = {"task": task, "limit": options.limit, "dtype": options.dtype, "of": made_of}
        path = setting / "tasks.jsonl"
        if any(asked.items() <= entry.items() for entry in read_lines(path)):
            log.say(f"{setting.parent.name} {task} (done before)")
            continue
        log.begin(setting / task)
        try:
            questions = Questions(_asking(task, folders[0], texts, options))
            dense, *pruned = (questions.ask(folder, Notices(log)) for folder in folders)
        except secateur.SecateurError as fault:
            log.failed(setting / task, fault)
            continue
        pairs = {
            KEPT[0]: questions.score(KEPT[0], pruned[0], "dense", dense),
            KEPT[1]: questions.score(KEPT[1], pruned[1], "dense", dense),
            "apart": questions.score(KEPT[1], pruned[1], KEPT[0], pruned[0]),
        }
        scores = {name: pair.model_dump()["scores"] for name, pair in pairs.items()}
        seconds = [answers.seconds for answers in (dense, *pruned)]
        _add(path, {**asked, "scores": scores, "lm_eval": pairs["apart"].lm_eval})
        log.add(setting / task, "done", seconds=sum(seconds))
        log.say(f"{task}: dense {pairs['wanda'].scores[0].dense}, " + ", ".join(
            f"{method} {pairs[method].scores[0].value}" for method in KEPT
        ))  # fmt: skip


def _asking(
    task: str, dense: Path, texts: Texts, options: argparse.Namespace
) -> EvaluationSettings:
    return EvaluationSettings.build(
        {
            "model": str(dense),
            "tasks": task,
            "text": next(iter(texts.heldout.values())) if task == CONTINUATION else None,
            "include_path": options.tasks_folder and str(options.tasks_folder),
            "limit": options.limit,
            "dtype": options.dtype,
            "device": options.device,
        }
    )


def task_names(options: argparse.Namespace) -> list[str]:
    """The tasks that were asked for; none: those of the folder, or those that need no network."""
    if options.tasks is not None:
        return list(options.tasks)
    if options.tasks_folder is None:
        return [CONTINUATION]
    files = sorted(options.tasks_folder.glob("*.yaml"))
    named = (re.search(r"^task:[ \t]+(\S+)", file.read_text(), re.MULTILINE) for file in files)
    return [match.group(1) for match in named if match]  # a group has a list there


def scores_of(entry: Mapping[str, Any]) -> dict[str, dict[str, TaskScore]]:
    """Metric -> pair of models ("wanda", "alps-ro": against dense; "apart") -> score."""
    scores: dict[str, dict[str, TaskScore]] = {}
    for pair, told in entry["scores"].items():
        for score in map(TaskScore.model_validate, told):
            scores.setdefault(score.metric, {})[pair] = score
    return scores


def recover(finished: Finished, texts: Texts, log: Log, options: argparse.Namespace) -> None:
    """Train Wanda's and ALPS-RO's model back; pack, load and compare what came of it."""
    for run, record in finished:
        if run.recipe.out is None:
            continue
        setting = run.folder.parents[1]
        out = setting / "recovered" / run.folder.name
        path = setting / "recovery.jsonl"
        done = [entry for entry in read_lines(path) if entry["of"] == record.created]
        if done and not options.overwrite:
            log.say(f"{setting.parent.name} {record.method} recovered (done before)")
            continue
        log.begin(out)
        try:
            entry = _recovered(run, record, out, texts, log, options)
        except secateur.SecateurError as fault:
            log.failed(out, fault)
            continue
        _add(path, entry)
        log.add(out, "done", seconds=entry["seconds"])
        log.say(f"{out.name}: {entry['perplexity']} in {entry['steps']} steps")


def _recovered(
    run: Any, record: Any, out: Path, texts: Texts, log: Log, options: argparse.Namespace
) -> dict[str, Any]:
    settings = {
        "text": texts.source(options.train_on),
        "objective": options.objective,
        "train": options.train,
        "samples": options.train_samples,
        "validation": 16,
        "sequence_length": options.sequence_length,
        "learning_rate": options.learning_rate,
        "dense": run.recipe.model,
        "dtype": "float32" if options.dtype == "float16" else options.dtype,
        "device": options.device,
    }
    resume = InterruptedRecovery.beside(out).exists and not options.overwrite
    decided = out.parent / f"steps in {options.minutes:g} minutes"  # the same for every model
    out.parent.mkdir(exist_ok=True)
    if options.steps is None and not decided.is_file():
        decided.write_text(str(_steps(run.folder, settings, options.minutes)))
    steps = options.steps or int(decided.read_text())
    trained = secateur.recover(
        run.folder, out=out, steps=steps, resume=resume, overwrite=not resume,
        progress=Notices(log), **settings,
    ).recovery  # fmt: skip
    assert trained is not None
    folders = {"pruned": run.folder, "recovered": out}
    measured = {
        name: [_perplexity(folder, text, options) for text in list(texts.heldout.values())[:2]]
        for name, folder in folders.items()
    }
    sizes = {name: list(_packed(folder, options)) for name, folder in folders.items()}
    return {
        "of": record.created,
        "method": record.method,
        "trained_on": options.train_on,
        "steps": trained.steps,
        "best_step": trained.best_step,
        "seconds": trained.seconds,
        "settings": settings,
        "curve": [[point.step, point.validation_loss] for point in trained.curve],
        "zeros": [trained.zeros_before, trained.zeros_after],
        "dense": [one.dense_perplexity for one in record.evaluations],
        "perplexity": measured,
        "sizes": sizes,
    }


def _steps(model: Path, settings: Mapping[str, Any], minutes: float) -> int:
    """How many steps there is room for, by the time that a few take."""
    with tempfile.TemporaryDirectory() as folder:
        tried = secateur.recover(
            model, out=Path(folder) / "tried", steps=PROBE, evaluate_every=PROBE // 2,
            **{**settings, "validation": 1, "samples": PROBED},
        ).recovery  # fmt: skip
    assert tried is not None
    before, after = tried.curve[-2:]
    return max(1, int(60 * minutes * (after.step - before.step) / (after.seconds - before.seconds)))


def _perplexity(folder: Path, text: str, options: argparse.Namespace) -> float:
    measured = secateur.evaluate(
        folder, text=text, sequence_length=options.sequence_length, windows=options.windows,
        dtype=options.dtype, device=options.device,
    )  # fmt: skip
    return float(measured.perplexity)


def _packed(folder: Path, options: argparse.Namespace) -> Iterator[Any]:
    """Bytes of the weights, plain and packed; whether both models write the same tokens."""
    packed = folder.parents[1] / "packed" / f"{folder.name} {folder.parent.name}"
    packed.parent.mkdir(exist_ok=True)
    secateur.pack(folder, out=packed, overwrite=True)
    for each in (folder, packed):
        yield sum(file.stat().st_size for file in each.glob("*.safetensors"))
    plain_tokens, packed_tokens = (_written(each, options) for each in (folder, packed))
    yield plain_tokens == packed_tokens


def _written(folder: Path, options: argparse.Namespace) -> list[int]:
    """What a model writes after a beginning, the likeliest token each time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = secateur.load(folder, device=options.device)
    prompt = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        tokens = model.generate(
            prompt.to(model.device), attention_mask=torch.ones_like(prompt).to(model.device),
            max_new_tokens=WRITTEN, do_sample=False,
        )  # fmt: skip
    return [int(token) for token in tokens[0]]
