"""Follows the pages as a newcomer would: writes their files, makes their edits, runs their blocks and commands."""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import capgate.kernels

ROOT = Path(__file__).parents[2]
FILE = re.compile(r"# (?P<file>[\w./-]+\.\w+)\n")
EDIT = re.compile(r"# in (?P<file>[\w./-]+), (?P<where>above|below|in place of): (?P<text>.*)\n")
# What a page tells people to run and a test does not: installs, sessions of nox, and compiles, which tests/kernels has.
NOT_RUN = ("pip ", "nox", "capgate compile", "capgate bench", "capgate demo", "capgate compare")


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str


def blocks_of(page: str) -> list[Block]:
    """The fenced blocks of a page, a path from the repository's root, in order."""
    text = (ROOT / page).read_text()
    return [Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]


def commands_of(block: Block) -> Iterator[str]:
    """The commands of a block, without comments; nothing for a block that is none of commands."""
    if block.language == "sh":
        for line in block.text.splitlines():
            if command := line.partition("  #")[0].strip():
                yield command


class Newcomer:
    """Somebody with an empty folder and an installed capgate.

    What is printed is held against the ``text`` block that comes next.

    columns : of the newcomer's terminal
    """

    columns = 200

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path: list[Path] = [folder]
        scripts = folder.parent / "scripts"  # the interpreter and the commands of this environment, wherever it keeps them
        scripts.mkdir()
        mains = {
            "capgate": "-c 'import sys; from capgate.kernels.cli import main; sys.exit(main())'",
            "pytest": "-m pytest",
            "python": "",
        }
        for name, main in mains.items():
            (scripts / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {main} "$@"\n')
        for script in scripts.iterdir():
            script.chmod(0o755)
        self._scripts = scripts

    def check_out(self, *paths: str) -> None:
        """Copy files and folders of the repository here; its capgate.compat, once that is among them, is the one in use."""
        for path in paths:
            copied = self.folder / path
            copied.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / path).is_dir():
                shutil.copytree(ROOT / path, copied, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / path, copied)
        if "compat" in paths:
            package = self.folder.parent / "packages" / "capgate"
            package.mkdir(parents=True)
            kernels = Path(capgate.kernels.__file__).parent
            for place in (self.folder / "compat", kernels, ROOT / "src" / "capgate" / "__init__.py"):
                (package / place.name).symlink_to(place)
            self._path.insert(0, package.parent)

    def follow(self, page: str, only: Callable[[str], bool] = lambda text: True) -> str:
        """Do what the page says, and return all that was printed.

        only : of the page's commands and of the blocks that are run, those to run
        """
        printed, held = "", 0
        for block in blocks_of(page):
            if block.language == "text":
                self._hold(page, block.text, printed[held:])
                held = len(printed)
            elif block.language in ("python", "toml") and (named := EDIT.match(block.text) or FILE.match(block.text)):
                self._write(named, block.text[named.end() :])
            elif block.language == "python" and only(block.text):
                printed += self.run("python", "-c", block.text)
            for command in commands_of(block):
                if command.startswith("pip install -e"):
                    self._install()
                elif not command.startswith(NOT_RUN) and only(command):
                    printed += self.run("bash", "-c", command)
        return printed

    def run(self, *command: str) -> str:
        """What a command prints in the newcomer's folder; it must succeed."""
        path = [*map(str, self._path), os.environ.get("PYTHONPATH", "")]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("CAPGATE_", "PYTEST_"))}
        environment.pop("TRITON_INTERPRET", None)
        environment |= {
            "PATH": f"{self._scripts}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "COLUMNS": str(self.columns),
        }
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done.stdout

    def _write(self, named: re.Match[str], text: str) -> None:
        file = self.folder / named["file"]
        if "where" not in named.groupdict():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            return
        lines = file.read_text().splitlines(keepends=True)
        (at,) = [number for number, line in enumerate(lines) if line.strip().startswith(named["text"])]
        text += "\n\n" * (named["where"] == "above")  # what stands above a statement of a module
        lines[at + (named["where"] == "below") : at + (named["where"] != "above")] = [text]
        file.write_text("".join(lines))

    def _install(self) -> None:
        """As much of an editable installation as counts: the distribution's metadata."""
        project = (self.folder / "pyproject.toml").read_text()
        name = re.search(r'^name = "(.*)"$', project, re.MULTILINE)[1]
        group = re.search(r'^\[project\.entry-points\."(.*)"\]\n((?:\w+ = .*\n)+)', project, re.MULTILINE)
        info = self.folder / f"{name}-0.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
        (info / "entry_points.txt").write_text(f"[{group[1]}]\n" + group[2].replace('"', ""))

    def _hold(self, page: str, wanted: str, printed: str) -> None:
        """Every line is among what was printed, ``...`` standing for anything."""
        lines = [line.strip() for line in printed.splitlines()]
        for line in wanted.splitlines():
            pattern = re.sub(r"([\[\]])", r"[\1]", line.strip()).replace("...", "*")
            assert fnmatch.filter(lines, pattern), f"{page}: {line!r} is not in\n{printed}"


@pytest.fixture
def newcomer(tmp_path: Path) -> Newcomer:
    """Somebody who has installed capgate and follows a page in an empty folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    return Newcomer(folder)
