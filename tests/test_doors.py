"""The doors of the library: never hidden, pinned, and each does what its command does."""

from __future__ import annotations

import doctest
import inspect
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import secateur
from secateur.comparison.pipeline import FinishedRun
from secateur.comparison.settings import ComparisonSettings, options_for, shared_keys
from secateur.errors import RecipeError
from secateur.evaluation import EvaluationSettings
from secateur.inference import BenchSettings
from secateur.recipe import Recipe
from secateur.recipe.setting import Settings, setting_of
from secateur.record import read_record
from secateur.record.check_settings import CheckSettings
from secateur.recovery import Recovery
from tiny import Command

DOORS = tuple(name for name in secateur.__all__ if inspect.isfunction(getattr(secateur, name)))

# --- no room hides a door ---

EVERY_MODULE_AT_RANDOM = """
import importlib, pkgutil, random, sys, warnings
warnings.simplefilter("ignore")
seed, doors = int(sys.argv[1]), sys.argv[2:]
import secateur
assert not {"typer", "peft", "lm_eval"} & set(sys.modules), "loaded by import secateur"
names = sorted(m.name for m in pkgutil.walk_packages(secateur.__path__, "secateur."))
names = [name for name in names if name != "secateur.__main__"]
random.Random(seed).shuffle(names)
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as fault:
        if (fault.name or "").startswith("secateur"):
            raise
    for door in doors:
        found = getattr(secateur, door)
        assert callable(found), f"seed {seed}: {name} hides {door}"
        assert found is getattr(sys.modules["secateur.api"], door), f"seed {seed}: {name}, {door}"
try:
    secateur.check("/nowhere")
except secateur.SecateurError:
    print(len(names))
"""


