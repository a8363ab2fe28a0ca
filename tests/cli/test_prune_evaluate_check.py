"""The command: what it writes, prints and returns; and that bad input costs one line, no more."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, JetMoeConfig

from secateur import methods
from secateur.data import token_sha256
from secateur.record import RunRecord
from tiny import BLOCKS, Command, Outcome, fingerprint, make_model
from tiny import save as save_folder


@pytest.fixture
def refuse(command: Command, tmp_path: Path, llama_folder: Path) -> Callable[..., str]:
    """`refuse(*arguments)`: the error line of a command that must fail and leave no trace."""

    def call(*arguments: object, status: int = 2) -> str:
        before = everything(tmp_path), fingerprint(llama_folder)
        outcome = command(*arguments)
        assert outcome.status == status, outcome
        assert "Traceback" not in outcome.err + outcome.out
        lines = [line for line in outcome.err.splitlines() if not line.startswith("{")]
        assert [line.startswith("error: ") for line in lines] == [True], outcome.err
        assert (everything(tmp_path), fingerprint(llama_folder)) == before
        return lines[0]

    return call


def everything(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Names of all files and folders, hidden ones too, and the bytes of the files."""
    return sorted(str(path) for path in folder.rglob("*")), fingerprint(folder)


def pruning(model: object, out: object, tokens: object, *more: object) -> list[object]:
    """A short command line that prunes by Wanda."""
    given = ["--calibration", tokens, "--out", out, "--method", "wanda", "--sequence-length", 32]
    return ["prune", model, *given, *more]


# --- one real run, through `python -m secateur` ---


