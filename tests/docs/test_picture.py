"""The picture of a report shows what a report has.

``capgate report --target hip:gfx950 --brief --svg docs/report.svg`` makes it.
"""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from capgate.compat.table import TABLE

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shown() -> str:
    text = "".join(ElementTree.fromstring((ROOT / "docs" / "report.svg").read_text()).itertext())
    return "".join(text.split())


def test_it_has_every_operation(shown: str) -> None:
    project = (ROOT / "pyproject.toml").read_text()
    group = project.partition('[project.entry-points."capgate.operations"]')[2].partition("[")[0]
    operations = re.findall(r"^(\w+) =", group, re.MULTILINE)
    assert operations
    assert [name for name in operations if not re.search(f"{name}(gluon_cdna4|classic|reference)", shown)] == []


def test_it_has_every_capability_of_both_with_its_meaning(shown: str) -> None:
    for name, row in TABLE.items():
        if row.kind == "both":
            assert name in shown
            assert "".join(row.meaning.split()) in shown


def test_it_has_what_a_report_says_first(shown: str) -> None:
    assert {
        word for word in ("capgate", "python", "triton", "Drop-ins", "nvidiadriver", "amddriver") if word not in shown
    } == set()
