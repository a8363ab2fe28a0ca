"""Many runs side by side: nothing done twice, nothing mixed up, numbers those of a run alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import secateur
from secateur.checkpoint import StreamedModel
from secateur.comparison.afterwards import recover_all
from secateur.comparison.combinations import plan_runs
from secateur.comparison.runs import Run, run_comparison
from secateur.comparison.settings import ComparisonSettings
from secateur.errors import OutputError, RecipeError
from secateur.pruning import pipeline
from secateur.recipe import Recipe
from secateur.record import RunRecord, read_record
from secateur.reporting import side_by_side
from tiny import BLOCKS, make_model, make_tokens

METHODS = ["magnitude", "wanda", "sparsegpt", "gblm", "wanda++"]


def options(model: Path, tokens_file: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model": str(model), "calibration": str(tokens_file), "text": str(tokens_file),
        "samples": 6, "sequence_length": 16, "regional": {"rounds": 1}, **changes,
    }  # fmt: skip


def planned(out: Path, values: dict[str, Any], **kinds: Any) -> list[Run]:
    keep_models = kinds.pop("keep_models", False)
    asked = {"out": str(out), "methods": METHODS, "patterns": ["2:4", "50%"], **kinds}
    without = {key: value for key, value in values.items() if key != "regional"}
    return plan_runs(ComparisonSettings.build(asked), without, keep_models=keep_models)


def outcome(record: RunRecord) -> list[Any]:
    """What must not depend on how a run came about."""
    facts = []
    for block in record.blocks:
        matrices = [matrix.model_dump() for matrix in block.matrices]
        facts.append((block.index, block.output_error, matrices))
    [evaluation] = record.evaluations
    return [facts, evaluation.model_dump(exclude={"seconds"})]


def test_every_run_is_what_it_is_alone(
    llama_folder: Path, tokens_file: Path, tmp_path: Path
) -> None:
    values = options(llama_folder, tokens_file)
    runs = planned(tmp_path, values)
    assert len(runs) == len(METHODS) * 2
    for run, record, repeated in run_comparison(runs):
        assert not repeated
        assert read_record(run.folder) == record
        alone = pipeline.run_pruning(run.recipe)
        assert outcome(record) == outcome(alone), run.name


def test_what_runs_share_is_made_once(
    llama_folder: Path, tokens_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def counted(name: str, owner: Any) -> None:
        real = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            made.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    from secateur.pruning import dense_passes, inputs, prepare

    counted("open_model", prepare)
    counted("load_calibration", inputs)
    counted("load_heldout", inputs)
    counted("pass_through", dense_passes)
    counted("full_gradients", dense_passes)
    counted("observe", dense_passes)  # of block 0 only; the others are observed by the sweep
    runs = planned(tmp_path, options(llama_folder, tokens_file))
    assert len(list(run_comparison(runs))) == len(runs)
    assert sorted(made) == [
        "full_gradients", "load_calibration", "load_heldout", "observe", "open_model",
        "pass_through",
    ]  # fmt: skip


def test_an_interrupted_comparison_repeats_no_finished_run(
    llama_folder: Path, tokens_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = planned(tmp_path, options(llama_folder, tokens_file), methods=["wanda", "gblm"])
    real, pruned = pipeline.run_pruning, list[str]()

    def prune(recipe: Recipe, *args: Any) -> RunRecord:
        if len(pruned) == 2:
            raise KeyboardInterrupt
        pruned.append(f"{recipe.method} {recipe.pattern}")
        return real(recipe, *args)

    monkeypatch.setattr(pipeline, "run_pruning", prune)
    with pytest.raises(KeyboardInterrupt):
        list(run_comparison(runs))
    before = [(run.folder / "run.json").read_bytes() for run in runs[:2]]
    assert not (runs[2].folder / "run.json").exists()

    pruned.clear()
    repeated = [again for _, _, again in run_comparison(runs)]
    assert repeated == [True, True, False, False]
    assert pruned == ["gblm 2:4", "gblm 50%"]
    assert [(run.folder / "run.json").read_bytes() for run in runs[:2]] == before
    pruned.clear()
    assert all(again for _, _, again in run_comparison(runs))
    assert pruned == []


def test_a_run_of_another_recipe_is_not_taken_for_this_one(
    llama_folder: Path, tokens_file: Path, tmp_path: Path
) -> None:
    values = options(llama_folder, tokens_file)
    kinds: dict[str, Any] = {"methods": ["wanda"], "patterns": ["2:4"]}
    list(run_comparison(planned(tmp_path, values, **kinds)))
    other = planned(tmp_path, {**values, "samples": 4}, **kinds)
    with pytest.raises(OutputError, match=r"samples 6 in .*; wanted 4.*--overwrite"):
        list(run_comparison(other))
    [(_, record, repeated)] = run_comparison(other, overwrite=True)
    assert not repeated
    assert record.recipe["samples"] == 4


def test_kept_models_are_whole_and_measured_the_same(
    llama_folder: Path, tokens_file: Path, tmp_path: Path
) -> None:
    values = options(llama_folder, tokens_file)
    kinds: dict[str, Any] = {"methods": ["wanda++"], "patterns": ["2:4"]}
    [(_, measured, _)] = run_comparison(planned(tmp_path / "a", values, **kinds))
    [(run, kept, _)] = run_comparison(planned(tmp_path / "b", values, keep_models=True, **kinds))
    assert outcome(kept) == outcome(measured)
    found = secateur.evaluate(
        run.folder, text=tokens_file, against=llama_folder, sequence_length=16
    )
    [along] = kept.evaluations
    assert found.model_dump(exclude={"seconds"}) == along.model_dump(exclude={"seconds"})
    (run.folder / "model.safetensors.index.json").unlink()
    (run.folder / "config.json").unlink()  # half a folder is not a finished run
    assert run.finished() is None


@pytest.fixture
def other_text(tmp_path: Path) -> Path:
    """Tokens that are not those of `tokens_file`."""
    path = tmp_path / "other.safetensors"
    save_file({"input_ids": make_tokens(seed=1)}, path)
    return path


@pytest.mark.parametrize("keep_models", [False, True])
def test_every_text_is_measured_as_it_is_alone(
    keep_models: bool, llama_folder: Path, tokens_file: Path, other_text: Path, tmp_path: Path
) -> None:
    values = options(llama_folder, tokens_file, also_text=[str(other_text)], windows=5)
    kinds: dict[str, Any] = {"methods": ["wanda", "gblm"], "patterns": ["2:4"]}
    for run, both, _ in run_comparison(planned(tmp_path, values, keep_models=keep_models, **kinds)):
        for text, found in zip((tokens_file, other_text), both.evaluations, strict=True):
            alone = run.recipe.model_copy(update={"text": str(text), "also_text": [], "out": None})
            assert found.protocol.source == str(text)
            assert found.protocol.sequences == 5
            (expected,) = pipeline.run_pruning(alone).evaluations
            assert found.model_dump(exclude={"seconds"}) == expected.model_dump(exclude={"seconds"})
    first, second = both.evaluations
    assert first.perplexity != second.perplexity
    assert first.dense_perplexity != second.dense_perplexity


def test_a_recovered_model_is_measured_on_every_text(
    llama_folder: Path, tokens_file: Path, other_text: Path, tmp_path: Path
) -> None:
    values = options(llama_folder, tokens_file, also_text=[str(other_text)], samples=4)
    kinds: dict[str, Any] = {"methods": ["wanda"], "patterns": ["2:4"]}
    runs = planned(tmp_path / "out", values, keep_models=True, **kinds)
    ((_, pruned, _),) = run_comparison(runs)
    file = tmp_path / "training.safetensors"
    save_file({"input_ids": make_tokens(60)}, file)
    trained = [
        Run(run.name, run.folder, run.recipe.model_copy(update={"calibration": str(file)}))
        for run in runs
    ]
    ((run, recovered, _),) = recover_all(trained, 1, "lm")
    assert recovered.recovery is not None
    (found,) = recovered.recovery.also
    alone = secateur.evaluate(run.folder, text=other_text, sequence_length=16)
    assert found.model_dump(exclude={"seconds"}) == alone.model_dump(exclude={"seconds"})
    (comparison,) = side_by_side([pruned, recovered])  # one comparison: the texts are the same
    assert [row.name for row in comparison.rows] == ["wanda", "wanda (recovered, lm)"]
    assert [text.dense for text in comparison.texts] == [
        scored.dense_perplexity for scored in pruned.evaluations
    ]
    ((_, again, repeated),) = recover_all(trained, 1, "lm")
    assert repeated
    assert again == recovered


def test_a_run_from_before_an_option_was_there_is_found(
    llama_folder: Path, tokens_file: Path, tmp_path: Path
) -> None:
    values = options(llama_folder, tokens_file)
    kinds: dict[str, Any] = {"methods": ["magnitude"], "patterns": ["2:4"]}
    (run,) = planned(tmp_path, values, **kinds)
    list(run_comparison([run]))
    path = run.folder / "run.json"
    record = json.loads(path.read_text())
    assert record["settings"].pop("also_text") == []
    path.write_text(json.dumps(record))
    assert run.finished() is not None


def test_magnitude_runs_for_one_seed_only(
    llama_folder: Path, tokens_file: Path, tmp_path: Path
) -> None:
    names = [
        run.name
        for run in planned(
            tmp_path, options(llama_folder, tokens_file),
            methods=["magnitude", "wanda"], patterns=["4:8"], seeds=[3, 5],
        )
    ]  # fmt: skip
    assert names == ["magnitude_4of8_seed3", "wanda_4of8_seed3", "wanda_4of8_seed5"]


def test_what_is_named_twice_is_one_run(llama_folder: Path, tmp_path: Path) -> None:
    """A pattern in two spellings, too: two runs in one folder could not be repeated."""
    runs = planned(
        tmp_path,
        {"model": str(llama_folder), "text": "builtin"},
        methods=["magnitude", "magnitude"],
        patterns=["50%", "0.5", ".50", "2:4", "2 : 4", "33.3%", "0.333"],
        seeds=[0, 0],
    )
    assert [run.recipe.pattern for run in runs] == ["50%", "2:4", "33.3%"]
    assert len({run.folder for run in runs}) == len(runs)


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        ({"methods": []}, "no method"),
        ({"patterns": []}, "no pattern"),
        ({"seeds": []}, "no seed"),
        ({"methods": ["wnada"]}, "did you mean 'wanda'"),
        ({"patterns": ["5:4"]}, "5:4"),
        ({"seeds": [-1]}, "seed"),
    ],
)
def test_a_comparison_that_makes_no_sense_is_refused(
    kinds: dict[str, Any], told: str, llama_folder: Path, tokens_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(secateur.SecateurError, match=told):
        planned(tmp_path / "out", options(llama_folder, tokens_file), **kinds)
    assert not (tmp_path / "out").exists()


def test_a_comparison_needs_held_out_text(
    llama_folder: Path, tokens_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="--text"):
        planned(tmp_path, options(llama_folder, tokens_file, text=None))


# --- a run that measures itself ---


def test_perplexity_as_blocks_pass_is_that_of_the_folder(
    llama_folder: Path, tokens_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    record = secateur.prune(
        llama_folder, method="wanda", calibration=tokens_file, samples=6, sequence_length=16,
        text=str(tokens_file), out=out,
    )  # fmt: skip
    found = secateur.evaluate(out, text=tokens_file, against=llama_folder, sequence_length=16)
    dense = secateur.evaluate(llama_folder, text=tokens_file, sequence_length=16)
    [along] = record.evaluations
    assert along.perplexity == found.perplexity
    assert along.divergence == found.divergence
    assert along.dense_perplexity == dense.perplexity
    assert along.perplexity != along.dense_perplexity


def test_a_model_in_memory_is_measured_the_same(
    llama_folder: Path, tokens: Tensor, tokens_file: Path, tmp_path: Path
) -> None:
    same: dict[str, Any] = {
        "method": "wanda++", "samples": 6, "sequence_length": 16, "text": str(tokens_file),
    }  # fmt: skip
    model = make_model("llama")
    model.save_pretrained(tmp_path / "model")
    folder = secateur.prune(
        tmp_path / "model", calibration=tokens_file, out=tmp_path / "out", **same
    )
    memory = secateur.prune(model, calibration=tokens, **same)
    assert memory.evaluations[0].perplexity == pytest.approx(
        folder.evaluations[0].perplexity, rel=1e-6
    )
    assert memory.evaluations[0].dense_perplexity != memory.evaluations[0].perplexity


def test_only_measuring_writes_nothing(
    llama_folder: Path, tokens_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(llama_folder.iterdir())
    record = pipeline.run_pruning(
        Recipe.build({**options(llama_folder, tokens_file), "method": "wanda++"})
    )
    assert len(record.blocks) == BLOCKS
    assert record.sparsity == 0.5
    assert sorted(llama_folder.iterdir()) == before
    assert list(tmp_path.iterdir()) == []


def test_neither_folder_nor_text_is_refused(llama_folder: Path, tokens_file: Path) -> None:
    recipe = Recipe.build(options(llama_folder, tokens_file, text=None))
    with pytest.raises(RecipeError, match="--out"):
        pipeline.run_pruning(recipe)


# --- the output error of a matrix ---


def test_error_of_a_matrix_is_that_of_its_own_output(
    llama_folder: Path, tokens_file: Path, tokens: Tensor, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    record = secateur.prune(
        llama_folder, method="wanda", calibration=tokens_file, samples=6, sequence_length=16,
        out=out,
    )  # fmt: skip
    from secateur.checkpoint import Checkpoint, find_matrices

    dense = StreamedModel(Checkpoint(llama_folder), torch.device("cpu"), torch.float32)
    sparse = StreamedModel(Checkpoint(out), torch.device("cpu"), torch.float32)
    calibration = json.loads((out / "run.json").read_text())["calibration"]
    assert calibration["sequences"] == 6
    with dense.open_surroundings() as model:
        hidden = model.get_input_embeddings()(tokens[:6, :16])  # [6, 16, width]
    inputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[name] = args[0].flatten(0, 1)

        return hook

    with dense.open_block(0) as block, sparse.open_block(0) as pruned, torch.no_grad():
        matrices, changed = find_matrices(block), find_matrices(pruned)
        for matrix in matrices:
            matrix.owner.register_forward_hook(keep(matrix.name))
        rope = dense.model.model.rotary_emb(hidden, torch.arange(16)[None])
        block(hidden, position_embeddings=rope)
        for matrix, other, told in zip(matrices, changed, record.blocks[0].matrices, strict=True):
            x = inputs[matrix.name]
            lost = (x @ matrix.read().T - x @ other.read().T).norm() / (x @ matrix.read().T).norm()
            assert told.output_error == pytest.approx(float(lost), rel=1e-4)
            assert 0 < told.output_error < 1


def test_runs_of_two_sessions_are_of_one_model(
    llama_folder: Path, tokens_file: Path, tmp_path: Path
) -> None:
    """The files decide, not their name: a model may move, and may not change."""
    model, moved = tmp_path / "model", tmp_path / "moved"
    shutil.copytree(llama_folder, model)
    kinds: dict[str, Any] = {"methods": ["magnitude"], "patterns": ["2:4"]}
    out = tmp_path / "out"
    list(run_comparison(planned(out, options(model, tokens_file), **kinds)))
    model.rename(moved)
    kinds["patterns"] = ["2:4", "50%"]
    runs = planned(out, options(moved, tokens_file), **kinds)
    ((_, first, again), (_, second, _)) = run_comparison(runs)
    assert again
    assert first.source_files == second.source_files
    (comparison,) = side_by_side([first, second])
    assert len(comparison.rows) == 2

    weights = moved / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    more = planned(out, options(moved, tokens_file), **{**kinds, "patterns": ["50%", "4:8"]})
    with pytest.raises(OutputError, match=r"this run has source file model\.safetensors"):
        list(run_comparison(more))
    (other,) = planned(tmp_path / "b", options(moved, tokens_file), methods=["magnitude"],
                       patterns=["2:4"])  # fmt: skip
    ((_, third, _),) = run_comparison([other])
    assert len(side_by_side([first, third])) == 2


def test_a_record_is_not_written_beside_another_run(
    llama_folder: Path, tokens_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: dict[str, Any] = {"methods": ["magnitude"], "patterns": ["2:4", "50%"]}
    values = options(llama_folder, tokens_file)
    runs = planned(tmp_path, values, **kinds)
    done = run_comparison(runs)
    next(done)
    runs[1].folder.mkdir()
    (runs[1].folder / "run.json").write_text("another's")
    with pytest.raises(OutputError, match="another run was written here meanwhile"):
        next(done)
    assert (runs[1].folder / "run.json").read_text() == "another's"
    (runs[0].folder / "config.json").write_text("{}")
    with pytest.raises(OutputError, match=r"a model lies where .*--keep-models"):
        list(run_comparison(runs, overwrite=True))