def test_no_import_hides_a_door() -> None:
    seed = random.randrange(1_000_000)  # another order each time; a failure names it
    done = subprocess.run(
        [sys.executable, "-c", EVERY_MODULE_AT_RANDOM, str(seed), *DOORS],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    assert int(done.stdout) > 100


# --- what is public ---

SIGNATURES = {
    "accelerate_inference": "(model: 'nn.Module', *, vectors: 'Sequence[int]' = (1, 4, 16),"
    " cuda_graphs: 'bool' = False) -> 'InferenceReport'",
    "check": "(model: 'Location', *, pattern: 'str | float | None' = None,"
    " trust_remote_code: 'bool' = False, **options: 'Any') -> 'Proof'",
    "cliff": "(model: 'Location', *, text: 'Location', out: 'Location | None' = None,"
    " progress: 'Progress | None' = None, **options: 'Any') -> 'Cliff'",
    "compare": "(model: 'Location', *, out: 'Location',"
    " methods: 'str | Sequence[str] | None' = None, progress: 'Progress | None' = None,"
    " each: 'Callable[[FinishedRun], None] | None' = None, **options: 'Any')"
    " -> 'ComparisonResult'",
    "evaluate": "(model: 'Location', *, text: 'Location | None' = None,"
    " tasks: 'str | None' = None, images: 'Location | None' = None,"
    " progress: 'Progress | None' = None, **options: 'Any')"
    " -> 'Evaluation | TaskEvaluation | Classification'",
    "load": "(model: 'Location', *, dtype: 'torch.dtype | None' = None,"
    " device: 'str' = 'cpu', revision: 'str | None' = None,"
    " trust_remote_code: 'bool' = False) -> 'PreTrainedModel'",
    "pack": "(model: 'str | Path', out: 'str | Path', *, overwrite: 'bool' = False,"
    " revision: 'str | None' = None,"
    " trust_remote_code: 'bool' = False, progress: 'Progress | None' = None) -> 'Packing'",
    "pack_gguf": "(model: 'str | Path', out: 'str | Path', *, type: 'GgufType | str' ="
    " <GgufType.F16: 'F16'>, overwrite: 'bool' = False, revision: 'str | None' = None,"
    " progress: 'Progress | None' = None) -> 'Packing'",
    "prune": "(model: 'Location | PreTrainedModel', *, method: 'str | None' = None,"
    " pattern: 'str | float | None' = None, "
    "calibration: 'Location | Sequence[Location] | Tensor | Mapping[str, Any] | None' = None,"
    " out: 'Location | None' = None, tokenizer: 'PreTrainedTokenizerBase | None' = None,"
    " progress: 'Progress | None' = None, **options: 'Any') -> 'RunRecord'",
    "recover": "(model: 'Location', *, text: 'Location', out: 'Location',"
    " progress: 'Progress | None' = None, **options: 'Any') -> 'RunRecord'",
    "report": "(places: 'Location | Sequence[Location]', *, out: 'Location | None' = None,"
    " format: 'ReportFormat' = 'html', overwrite: 'bool' = False) -> 'Report'",
    "unpack": "(model: 'str | Path', out: 'str | Path', *, overwrite: 'bool' = False,"
    " revision: 'str | None' = None,"
    " trust_remote_code: 'bool' = False, progress: 'Progress | None' = None) -> 'Packing'",
}
"""Every door and how it is called; a change here is a change for those who call it."""
NAMES = {"RunRecord", "SecateurError", "__version__"}
"""What is public beside the doors."""


def test_the_public_names_and_signatures_are_these() -> None:
    assert set(secateur.__all__) == {*SIGNATURES, *NAMES}
    signatures = {name: str(inspect.signature(getattr(secateur, name))) for name in DOORS}
    assert signatures == SIGNATURES


# --- the examples ---


def test_the_example_of_every_door_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order in which they follow each other: others read the folder that `prune` writes."""
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text(inspect.getsource(doctest), encoding="utf-8")
    ordered = ["prune", "pack", "unpack", "compare"]
    ordered += [name for name in DOORS if name not in ordered]
    runner, finder = doctest.DocTestRunner(), doctest.DocTestFinder(recurse=False)
    for name in ordered:
        said: list[str] = []
        (test,) = finder.find(getattr(secateur, name), name, globs={"secateur": secateur})
        assert test.examples, f"{name} has no example"
        failed = runner.run(test, out=said.append).failed
        assert failed == 0, "".join(said)


@pytest.mark.parametrize("name", DOORS)
def test_every_door_says_what_it_takes_and_gives(name: str) -> None:
    door = getattr(secateur, name)
    text = inspect.getdoc(door) or ""
    for parameter in inspect.signature(door).parameters:
        assert f"{parameter}:" in text or f"{parameter}," in text, parameter
    assert "Returns:" in text
    assert "Raises:" in text


# --- a door does what its command does ---


@pytest.fixture(scope="module")
def sparse(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama, 2:4. Not to be written to."""
    out = tmp_path_factory.mktemp("sparse") / "llama"
    secateur.prune(llama_folder, method="magnitude", out=out)
    return out


def test_evaluate_gives_what_the_command_prints(
    command: Command, sparse: Path, llama_folder: Path, tokens_file: Path
) -> None:
    measured = secateur.evaluate(sparse, text=tokens_file, against=llama_folder, sequence_length=16)
    status, out, err = command(
        "evaluate", sparse, "--text", tokens_file, "--against", llama_folder,
        "--sequence-length", 16, "--json",
    )  # fmt: skip
    assert status == 0, err
    printed = json.loads(out)
    assert {**measured.model_dump(mode="json"), "seconds": printed["seconds"]} == printed
    assert measured.divergence is not None
    assert measured.divergence > 0


def test_check_gives_what_the_command_prints(command: Command, sparse: Path) -> None:
    proof = secateur.check(sparse)
    status, out, err = command("check", sparse, "--json")
    assert status == 0, err
    assert json.loads(out) == json.loads(json.dumps(proof.as_dict()))
    assert proof.complaint is None
    complaint = secateur.check(sparse, pattern=0.75).complaint
    assert complaint is not None
    assert "are not 75%" in complaint


def test_compare_gives_every_run_and_writes_the_tables(
    command: Command, llama_folder: Path, tokens_file: Path, tmp_path: Path
) -> None:
    told: list[FinishedRun] = []
    options: dict[str, Any] = {"text": tokens_file, "calibration": tokens_file, "samples": 4}
    done = secateur.compare(
        llama_folder, out=tmp_path / "table", methods="magnitude,wanda", each=told.append,
        sequence_length=16, windows=4, **options,
    )  # fmt: skip
    assert [run.name for run in told] == ["magnitude_2of4_seed0", "wanda_2of4_seed0"]
    assert [(run.number, run.total, run.repeated) for run in told] == [(1, 2, False), (2, 2, False)]
    assert done.records == tuple(run.record for run in told)
    for run in told:
        assert read_record(tmp_path / "table" / "runs" / run.name) == run.record
    assert "<html" in done.report.read_text()
    assert [path.name for path in done.tables] == ["table.md", "table.tex", "table.csv"]
    page, *tables = (path.read_bytes() for path in (done.report, *done.tables))
    status, out, err = command(
        "compare", llama_folder, "--out", tmp_path / "table", "--methods", "magnitude,wanda",
        "--sequence-length", 16, "--windows", 4, "--text", tokens_file, "--calibration",
        tokens_file, "--samples", 4,
    )  # fmt: skip
    assert status == 0, err
    assert out.count("found done") == 2
    assert [path.read_bytes() for path in (done.report, *done.tables)] == [page, *tables]

    written = secateur.report(tmp_path / "table", format="csv")
    assert (written.path, written.text.encode()) == (None, tables[2].replace(b"\r\n", b"\n"))
    status, out, _ = command("report", tmp_path / "table", "--format", "csv")
    assert (status, out) == (0, written.text)
    written = secateur.report([tmp_path / "table"], out=tmp_path / "page.html")
    assert written.path == tmp_path / "page.html"
    assert written.path.read_bytes() == page


def test_recover_gives_what_the_command_writes(
    command: Command, sparse: Path, tokens_file: Path, tmp_path: Path
) -> None:
    record = secateur.recover(
        sparse, text=tokens_file, out=tmp_path / "door", steps=2, validation=2, sequence_length=16,
        samples=4, batch_size=2,
    )  # fmt: skip
    status, _, err = command(
        "recover", sparse, "--text", tokens_file, "--out", tmp_path / "command", "--steps", 2,
        "--validation", 2, "--sequence-length", 16, "--samples", 4, "--batch-size", 2,
    )  # fmt: skip
    assert status == 0, err
    assert record.recovery is not None
    assert record.recovery.steps == 2
    assert read_record(tmp_path / "door") == record
    weights = sorted((tmp_path / "door").glob("*.safetensors"))
    assert weights
    for path in weights:
        assert path.read_bytes() == (tmp_path / "command" / path.name).read_bytes()
    assert secateur.check(tmp_path / "door").complaint is None


# --- the settings behind the doors ---


@pytest.mark.parametrize(
    "settings",
    [CheckSettings, EvaluationSettings, ComparisonSettings, BenchSettings, Recovery, Recipe],
)
def test_every_field_has_a_mark_and_a_text(settings: type[Settings]) -> None:
    for name, field in settings.model_fields.items():
        assert setting_of(settings, name).mark
        assert field.description, name


@pytest.mark.parametrize(
    ("settings", "values", "fault"),
    [
        (EvaluationSettings, {}, "model is missing"),
        (EvaluationSettings, {"model": "m"}, "nothing to evaluate on; try text, tasks or images"),
        (EvaluationSettings, {"text": "a", "images": "b"}, "text and images .* leave one out"),
        (EvaluationSettings, {"tasks": "a", "images": "b"}, "tasks and images .* leave one out"),
        (EvaluationSettings, {"text": "a", "limit": 3}, "limit goes with tasks or images"),
        (EvaluationSettings, {"text": "a", "include_path": "b"}, "include_path goes with tasks"),
        (EvaluationSettings, {"text": "a", "record": True}, "record goes with tasks"),
        (EvaluationSettings, {"tasks": "a", "windows": 3}, "windows are those of text"),
        (EvaluationSettings, {"text": "a", "agianst": "b"}, "'agianst'.*did you mean 'against'"),
        (
            EvaluationSettings,
            {"text": "a", "windows": 0, "dtype": "int8"},
            "2 faults in the options of evaluate: windows=0, .* | dtype='int8'",
        ),
        (ComparisonSettings, {"out": "o", "limit": 5}, "limit are of tasks"),
        (ComparisonSettings, {"out": "o", "seeds": "0,x"}, "seeds='0,x', wanted whole numbers"),
        (BenchSettings, {"batches": "1,0"}, "batches='1,0', wanted numbers from 1"),
        (BenchSettings, {"batches": []}, "batches='', wanted numbers"),
        (BenchSettings, {"repeats": 0}, "repeats=0"),
    ],
)
def test_a_fault_is_one_line(settings: type[Settings], values: dict[str, Any], fault: str) -> None:
    model = {} if settings is ComparisonSettings or not values else {"model": "m"}
    with pytest.raises(RecipeError, match=fault) as caught:
        settings.build({**model, **values})
    assert "\n" not in str(caught.value)


def test_commas_and_lists_say_the_same() -> None:
    written = ComparisonSettings.build({"out": "o", "methods": "wanda, gblm,", "seeds": "0,2"})
    listed = ComparisonSettings.build(
        {"out": Path("o"), "methods": ["wanda", "gblm"], "seeds": [0, 2]}
    )
    assert written == listed
    assert listed.seeds == (0, 2)
    assert ComparisonSettings.build({"out": "o", "seeds": 3}).seeds == (3,)


def test_compare_takes_every_key_of_a_recipe() -> None:
    own = {"method", "pattern", "patterns", "seed", "stages", "out", "overwrite", "quantize"}
    assert set(shared_keys()) == set(Recipe.model_fields) - own
    assert {"schedule", "images", "include", "exclude", "route_all", "gradients"} <= {
        *shared_keys()
    }


def test_an_option_of_some_methods_goes_to_those() -> None:
    shared = {
        "parameters": {"alpha": 10},
        "regional": {"rounds": 2},
        "gradients": "g",
        "samples": 3,
    }
    assert options_for("wanda", shared) == {"parameters": {}, "samples": 3}
    assert options_for("gblm", shared) == {
        "parameters": {"alpha": 10}, "gradients": "g", "samples": 3,
    }  # fmt: skip
    assert options_for("wanda++", shared)["regional"] == {"rounds": 2}


def test_compare_chooses_matrices_as_prune_does(
    llama_folder: Path, tokens_file: Path, tmp_path: Path
) -> None:
    done = secateur.compare(
        llama_folder, out=tmp_path, methods=["wanda"], text=tokens_file, calibration=tokens_file,
        samples=4, sequence_length=16, windows=4, exclude=["down_proj"], schedule="matrix",
        matrix_patterns={"q_proj": "1:4"},
    )  # fmt: skip
    [record] = done.records
    assert record.recipe["schedule"] == "matrix"
    zeros = {matrix.name: matrix.sparsity for block in record.blocks for matrix in block.matrices}
    assert {value for name, value in zeros.items() if "q_proj" in name} == {0.75}
    assert {value for name, value in zeros.items() if "k_proj" in name} == {0.5}
    assert not any(value for name, value in zeros.items() if "down_proj" in name)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"regional": {"rounds": 1}}, "regional concerns none of the methods wanda"),
        ({"parameters": {"alpah": 1}}, "none of the methods wanda has a parameter 'alpah'"),
        ({"gradients": "g"}, "gradients concerns none of the methods wanda"),
        (
            {"methods": "alps-ro", "quantize": "w4a16", "mend": True},
            "mend concerns none of the methods alps-ro",
        ),
        ({"quantize": "w5"}, "no scheme 'w5'"),
        ({"seeds": [True]}, r"seeds=\[True\], wanted a whole number"),
        ({"images": "i", "recover": 5}, "recover and tasks are for language models"),
        ({"images": "i", "tasks": "offline"}, "recover and tasks are for language models"),
        ({"text": None}, "no held-out text to measure on"),
        ({"smaples": 3}, "unknown key 'smaples'"),
        ({"method": "wanda"}, "unknown key 'method'"),
    ],
)
def test_compare_refuses_what_concerns_no_run(
    tokens_file: Path, tmp_path: Path, options: dict[str, Any], fault: str
) -> None:
    given = {"text": tokens_file, "calibration": tokens_file, "methods": "wanda", **options}
    with pytest.raises(RecipeError, match=fault):
        secateur.compare("nowhere", out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("places", "form", "fault"),
    [
        ([], "html", "no runs to report on"),
        (["runs"], "pdf", "unknown format 'pdf'; wanted one of"),
    ],
)
def test_report_refuses_nothing_and_an_unknown_format(
    places: list[str], form: Any, fault: str
) -> None:
    with pytest.raises(RecipeError, match=fault):
        secateur.report(places, format=form)


def test_a_path_may_be_given_as_one(tokens_file: Path) -> None:
    settings = EvaluationSettings.build({"model": "m", "text": tokens_file})
    assert settings.text == str(tokens_file)
