"""The page of verified machines is what ``capgate verify --merge`` makes of the files in the repository."""

from pathlib import Path

import pytest

from capgate.kernels import cli

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_that_of_its_files(capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(map(str, (DOCS / "verified").glob("*.json")))
    assert files
    assert cli.main(["verify", "--merge", *files]) == 0
    assert (DOCS / "verified.md").read_text() == capsys.readouterr().out