@pytest.fixture(scope="module")
def first(
    llama_folder: Path, tokens_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Outcome]:
    """The tiny Llama pruned by Wanda++ to 2:4 in a process of its own; not to be written to."""
    out = tmp_path_factory.mktemp("pruned") / "deep" / "llama"
    arguments = [
        "prune", llama_folder, "--calibration", tokens_file, "--out", out,
        "--sequence-length", 32, "--set", "regional.rounds=1", "--set", "alpha=1e2",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "secateur", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    return out, Outcome(done.returncode, done.stdout, done.stderr)


def test_prune_succeeds_and_says_so(first: tuple[Path, Outcome]) -> None:
    folder, outcome = first
    assert outcome.status == 0, outcome.err
    assert "pruned" in outcome.out
    assert "(50.00%)" in outcome.out
    assert f"written to {folder}\n" in outcome.out


def test_prune_logs_one_json_line_per_block(first: tuple[Path, Outcome]) -> None:
    _, outcome = first
    blocks = [event for event in outcome.events if event["event"] == "block"]
    assert [event["block"] for event in blocks] == list(range(BLOCKS))
    for event in blocks:
        assert (event["of"], event["blocks"], event["sparsity"]) == ("wanda++ 2:4", BLOCKS, 0.5)
        assert 0 < event["output_error"] < 1
        assert {"load", "observe", "prune", "propagate"} <= event["seconds"].keys()
    notices = [event["text"] for event in outcome.events if event["event"] == "notice"]
    assert len(notices) == 1  # 8 sequences, not 128
    assert "fewer than the 128" in notices[0]


def test_the_result_loads_and_keeps_what_it_had(
    first: tuple[Path, Outcome], llama_folder: Path
) -> None:
    folder, _ = first
    source = AutoModelForCausalLM.from_pretrained(llama_folder)
    pruned = AutoModelForCausalLM.from_pretrained(folder)
    assert pruned.dtype == source.dtype == torch.bfloat16
    assert pruned.generation_config.to_dict() == source.generation_config.to_dict()
    assert pruned.config.to_diff_dict() == source.config.to_diff_dict()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sentence = "The heron waits for a fish."
    assert tokenizer(sentence) == AutoTokenizer.from_pretrained(llama_folder)(sentence)
    assert tokenizer.decode(tokenizer(sentence).input_ids) == sentence
    for name, weight in pruned.state_dict().items():
        if "_proj" in name:
            zeros = (weight == 0).reshape(len(weight), -1, 4).sum(dim=-1)
            assert bool((zeros == 2).all()), name
        else:
            assert torch.equal(weight, source.state_dict()[name]), name
    copied = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    before, after = fingerprint(llama_folder), fingerprint(folder)
    assert {name: before[name] for name in copied} == {name: after[name] for name in copied}


def test_the_record_tells_everything(
    first: tuple[Path, Outcome], llama_folder: Path, tokens_file: Path, tokens: Tensor
) -> None:
    folder, _ = first
    record = RunRecord.model_validate_json((folder / "run.json").read_bytes())
    assert record.recipe["model"] == str(llama_folder)
    parameters = {"alpha": 100.0, "by_block": True, "competition": "row"}
    assert record.recipe["parameters"] == parameters
    assert record.recipe["regional"]["rounds"] == 1
    assert record.streamed
    assert record.dtype == "float32"
    assert record.calibration is not None
    assert record.calibration.token_sha256 == token_sha256(tokens)
    assert record.calibration.source == str(tokens_file)
    assert {"python", "secateur", "torch", "transformers"} <= record.versions.keys()
    assert record.versions["torch"] == torch.__version__
    assert record.peak_memory_bytes > 1e6
    assert [block.index for block in record.blocks] == list(range(BLOCKS))
    weights = load_file(folder / f"model-00002-of-0000{BLOCKS + 1}.safetensors")
    for matrix in record.blocks[0].matrices:
        assert matrix.holds
        assert matrix.sparsity == 0.5
        assert [matrix.rows, matrix.columns] == list(weights[matrix.name].shape)
        assert matrix.zeros == int((weights[matrix.name] == 0).sum())
    assert record.sparsity == 0.5


def test_nothing_hidden_stays_beside_the_result(first: tuple[Path, Outcome]) -> None:
    folder, _ = first
    assert os.listdir(folder.parent) == [folder.name]
    expected = {f"model-{n:05d}-of-{BLOCKS + 1:05d}.safetensors" for n in range(1, BLOCKS + 2)}
    assert {path.name for path in folder.glob("*.safetensors*")} == {
        *expected,
        "model.safetensors.index.json",
    }


# --- more runs ---


def test_two_runs_write_the_same_bytes(
    command: Command,
    first: tuple[Path, Outcome],
    llama_folder: Path,
    tokens_file: Path,
    tmp_path: Path,
) -> None:
    assert command(*pruning(llama_folder, tmp_path / "a", tokens_file)).status == 0
    assert command(*pruning(llama_folder, tmp_path / "b", tokens_file)).status == 0
    a, b = fingerprint(tmp_path / "a"), fingerprint(tmp_path / "b")
    assert {n for n in a if a[n] != b[n]} == {"run.json"}
    assert a != fingerprint(first[0])


@pytest.mark.parametrize("method", [method.name for method in methods.every()])
def test_every_method_from_text(
    command: Command, method: str, llama_folder: Path, text_folder: Path, tmp_path: Path
) -> None:
    outcome = command(
        "prune", llama_folder, "--method", method, "--pattern", "50%", "--out", tmp_path / "out",
        "--calibration", text_folder, "--samples", 4, "--sequence-length", 16,
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert command("check", tmp_path / "out", "--pattern", "50%").status == 0


def test_magnitude_needs_no_calibration(
    command: Command, llama_folder: Path, tmp_path: Path
) -> None:
    outcome = command("prune", llama_folder, "--method", "magnitude", "--out", tmp_path / "out")
    assert outcome.status == 0
    assert [event["output_error"] for event in outcome.events] == [None] * BLOCKS
    assert command("check", tmp_path / "out").status == 0


def test_a_recipe_file_and_flags_over_it(
    command: Command, llama_folder: Path, tokens_file: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {llama_folder}\nmethod: wanda++\npattern: 2:4\ncalibration: {tokens_file}\n"
        f"out: {tmp_path / 'out'}\nsequence_length: 32\nparameters: {{alpha: 5}}\n"
        "regional: {rounds: 1, samples: 2}\n",
        encoding="utf-8",
    )
    flags = ["--pattern", "4:8", "--set", "regional.samples=3", "--set", "competition=layer"]
    assert command("prune", "--recipe", recipe, *flags).status == 0
    told = RunRecord.model_validate_json((tmp_path / "out" / "run.json").read_bytes()).recipe
    assert (told["method"], told["pattern"]) == ("wanda++", "4:8")
    assert told["parameters"] == {"alpha": 5.0, "by_block": True, "competition": "layer"}
    assert (told["regional"]["rounds"], told["regional"]["samples"]) == (1, 3)


def test_long_sequences_are_clipped_with_a_notice(
    command: Command, llama_folder: Path, text_folder: Path, tmp_path: Path
) -> None:
    outcome = command(
        "prune", llama_folder, "--method", "wanda", "--calibration", text_folder,
        "--samples", 2, "--out", tmp_path / "out",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    notices = [event["text"] for event in outcome.events if event["event"] == "notice"]
    assert notices == ["sequences are 64 tokens, the most this model allows, not 2048"]
    record = RunRecord.model_validate_json((tmp_path / "out" / "run.json").read_bytes())
    assert list(record.notices) == notices
    assert record.calibration is not None
    assert record.calibration.sequence_length == 64


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    command: Command, llama_folder: Path, tokens_file: Path, tmp_path: Path
) -> None:
    before = everything(tmp_path), fingerprint(llama_folder)
    outcome = command(*pruning(llama_folder, tmp_path / "out", tokens_file, "--dry-run"))
    assert outcome.status == 0, outcome.err
    for said in ("LlamaForCausalLM", "wanda", "2:4 (50.00% zeros)", "8 sequences of 32 tokens",
                 "nothing was done"):  # fmt: skip
        assert said in outcome.out
    assert (everything(tmp_path), fingerprint(llama_folder)) == before


def test_overwrite_replaces_a_result_whole(
    command: Command, llama_folder: Path, tokens_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = pruning(llama_folder, out, tokens_file)
    assert command(*arguments).status == 0
    (out / "left-over.json").write_text("{}", encoding="utf-8")
    assert command(*arguments, "--pattern", "1:4", "--overwrite").status == 0
    assert not (out / "left-over.json").exists()
    assert command("check", out, "--pattern", "1:4").status == 0
    assert os.listdir(tmp_path) == ["out"]


def test_a_path_with_brackets_is_printed_as_it_is(
    command: Command, llama_folder: Path, tokens_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out [bold] [x]"
    outcome = command(*pruning(llama_folder, out, tokens_file))
    assert outcome.status == 0, outcome.err
    assert f"written to {out}\n" in outcome.out
    missing = tmp_path / "[red]" / "no[/]where"
    assert f"no model folder '{missing}'" in command("check", missing).err


# --- evaluate ---


def test_evaluate_prints_perplexity_and_protocol(
    command: Command, llama_folder: Path, text_folder: Path
) -> None:
    arguments = ["evaluate", llama_folder, "--text", text_folder, "--sequence-length", 32]
    printed = command(*arguments)
    found = json.loads(command(*arguments, "--json").out)
    assert printed.status == 0, printed.err
    assert f"perplexity  {found['perplexity']:.4f}" in printed.out
    assert "divergence" not in printed.out
    assert found["divergence"] is None
    assert found["protocol"]["sequence_length"] == 32
    assert found["protocol"]["token_sha256"][:12] in printed.out
    assert found["perplexity"] > 1


def test_evaluate_against_itself_and_against_the_dense_model(
    command: Command, first: tuple[Path, Outcome], llama_folder: Path, tokens_file: Path
) -> None:
    arguments = ["--text", tokens_file, "--sequence-length", 32, "--windows", 4]
    itself = command("evaluate", llama_folder, "--against", llama_folder, *arguments, "--json")
    assert json.loads(itself.out)["divergence"] == pytest.approx(0, abs=1e-6)
    pruned = command("evaluate", first[0], "--against", llama_folder, *arguments, "--json")
    assert json.loads(pruned.out)["divergence"] > 1e-3
    printed = command("evaluate", first[0], "--against", llama_folder, *arguments)
    assert "nats per token from" in printed.out


# --- check ---


def test_check_proves_the_result(command: Command, first: tuple[Path, Outcome]) -> None:
    outcome = command("check", first[0])
    assert outcome.status == 0, outcome.err
    assert outcome.out.count("holds") == 7
    assert "in all" in outcome.out
    proof = json.loads(command("check", first[0], "--json").out)
    assert (proof["pattern"], proof["holds"]) == ("2:4", True)
    assert proof["zeros"] * 2 == proof["weights"]
    assert len(proof["kinds"]) == 7


def test_check_counts_a_dense_model(command: Command, llama_folder: Path) -> None:
    outcome = command("check", llama_folder)
    assert outcome.status == 0, outcome.err
    assert "no pattern was asked for" in outcome.out
    assert json.loads(command("check", llama_folder, "--json").out)["holds"] is None


def test_check_names_the_matrix_with_one_weight_too_many(
    command: Command, refuse: Callable[..., str], first: tuple[Path, Outcome], tmp_path: Path
) -> None:
    folder = shutil.copytree(first[0], tmp_path / "corrupt")
    name = "model.layers.1.mlp.up_proj.weight"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shard = folder / index["weight_map"][name]
    tensors = load_file(shard)
    row, column = (tensors[name] == 0).nonzero()[100].tolist()
    tensors[name][row, column] = 1e-30  # zero in half precision, but not in the file
    save_file(tensors, shard, metadata={"format": "pt"})
    line = refuse("check", folder, status=1)
    assert f"1 matrices are not 2:4: {name} | not as they were written: {shard.name}" in line
    proof = json.loads(command("check", folder, "--json").out)
    assert proof["holds"] is False
    assert [kind["failing"] for kind in proof["kinds"] if kind["failing"]] == [[name]]


def test_check_counts_the_files_not_what_the_configuration_makes_of_them(
    refuse: Callable[..., str], save: Callable[..., Path], command: Command, tmp_path: Path
) -> None:
    """1e-9 is zero in float16, which the configuration asks for; it is not zero in the file."""
    folder, name = tmp_path / "out", "model.layers.1.mlp.up_proj.weight"
    source = save(make_model("llama", dtype=torch.float32))
    assert command("prune", source, "--method", "magnitude", "--out", folder).status == 0
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shard = folder / index["weight_map"][name]
    tensors = load_file(shard)
    tensors[name][tensors[name] == 0] = 1e-9
    save_file(tensors, shard, metadata={"format": "pt"})
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float16"}))
    assert name in refuse("check", folder, status=1)


# --- methods, help ---


def test_methods_lists_all(command: Command) -> None:
    printed, listed = command("methods"), json.loads(command("methods", "--json").out)
    known = dict.fromkeys((*methods.every(), *methods.every_remover()))
    assert [facts["name"] for facts in listed] == [method.name for method in known]
    for facts in listed:
        assert facts["name"] in printed.out
        assert facts["paper"] in printed.out
        assert all(f"{name}=" in printed.out for name in facts["parameters"])
    assert "regional.learning_rate=" in printed.out


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["prune", "--help"], ["evaluate", "--help"], ["check", "--help"]]
)
def test_help(command: Command, arguments: list[str]) -> None:
    outcome = command(*arguments)
    assert outcome.status == 0
    assert "Usage" in outcome.out
    assert outcome.err == ""


# --- where a result may go, and what is no model for it (all other refusals: test_bad_input.py) ---


def test_an_empty_folder_is_filled(
    command: Command, llama_folder: Path, tokens_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    assert command(*pruning(llama_folder, tmp_path / "out", tokens_file)).status == 0
    assert command("check", tmp_path / "out").status == 0


def test_experts_that_cannot_be_seen_are_refused_not_skipped(
    refuse: Callable[..., str], tokens_file: Path, tmp_path: Path
) -> None:
    config = JetMoeConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_key_value_heads=2, kv_channels=8, num_local_experts=4, num_experts_per_tok=2,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    source = save_folder(model, tmp_path / "model")
    line = refuse(*pruning(source, tmp_path / "out", tokens_file))
    assert "of the block's matrix parameters can be pruned" in line


# --- --debug (interruption: test_resume.py) ---


def test_debug_shows_where(command: Command) -> None:
    outcome = command("prune", "m", "--debug", "--method", "wnada")
    assert outcome.status == 2
    assert "Traceback" in outcome.err
    assert "RecipeError: " in outcome.err


def test_a_model_and_a_run_without_a_tokenizer_and_other_families(
    command: Command, tokens_file: Path, tmp_path: Path
) -> None:
    """GPT-2 has Conv1D, tied embeddings and learned positions."""
    source = save_folder(make_model("gpt2"), tmp_path / "gpt2")
    for path in source.glob("tokenizer*"):
        path.unlink()
    assert command(*pruning(source, tmp_path / "out", tokens_file)).status == 0
    assert command("check", tmp_path / "out").status == 0
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
