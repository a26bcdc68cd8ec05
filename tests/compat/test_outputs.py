"""Files of results: looked at before the work, written whole after it, and none of them worth the others."""

import os
import stat
from pathlib import Path

import pytest

from capgate.compat.command import CommandError
from capgate.compat.outputs import Outputs, look_at_folder

FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")


def write(file: str | Path, text: str = "new") -> None:
    outputs: Outputs[str] = Outputs()
    outputs.add("--json", file, str)
    with outputs.written(text):
        pass


def test_files_are_written_after_what_is_shown(tmp_path) -> None:
    outputs: Outputs[str] = Outputs()
    outputs.add("--json", tmp_path / "a.json", str.upper)
    outputs.add("--plot", tmp_path / "a.png", str.encode)
    assert list(tmp_path.iterdir()) == [], "a look leaves nothing behind"
    with outputs.written("results"):
        assert list(tmp_path.iterdir()) == []
    assert (tmp_path / "a.json").read_text() == "RESULTS"
    assert (tmp_path / "a.png").read_bytes() == b"results"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("missing/a.json", "No such file or directory"),
        ("folder", "Is a directory"),
        ("file/a.json", "Not a directory"),
        ("a" * 300, "File name too long"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch, file: str, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").write_text("")
    with pytest.raises(CommandError, match=f"^--json: {file}: {words}$"):
        Outputs().add("--json", file, str)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_or_file_without_permission_is_refused(tmp_path) -> None:
    (tmp_path / "a.json").write_text("old")
    (tmp_path / "a.json").chmod(0o444)
    with pytest.raises(CommandError, match="Permission denied"):
        Outputs().add("--json", tmp_path / "a.json", str)
    tmp_path.chmod(0o555)
    with pytest.raises(CommandError, match="Permission denied"):
        Outputs().add("--json", tmp_path / "b.json", str)
    tmp_path.chmod(0o755)


def test_a_write_that_fails_leaves_the_older_results(tmp_path, monkeypatch) -> None:
    file = tmp_path / "a.json"
    file.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CommandError, match=r"a\.json: No space left on device"):
        write(file)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_an_interrupted_write_leaves_the_older_results(tmp_path, monkeypatch) -> None:
    file = tmp_path / "a.json"
    file.write_text("old")

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(file)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_permissions_are_those_of_any_new_file_or_stay(tmp_path) -> None:
    new, old, plain = (tmp_path / name for name in ("new", "old", "plain"))
    old.write_text("old")
    old.chmod(0o640)
    plain.touch()
    write(new)
    write(old)
    assert stat.S_IMODE(new.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    assert stat.S_IMODE(old.stat().st_mode) == 0o640


def test_a_link_stays_one(tmp_path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "a.json")
    write(tmp_path / "link", "first")
    write(tmp_path / "link", "second")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a.json").read_text() == "second"


def test_a_device_is_written_in_place() -> None:
    write(os.devnull)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@FULL
def test_every_file_is_tried_and_every_failure_said(tmp_path, capsys) -> None:
    def fails(results: str) -> str:
        raise RuntimeError("no such font")

    outputs: Outputs[str] = Outputs()
    outputs.add("--json", "/dev/full", str)
    outputs.add("--plot", tmp_path / "a.svg", fails)
    outputs.add("--plot", tmp_path / "a.png", str)
    with pytest.raises(CommandError) as raised, outputs.written("results"):
        print("a table")
    assert capsys.readouterr().out == "a table\n"
    assert raised.value.args == (
        "--json: /dev/full: No space left on device",
        f"--plot: {tmp_path}/a.svg: RuntimeError: no such font",
    )
    assert (tmp_path / "a.png").read_text() == "results"


@pytest.mark.parametrize("error", [BrokenPipeError(), KeyboardInterrupt(), ZeroDivisionError()])
def test_files_are_written_whatever_becomes_of_the_tables(tmp_path, error: BaseException) -> None:
    outputs: Outputs[str] = Outputs()
    outputs.add("--json", tmp_path / "a.json", str)
    with pytest.raises(type(error)), outputs.written("results"):
        raise error
    assert (tmp_path / "a.json").read_text() == "results"


def test_a_table_that_cannot_be_printed_is_standard_outputs_fault(tmp_path) -> None:
    outputs: Outputs[str] = Outputs()
    with pytest.raises(CommandError, match=r"^standard output: No space left on device$"), outputs.written("results"):
        raise OSError(28, "No space left on device")


def test_folders_are_made_and_looked_at(tmp_path) -> None:
    look_at_folder("--save", str(tmp_path / "a" / "b"))
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(CommandError, match=r"^--save: .*file: File exists$"):
        look_at_folder("--save", str(tmp_path / "file"))
