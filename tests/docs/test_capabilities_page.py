"""The page of capabilities says what the table and this Triton say; each lane checks its own column."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
FILES = ("capabilities.py", "capabilities.json", "capabilities.md")


def check(folder: Path) -> tuple[int, str]:
    """What ``--check`` says of the files in ``folder``: its status and its words."""
    hidden = ("CAPGATE_", "TRITON_INTERPRET", "TRITON_PTXAS", "TRITON_OVERRIDE")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    command = [sys.executable, str(folder / "capabilities.py"), "--check"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert not done.stderr
    return done.returncode, done.stdout


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    for name in FILES:
        shutil.copy(DOCS / name, tmp_path)
    return tmp_path


def test_the_page_is_up_to_date() -> None:
    assert check(DOCS) == (0, "")


def test_a_page_that_was_edited_is_out_of_date(copied: Path) -> None:
    page = copied / "capabilities.md"
    page.write_text(page.read_text().replace("tensor-map loads |", "loads |", 1))
    status, words = check(copied)
    assert status == 1
    assert words.startswith("capabilities.md is out of date: python docs/capabilities.py makes it anew")


@pytest.mark.parametrize("of", ["build", "hip:gfx950"])
def test_what_this_triton_does_not_answer_is_out_of_date(copied: Path, of: str) -> None:
    release = pytest.importorskip("triton").__version__
    file = copied / "capabilities.json"
    known = json.loads(file.read_text())
    if release not in known:
        pytest.skip(f"the page has no column for {release}")
    known[release][of].remove("triton" if of == "build" else "triton_gpu")
    file.write_text(json.dumps(known))
    status, words = check(copied)
    assert status == 1
    assert "capabilities.json is out of date" in words
