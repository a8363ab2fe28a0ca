"""Nothing of a person's is replaced, emptied or followed without their word."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.checkpoint import Checkpoint, Destination, OutputFolder, RunIdentity
from secateur.checkpoint.claim import claim_file
from secateur.checkpoint.durable import left_unfinished, replacing, write_text
from secateur.checkpoint.lock import alone_at
from secateur.checkpoint.streamed import StreamedModel
from secateur.errors import OutputError, SecateurError
from tiny import Command, fingerprint

CPU = torch.device("cpu")
Change = Callable[[Path], object]


def tree(folder: Path) -> list[tuple[object, ...]]:
    """Everything below a folder, with its times and where its links lead."""
    return [
        (path, path.lstat().st_mtime_ns, path.lstat().st_size, path.is_symlink())
        for path in [folder, *sorted(folder.rglob("*"))]
    ]


def full(folder: Path, name: str = "mine.txt") -> Path:
    folder.mkdir(parents=True)
    (folder / name).write_text("years of work")
    return folder


def linked(folder: Path) -> None:
    folder.symlink_to(full(folder.parent / "real"), target_is_directory=True)


def write(source: Path, out: Path, during: Change = lambda out: None, **options: Any) -> None:
    """Write a model as a run does; something happens before it gets its name."""
    model = StreamedModel(Checkpoint(source), CPU, torch.float32)
    with OutputFolder(Destination(out, source, **options)) as output:
        for index in range(len(model.blocks)):
            output.store_block(model, index, {})
        output.write_rest(model)
        output.seal()
        during(out)
        output.finish("{}\n")


@pytest.mark.parametrize("make", [full, linked, lambda path: path.write_text("mine")])
@pytest.mark.parametrize("name", [".out.partial", ".out.replaced", ".out.state", "both"])
def test_a_folder_of_a_runs_own_name_is_left_alone(
    llama_folder: Path, tmp_path: Path, name: str, make: Change
) -> None:
    if name == "both":  # it has a state, and that is somebody's
        name = ".out.partial"
        full(tmp_path / name / "state")
    else:
        make(tmp_path / name)
    before = tree(tmp_path)
    for restart in (False, True):
        with pytest.raises(OutputError, match=r"is in the way, .*try moving it away"):
            write(llama_folder, tmp_path / "out", restart=restart)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("make", [full, linked, lambda path: path.write_text("mine")])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_appears_while_a_run_lasts_stays(
    llama_folder: Path, tmp_path: Path, make: Change, overwrite: bool
) -> None:
    with pytest.raises(OutputError, match="something was put here while the run lasted"):
        write(llama_folder, tmp_path / "out", make, overwrite=overwrite)
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["years of work"
        if (tmp_path / "out").is_dir() else "mine"]  # fmt: skip
    assert not (tmp_path / ".out.replaced").exists()


def test_what_is_added_to_a_result_that_is_replaced_stays(
    llama_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write(llama_folder, out)
    with pytest.raises(OutputError, match="put here while the run lasted"):
        write(llama_folder, out, lambda out: full(out / "notes"), overwrite=True)
    assert (out / "notes" / "mine.txt").read_text() == "years of work"
    assert (out / "config.json").is_file()
    write(llama_folder, out, overwrite=True)  # by now it is among what is to be replaced
    assert not (out / "notes").exists()
    assert os.listdir(tmp_path) == ["out"]


def test_an_empty_folder_that_appears_is_no_loss(llama_folder: Path, tmp_path: Path) -> None:
    write(llama_folder, tmp_path / "out", lambda out: out.mkdir())
    assert (tmp_path / "out" / "run.json").is_file()


@pytest.mark.parametrize("first", ["state", "replaced"])
def test_a_run_that_died_between_two_names_is_put_in_order(
    llama_folder: Path, tmp_path: Path, first: str
) -> None:
    out = tmp_path / "out"
    write(llama_folder, out)
    if first == "replaced":
        (tmp_path / ".out.replaced").mkdir()
        (tmp_path / ".out.replaced" / "replaced.json").write_text("{}\n")
        out.rename(tmp_path / ".out.replaced" / "result")
        with pytest.raises(OutputError, match="exists and is not empty"):
            write(llama_folder, out)  # what is out of the way is there all the same
        write(llama_folder, out, overwrite=True)
    else:
        (tmp_path / ".out.state").mkdir()
        write(llama_folder, out, overwrite=True)
    assert os.listdir(tmp_path) == ["out"]


def begun(out: Path, source: Path, command: str) -> None:
    """What a command leaves that was killed after its first block."""
    with OutputFolder(Destination(out, source, command=command), RunIdentity()) as output:
        output.state.finish_block(0, {}, None, {}, 1.0)


@pytest.mark.parametrize("command", ["recover", "pack", "unpack"])
def test_commands_know_each_others_unfinished_work(
    llama_folder: Path, tmp_path: Path, command: str
) -> None:
    out = tmp_path / "out"
    begun(out, llama_folder, "prune")
    before = fingerprint(tmp_path)
    with pytest.raises(OutputError, match=r"an unfinished `secateur prune` lies here"):
        Destination(out, llama_folder, overwrite=True, command=command).check()
    assert fingerprint(tmp_path) == before
    shutil.rmtree(tmp_path / ".out.partial")
    if command == "recover":
        (tmp_path / ".out.recovery.safetensors").write_text("training")
    else:
        begun(out, llama_folder, command)
    with pytest.raises(OutputError, match=rf"`secateur {command}` lies here.*--restart to give"):
        Destination(out, llama_folder).check()
    write(llama_folder, out, restart=True)
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("out", "said"),
    [
        (lambda p, source: source / "within", "one of them contains the other"),
        (lambda p, source: "a\0b", "can be no path"),
        (lambda p, source: b"out-\xff".decode("utf-8", "surrogateescape"), "can be no path"),
        (lambda p, source: p / ("x" * 240), "File name too long"),
        (lambda p, source: full(p / "f") / "mine.txt" / "out", "what lies above is no folder"),
        (lambda p, source: full(p / "own"), "something else than a model.*try another --out"),
    ],
)
def test_places_that_cannot_be_written(
    llama_folder: Path, tmp_path: Path, out: Callable[[Path, Path], str | Path], said: str
) -> None:
    given = out(tmp_path, llama_folder)
    before = tree(tmp_path)
    with pytest.raises(OutputError, match=said):
        Destination(Path(given), llama_folder).check()
    assert tree(tmp_path) == before


def test_file_systems_and_rights(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_mount", lambda path: path == volume)
        with pytest.raises(OutputError, match=r"a whole file system.*try a folder within it"):
            Destination(volume, llama_folder).check()
        Destination(volume / "model", llama_folder).check()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for ask in (
        lambda: Destination(tmp_path / "out", llama_folder).check(),
        lambda: claim_file(tmp_path / "file", overwrite=False),
    ):
        with pytest.raises(OutputError, match="may not be written to"):
            ask()


def test_a_dry_run_changes_nothing(
    llama_folder: Path, tokens_file: Path, tmp_path: Path, command: Command
) -> None:
    full(tmp_path / "out" / "state")
    (tmp_path / "out" / "run.json").write_text("{}")
    (tmp_path / "out" / "config.json").write_text("{}")
    before = tree(tmp_path), tree(llama_folder)
    arguments = ["prune", llama_folder, "--method", "gblm", "--calibration", tokens_file]
    arguments += ["--sequence-length", 32, "--samples", 4, "--dry-run", "--out"]
    assert command(*arguments, tmp_path / "out").status == 2
    assert command(*arguments, tmp_path / "out", "--overwrite").status == 0
    kept = ["--save-gradients", tmp_path / "gradients.safetensors"]
    assert command(*arguments, tmp_path / "new" / "out", *kept).status == 0
    assert (tree(tmp_path), tree(llama_folder)) == before


def test_only_a_file_is_replaced(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link, Path("/dev/null"), tmp_path):
        for attempt in (
            lambda path=path: write_text(path, "text"),
            lambda path=path: claim_file(path, overwrite=True),
        ):
            with pytest.raises(OutputError, match="no file can be written here"):
                attempt()
    assert pipe.is_fifo()
    assert Path("/dev/null").is_char_device()
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


def test_a_file_is_claimed_where_a_link_leads(tmp_path: Path) -> None:
    mine, link = tmp_path / "mine.md", tmp_path / "link"
    mine.write_text("my notes")
    link.symlink_to(mine)
    with pytest.raises(OutputError, match=r"the file exists.*try --overwrite"):
        claim_file(link, overwrite=False)
    assert claim_file(link, overwrite=True) == mine
    assert claim_file(link, overwrite=False, ours=lambda path: path == mine) == mine
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(SecateurError):
        claim_file(link, overwrite=True)


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "table.md"
    with replacing(path) as one, replacing(path) as other:
        one.write_text("one")
        other.write_text("other")
        assert one != other
        assert set(left_unfinished(path)) == {one, other}
    assert path.read_text() == "one"  # who came last to its end
    assert os.listdir(tmp_path) == ["table.md"]


def test_alone(tmp_path: Path) -> None:
    with (
        alone_at(tmp_path / "table"),
        pytest.raises(OutputError, match="another run is writing"),
        alone_at(tmp_path / "table"),
    ):
        raise AssertionError
    assert os.listdir(tmp_path) == []
    with pytest.raises(OutputError, match="cannot be written"), alone_at(Path("/proc/table")):
        raise AssertionError


@pytest.mark.parametrize("replace", [True, False])
def test_a_place_that_cannot_be_renamed_is_told_before_the_work(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    """As a folder that is mounted from the same file system, which looks like any other."""
    out = tmp_path / "out"
    out.mkdir()
    if replace:
        write(llama_folder, out)
    before, rename = fingerprint(out), Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path == out:
            raise OSError(16, "Device or resource busy", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    destination = Destination(out, llama_folder, overwrite=replace)
    with pytest.raises(OutputError, match=r"cannot be written .*busy"), OutputFolder(destination):
        raise AssertionError("nothing is to be done here")
    assert fingerprint(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_writing_never_changes_what_new_files_of_the_process_may_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """umask is one for all threads: asking for it opens the files of the others to everybody."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("umask was changed"))
    write_text(tmp_path / "new", "text")
    (tmp_path / "plain").write_text("text")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode
