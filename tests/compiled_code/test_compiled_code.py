"""tests/compiled_code: what one commit compiles to, held against what another does."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from capgate.compat import versions

pytestmark = pytest.mark.one_lane

SCRIPT = Path(__file__).parent
TARGET, NAME = "hip:gfx942", "paged_mqa_schedule.classic.1d"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=1200)


def compare(before: Path, after: Path) -> tuple[int, list[str]]:
    done = run("compare", before, after)
    return done.returncode, done.stdout.splitlines()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one real call."""
    folder = tmp_path_factory.mktemp("saved") / "before"
    done = run("save", folder, "--target", TARGET, "--only", NAME)
    assert done.returncode == 0, done.stderr
    assert "1 calls, 0 of them not in order" in done.stdout
    return folder


@pytest.fixture
def changed(saved: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(saved, tmp_path / "after"))


def file_in(folder: Path) -> Path:
    return folder / str(versions.find("triton").text) / TARGET.replace(":", "-") / f"{NAME}.txt"


def test_what_is_saved_is_code_and_no_name(saved: Path) -> None:
    lines = file_in(saved).read_text().splitlines()
    assert "s_endpgm" in lines
    assert any(line.startswith("; .amdhsa_next_free_vgpr ") for line in lines)
    assert not any("schedule_kernel" in line or "LBB" in line for line in lines)


def test_equal_code_is_equal(saved: Path, changed: Path) -> None:
    assert compare(saved, changed) == (0, ["1 calls, 0 of them differ"])


def test_a_difference_comes_with_counts(saved: Path, changed: Path) -> None:
    lines = file_in(saved).read_text().splitlines()
    place = lines.index("s_endpgm")
    count = sum(not line.startswith(";") for line in lines)
    file_in(changed).write_text("\n".join([*lines[:place], "s_nop 0", *lines[place:]]) + "\n")
    status, (words, total) = compare(saved, changed)
    assert (status, total) == (1, "1 calls, 1 of them differ")
    assert words.endswith(
        f"{NAME}.txt: {count} -> {count + 1} instructions (+1 s_nop); first in line {place + 1}: 's_endpgm' -> 's_nop 0'"
    )


def test_another_register_or_another_size_is_a_difference(saved: Path, changed: Path) -> None:
    text = file_in(saved).read_text()
    for old, new in (("; warps ", "; warps 1"), ("s_endpgm", "s_endpgm_saved")):
        assert old in text
        file_in(changed).write_text(text.replace(old, new, 1))
        assert compare(saved, changed)[0] == 1


def test_calls_of_one_side_are_differences(saved: Path, changed: Path) -> None:
    file_in(changed).rename(file_in(changed).with_name("other.txt"))
    status, (*words, total) = compare(saved, changed)
    assert (status, total) == (1, "2 calls, 2 of them differ")
    assert [line.rpartition(": ")[2] for line in words] == [f"only in {changed}", f"only in {saved}"]


def test_an_empty_folder_equals_nothing(saved: Path, tmp_path: Path) -> None:
    done = run("compare", saved, tmp_path)
    assert (done.returncode, done.stderr) == (2, f"{tmp_path}: nothing is saved there\n")


def test_a_folder_is_never_written_twice(saved: Path) -> None:
    done = run("save", saved, "--target", TARGET, "--only", NAME)
    assert done.returncode == 2
    assert "exists: name another folder" in done.stderr
