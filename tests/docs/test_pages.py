"""What the pages say is there: links, files, commands and their options, numbers of bugs, and the version of ruff."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
each_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# A name in backquotes that begins with one of the repository's folders means a file or folder of it.
NAMED = re.compile(r"`((?:compat|kernels|tests|docs)/[\w./-]*|[A-Z]+\.md|noxfile\.py|pyproject\.toml)`")


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCED.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """The fragments that a page's headings answer to, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no such file"
        assert target.is_relative_to(ROOT), f"{link}: outside of the repository"
        assert not fragment or fragment in anchors(target), f"{link}: no such heading"


@each_page
def test_named_files_exist(page: Path) -> None:
    missing = [name for name in NAMED.findall(prose(page)) if not (ROOT / name).exists()]
    assert not missing


@each_page
def test_an_implementation_is_a_variant(page: Path) -> None:
    """A branch is an if; where the word is used all the same, it is about itself."""
    text = prose(page).replace("*branch*", "").replace("| branch | a variant", "")
    assert not re.findall(r"\bbranch(?:es)?\b", text, re.IGNORECASE) or page.name == "CHANGELOG.md"


@each_page
def test_tables_have_as_many_cells_as_heads(page: Path) -> None:
    for table in re.findall(r"(?:^\|.*\|$\n)+", prose(page), re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table


# Commands


def commands() -> list[tuple[str, str]]:
    """Every command of every page, with the page's name: blocks of commands, and what is indented in the README's way."""
    found = []
    for page in PAGES:
        text = page.read_text()
        lines = [line for language, block in FENCED.findall(text) if language == "sh" for line in block.splitlines()]
        lines += re.findall(r"^    (?=nox|pip|capgate|python)(.*)$", prose(page), re.MULTILINE)
        found += [(page.name, part.strip()) for line in lines for part in line.partition("  #")[0].split("&&")]
    return [(page, re.sub(r"^(\w+=\S+ )+", "", command)) for page, command in found if command]


@pytest.fixture(scope="module")
def options_of() -> dict[str, set[str]]:
    """The options of each subcommand of ``capgate``, as their help says."""
    pytest.importorskip("torch")
    code = (
        "import contextlib, io, json, sys; from capgate.kernels.cli import COMMANDS, main\n"
        "for name in COMMANDS:\n"
        "    with contextlib.suppress(SystemExit): print(name); main([name, '--help'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    parts = re.split(r"^(\w+)$\n(?=usage: )", done.stdout, flags=re.MULTILINE)[1:]
    return {name: set(re.findall(r"--[\w-]+", said)) for name, said in zip(parts[::2], parts[1::2], strict=True)}


def test_commands_and_their_options_exist(options_of: dict[str, set[str]]) -> None:
    asked = [(page, command) for page, command in commands() if command.startswith("capgate ")]
    assert {command.split()[1] for _, command in asked} >= {"report", "compile", "bench"}
    for page, command in asked:
        name = command.split()[1]
        assert name in options_of, f"{page}: {command}"
        assert set(re.findall(r"(?<=\s)--[\w-]+", command)) <= options_of[name], f"{page}: {command}"


def test_sessions_exist() -> None:
    noxfile = (ROOT / "noxfile.py").read_text()
    for page, command in commands():
        if command.startswith("nox") and (named := re.search(r"-s \"?(\w+)", command)):
            assert f"\ndef {named[1]}(" in noxfile, f"{page}: {command}"


# Bugs that shipped elsewhere


def test_every_number_of_a_bug_has_a_test_and_every_test_a_number() -> None:
    listed = set(re.findall(r"^\| (\d+) \|", (ROOT / "docs" / "known-bugs.md").read_text(), re.MULTILINE))
    tested = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        for name in re.findall(r"def test_(bug_\w+)\(", file.read_text()):
            tested |= set(re.findall(r"(?:bug|and)_(\d+)(?=_)", name))
    assert listed == tested


# Before a commit


def test_ruff_is_the_same_everywhere() -> None:
    wanted = set(re.findall(r'"(ruff==[\d.]+)"', (ROOT / "pyproject.toml").read_text()))
    hooks = re.findall(r"ruff==[\d.]+", (ROOT / ".pre-commit-config.yaml").read_text())
    assert len(wanted) == 1
    assert len(hooks) == 2
    assert set(hooks) == wanted
