"""The published table of which the files are in the repository says what capgate compare makes of them."""

import re
from pathlib import Path

import pytest

from capgate.kernels import cli

DOCS = Path(__file__).parents[2] / "docs"


def test_the_table_of_the_h200_is_that_of_its_files(capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(map(str, (DOCS / "measured").glob("h200-serving-*.json")))
    assert cli.main(["compare", *files, "--markdown"]) == 0
    made = capsys.readouterr().out
    section = (DOCS / "measured.md").read_text().partition("## One H200: three stacks")[2].partition("![")[0]
    figures = re.findall(r"\d[\d,]{5,}|[+-][\d.]+ % ±[\d.]+ %", section)
    assert len(figures) == 2 * 6 + 2 * 8
    assert [figure for figure in figures if figure.replace(" %", "%") not in made] == []
