"""Zero-shot tasks: questions out of text, lm-eval asked for real, two models side by side."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import secateur
import tiny
from secateur.errors import CheckpointError, DataError, RecipeError
from secateur.evaluation import TaskEvaluation, TaskScore
from secateur.evaluation.continuation import CHOICE, CHOICES, CONTEXT, make_questions
from secateur.evaluation.lm_eval import TaskSet, _published, read_scores
from secateur.evaluation.suites import SUITES, spell_out
from secateur.pruning.pipeline import run_pruning
from secateur.recipe import Recipe
from secateur.record import add_to_record, read_record

TEXTS = [" ".join(tiny.SENTENCES[turn:] + tiny.SENTENCES[:turn]) * 4 for turn in range(3)]


# --- questions out of text ---


def test_a_question_has_its_real_continuation_among_others() -> None:
    for question in make_questions(TEXTS, 50):
        assert len(question.choices) == CHOICES
        whole = question.context + question.choices[question.answer]
        assert any(whole in text for text in TEXTS)
        assert not question.context.endswith(" ")
        assert CONTEXT <= len(question.context) <= CONTEXT + 20
        for choice in question.choices:
            assert choice.startswith(" ")
            assert any(choice.strip() in text for text in TEXTS)
            assert CHOICE - 20 <= len(choice) <= CHOICE + 20


def test_the_same_seed_asks_the_same_and_another_does_not() -> None:
    assert make_questions(TEXTS, 20) == make_questions(TEXTS, 20)
    assert make_questions(TEXTS, 20) != make_questions(TEXTS, 20, seed=1)
    assert make_questions(TEXTS, 20) == make_questions(TEXTS, 40)[:20]


def test_the_answer_is_in_every_place_about_as_often() -> None:
    answers = [question.answer for question in make_questions(TEXTS, 400)]
    for place in range(CHOICES):
        assert 60 < answers.count(place) < 140


def test_text_that_is_too_short_is_refused() -> None:
    with pytest.raises(DataError, match="no document has more than 800 characters"):
        make_questions(["short"], 1)


def test_suites_are_spelt_out_once_each() -> None:
    assert len(SUITES["wanda++"]) == 9
    assert len(SUITES["wanda"]) == 7
    asked = spell_out("wanda++, piqa,wanda")
    assert asked[:9] == SUITES["wanda++"]
    assert asked[9:] == ("piqa", "openbookqa")


# --- lm-eval ---


@pytest.fixture(scope="session")
def own_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task file with local data: which word comes next? Sixteen questions."""
    folder = tmp_path_factory.mktemp("own")
    rows = [
        {"start": f"The heron stands in the {place} water", "ends": ["and waits", "of gold"]}
        for place in ("shallow", "deep", "cold", "warm") * 4
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "herons.yaml").write_text(f"""
task: herons
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder / "rows.jsonl"}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{start}}}}"
doc_to_choice: "{{{{ends}}}}"
doc_to_target: 0
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 2.0}}
""")
    return folder


