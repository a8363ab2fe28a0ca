"""The tables of `real.py` on pruned models that were asked tasks, trained back and packed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import real_after
import results
from real_results import Results

from secateur.evaluation import TaskScore

MB = 1e6
SAME = ("of", "limit", "dtype")
"""What tasks in one table have in common with the last that was asked."""
PAIRS = ("wanda", "alps-ro", "apart")
"""Wanda against dense, ALPS-RO against dense, ALPS-RO against Wanda."""


def tasks(there: Results) -> Iterator[results.Table]:
    """Dense, Wanda, ALPS-RO on the same questions."""
    for model in there.models:
        lines = real_after.read_lines(there.out / model / there.main / "tasks.jsonl")
        same = [line for line in lines if all(line[key] == lines[-1][key] for key in SAME)]
        latest = {line["task"]: real_after.scores_of(line) for line in same}
        metrics = dict.fromkeys(metric for scores in latest.values() for metric in scores)
        for metric in metrics or ("acc",):
            pairs = [scores[metric] for scores in latest.values() if metric in scores]
            cells = [_task_row(pair["apart"].task, pair) for pair in pairs]
            if len(pairs) > 1:
                cells.append(_mean_row(pairs))
            yield results.Table(
                f"**{model} at 2:4**, {metric} zero-shot, with standard errors; those of"
                " differences are paired over the questions.",
                ("", "questions", "dense", "Wanda", "ALPS-RO", "Wanda - dense", "ALPS-RO - dense",
                 "ALPS-RO - Wanda"),
                cells,
            )  # fmt: skip


def _task_row(task: str, pair: Mapping[str, TaskScore]) -> tuple[str, ...]:
    values = [(pair["wanda"].dense, pair["wanda"].dense_standard_error)]
    values += [(pair[name].value, pair[name].standard_error) for name in PAIRS[:2]]
    differences = [(pair[name].difference, pair[name].difference_error) for name in PAIRS]
    return (
        task,
        str(pair["wanda"].documents),
        *(_with_error(*value) for value in values),
        *(_with_error(*difference, sign="+") for difference in differences),
    )


def _mean_row(pairs: Sequence[Mapping[str, TaskScore]]) -> tuple[str, ...]:
    """The plain mean over tasks; errors of independent tasks add up in squares."""

    def mean(values: Sequence[tuple[float | None, float | None]], sign: str = "") -> str:
        known = [(value, error or 0.0) for value, error in values if value is not None]
        error = math.sqrt(sum(error**2 for _, error in known)) / len(known)
        return _with_error(sum(value for value, _ in known) / len(known), error, sign)

    dense = [(pair["wanda"].dense, pair["wanda"].dense_standard_error) for pair in pairs]
    alone = [[(p[name].value, p[name].standard_error) for p in pairs] for name in PAIRS[:2]]
    apart = [[(p[name].difference, p[name].difference_error) for p in pairs] for name in PAIRS]
    return (
        "mean of tasks",
        str(sum(pair["wanda"].documents for pair in pairs)),
        mean(dense),
        *map(mean, alone),
        *(mean(each, "+") for each in apart),
    )


def _with_error(value: float | None, error: float | None, sign: str = "") -> str:
    if value is None:
        return ""
    text = f"{value:{sign}.3f}"
    return text if error is None else f"{text} ± {error:.3f}"


def recovery(there: Results) -> Iterator[results.Table]:
    """Pruned and trained back, plain and packed."""
    names = list(there.texts.heldout)[:2]
    for model in there.models:
        cells: list[tuple[str, ...]] = []
        lines = real_after.read_lines(there.out / model / there.main / "recovery.jsonl")
        latest = {line["method"]: line for line in lines}.values()
        for line in latest:
            dense = line["dense"]
            if not cells:
                cells.append(("dense", "", *(f"{d:.2f}" for d in dense), *[""] * 5))
            for name, perplexities in line["perplexity"].items():
                plain, packed, same = line["sizes"][name]
                trained = name == "recovered"
                cells.append((
                    f"{line['method']}, {name}", str(line["steps"]) if trained else "",
                    *(f"{value:.2f}" for value in perplexities),
                    f"{line['seconds'] / 60:.0f}" if trained else "",
                    f"{plain / MB:.1f}", f"{packed / MB:.1f}", f"{packed / plain:.0%}",
                    "yes" if same else "NO",
                ))  # fmt: skip
        ways = "; ".join(dict.fromkeys(map(_way, latest)))
        yield results.Table(
            f"**{model} at 2:4**: perplexity before and after training"
            f"{f' ({ways})' if ways else ''}, and bytes of the weights. *same*: the packed"
            f" model, loaded, writes the same {real_after.WRITTEN} tokens as the plain one.",
            ("", "steps", *names, "minutes", "plain (MB)", "packed (MB)", "of plain", "same"),
            cells,
        )


def _way(line: Mapping[str, Any]) -> str:
    """How a model was trained back."""
    settings = line["settings"]
    objective = settings.get("objective", "lm")
    on = line.get("trained_on", "wikitext").replace("+", " + ")
    samples, length = settings["samples"], settings["sequence_length"]
    trained = settings.get("train", "adapters")
    return f"{trained}, {objective}, {samples} x {length} tokens of {on}"