@pytest.fixture(scope="session")
def sparse_folder(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sparse") / "llama"
    run_pruning(Recipe.build({"model": str(llama_folder), "out": str(out), "method": "magnitude"}))
    return out


@pytest.fixture(scope="session")
def long_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "text.txt"
    path.write_text("\f".join(TEXTS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def asked(
    sparse_folder: Path, llama_folder: Path, own_tasks: Path, long_text: Path,
    tmp_path_factory: pytest.TempPathFactory, module_cache: None,
) -> TaskEvaluation:  # fmt: skip
    return secateur.evaluate(
        sparse_folder, tasks="herons,continuation", against=llama_folder,
        include_path=own_tasks, text=long_text, limit=40,
    )  # fmt: skip


@pytest.fixture(scope="module")
def module_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the reader of task data keeps goes into a folder of the test."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


def score_of(found: TaskEvaluation, task: str, metric: str = "acc") -> TaskScore:
    (score,) = [s for s in found.scores if (s.task, s.metric) == (task, metric)]
    return score


def test_own_tasks_and_text_are_asked_of_both_models(asked: TaskEvaluation) -> None:
    assert asked.asked == ("herons", "continuation")
    assert {score.metric for score in asked.scores if score.task == "herons"} == {"acc", "acc_norm"}
    heron, text = score_of(asked, "herons"), score_of(asked, "continuation")
    assert (heron.documents, heron.version, heron.shots) == (16, "2.0", 0)
    assert text.documents == 40
    for score in (heron, text):
        assert score.higher_is_better
        assert score.dense is not None
        assert score.difference == pytest.approx(score.value - score.dense)
    error = math.sqrt(text.value * (1 - text.value) / 39)
    assert text.standard_error == pytest.approx(error, rel=1e-6)


def test_the_score_is_that_of_the_model_itself(asked: TaskEvaluation, sparse_folder: Path) -> None:
    """By hand: the choice with the highest summed log-likelihood."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(sparse_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(sparse_folder)
    right = 0
    for question in make_questions(TEXTS)[:40]:
        chances = []
        for choice in question.choices:
            start = tokenizer(question.context)["input_ids"]
            whole = tokenizer(question.context + choice)["input_ids"]
            tokens = torch.tensor([whole[-tiny.POSITIONS - 1 :]])
            with torch.no_grad():
                scores = model(tokens[:, :-1]).logits.log_softmax(-1)
            each = scores.gather(2, tokens[:, 1:, None])[0, :, 0]
            chances.append(float(each[-(len(whole) - len(start)) :].sum()))
        right += chances.index(max(chances)) == question.answer
    assert score_of(asked, "continuation").value == pytest.approx(right / 40)


@pytest.mark.parametrize(
    ("template", "bos", "begins"),
    [
        (None, "window", False),
        ("<s> $A", "window", True),
        ("<s> $A", "stream", True),
        ("<s> $A", "none", False),
    ],
)
def test_a_question_begins_as_the_tokenizer_begins_a_text(
    llama_folder: Path, own_tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    template: str | None, bos: str, begins: bool,
) -> None:  # fmt: skip
    from lm_eval.models.huggingface import HFLM

    folder = shutil.copytree(llama_folder, tmp_path / "model")
    read: list[list[int]] = []
    tiny.make_tokenizer(template).save_pretrained(folder)
    real = HFLM._loglikelihood_tokens

    def noted(self: HFLM, requests: list[Any], **options: Any) -> Any:
        read.extend(context for _, context, _ in requests)
        return real(self, requests, **options)

    monkeypatch.setattr(HFLM, "_loglikelihood_tokens", noted)
    scored = secateur.evaluate(folder, tasks="herons", include_path=own_tasks, limit=2, bos=bos)
    assert [context.count(1) for context in read] == [int(begins)] * 4
    assert all(context[0] == 1 for context in read) == begins
    assert scored.bos == ("none" if bos == "none" else "window")


def test_a_model_that_lacks_a_matrix_is_refused(
    llama_folder: Path, long_text: Path, tmp_path: Path
) -> None:
    """transformers would draw the matrix at random, and the score with it."""
    folder = shutil.copytree(llama_folder, tmp_path / "lacking")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 weights are missing.*layers\.1\.mlp\.up_proj"):
        secateur.evaluate(folder, tasks="continuation", text=long_text, limit=4)


def test_the_same_question_twice_gives_the_same_numbers(
    asked: TaskEvaluation, sparse_folder: Path, llama_folder: Path, long_text: Path
) -> None:
    again = secateur.evaluate(
        sparse_folder, tasks="continuation", against=llama_folder, text=long_text, limit=40
    )
    assert again.scores == tuple(s for s in asked.scores if s.task == "continuation")


def test_the_error_of_the_difference_is_paired() -> None:
    def results(values: list[float]) -> dict[str, Any]:
        return {
            "results": {"t": {"acc,none": statistics.mean(values), "acc_stderr,none": 0.1,
                              "sample_len": len(values), "alias": "t"}},
            "samples": {"t": [{"doc_id": i, "filter": "none", "acc": v}
                              for i, v in enumerate(values)]},
            "higher_is_better": {"t": {"acc": True}}, "n-shot": {"t": 0}, "versions": {"t": 1},
        }  # fmt: skip

    here, there = [1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 0.0, 1.0]
    (score,) = read_scores("t", results(here), results(there))
    assert score.difference == -0.25
    assert score.difference_error == pytest.approx(statistics.stdev([0, -1, 0, 0]) / 2)
    assert score.errors_apart == pytest.approx(-0.25 / 0.25)
    (alone,) = read_scores("t", results(here), None)
    assert alone.dense is alone.difference is alone.errors_apart is None


def test_what_was_scored_enters_the_record_once(
    asked: TaskEvaluation, sparse_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "run.json").write_bytes((sparse_folder / "run.json").read_bytes())
    before = read_record(tmp_path)
    assert before is not None
    add_to_record(tmp_path, asked, before)
    record = add_to_record(tmp_path, asked, before)
    assert record == read_record(tmp_path)
    assert record.tasks == (asked,)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    with pytest.raises(CheckpointError, match="another model was put here while"):
        add_to_record(tmp_path, asked, before.model_copy(update={"created": "earlier"}))
    (tmp_path / "run.json").unlink()
    with pytest.raises(CheckpointError, match="no run record"):
        add_to_record(tmp_path, asked, before)


@pytest.mark.parametrize(
    ("names", "options", "fault"),
    [
        ("hellaswog", {}, "unknown task 'hellaswog'.*did you mean 'hellaswag'"),
        ("continuation", {}, "made from held-out text; try --text"),
        (" , ", {}, "no task in --tasks"),
        ("herons", {"include_path": "/nowhere"}, "no such folder in --include-path /nowhere"),
    ],
)
def test_a_fault_is_one_line(
    llama_folder: Path, names: str, options: dict[str, Any], fault: str
) -> None:
    with pytest.raises(RecipeError, match=fault):
        secateur.evaluate(llama_folder, tasks=names, **options)


def test_every_task_of_the_suites_is_known_to_lm_eval() -> None:
    known = {*_published().all_tasks, "continuation"}
    assert known.issuperset(task for suite in SUITES.values() for task in suite)


def test_data_out_of_reach_is_one_line() -> None:
    with pytest.raises(DataError, match=r"cannot be loaded .* in arc_easy") as caught:
        TaskSet(["arc_easy"])
    assert "\n" not in str(caught.value)


def test_without_lm_eval_the_extra_is_named(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(RecipeError, match=r"pip install 'secateur\[tasks\]'"):
        secateur.evaluate(llama_folder, tasks="arc_easy")
