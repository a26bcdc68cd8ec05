"""The how-to pages, followed block by block in an empty folder."""

import ast
import json
from typing import Any
from xml.etree import ElementTree

import pytest

from capgate import compat

pytestmark = pytest.mark.one_lane

IN_ORDER = ("docs/add-an-operation.md", "docs/add-a-variant.md")


def table_of_lanes(noxfile: str) -> list[str]:
    """The releases that a noxfile has a session for."""
    assigned = {ast.unparse(node.targets[0]): node.value for node in ast.parse(noxfile).body if isinstance(node, ast.Assign)}
    return list(ast.literal_eval(assigned["LANES"]))


def test_an_operation_and_then_a_variant(newcomer: Any) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    newcomer.follow(IN_ORDER[0])
    printed = newcomer.follow(IN_ORDER[1]).splitlines()
    gluon = compat.capabilities("hip:gfx950").gluon
    (there,) = [line for line in printed if line.startswith("hip:gfx950 4096")]
    assert there.startswith(f"hip:gfx950 4096 gluon_cdna4 {'accepted' if gluon else 'rejected'}: ")
    (wide,) = [line for line in printed if line.startswith("hip:gfx950 1073741824")]
    assert ("needs fewer than 536870912 columns: found 1073741824" in wide) == gluon
    switched = "CAPGATE_VARIANT=scale_rows=reference capgate report --target hip:gfx942"
    assert "scale_rows takes reference" in newcomer.run("bash", "-c", switched)
    result = json.loads(newcomer.run("capgate", "compile", "scale_rows", "--target", "hip:gfx950", "--json"))
    compiled = {row["variant"]: row["compiled"] for row in result["variants"]}
    assert compiled == {"gluon_cdna4": gluon, "classic": True}, result


def test_the_tour(newcomer: Any) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    newcomer.columns = 80
    printed = newcomer.follow("docs/tour.md")
    assert [line for line in printed.splitlines() if len(line) > 80] == []
    (row,) = json.loads(newcomer.run("capgate", "compile", "doubling", "--target", "hip:gfx950", "--json"))["variants"]
    assert (row["variant"], row["compiled"], row["spills"]) == ("classic", True, 0), row


def test_checking(newcomer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    monkeypatch.setenv("XDG_CACHE_HOME", str(newcomer.folder / "cache"))
    newcomer.follow("docs/check.md", only=lambda text: "--triton" not in text)
    rows = json.loads((newcomer.folder / "check.json").read_text())["rows"]
    assert [(row["target"], row["compiled"]) for row in rows] == [("cuda:90", True), ("hip:gfx950", True)] * 2
    suites = [
        (suite.get("tests"), suite.get("failures")) for suite in ElementTree.parse(newcomer.folder / "check.xml").getroot()
    ]
    assert suites == [("2", "0")] * 3


def test_a_capability(newcomer: Any) -> None:
    pytest.importorskip("triton")
    newcomer.check_out("compat", "pyproject.toml", "tests/compat/conftest.py", "tests/compat/test_capabilities.py")
    assert " passed" in newcomer.follow("docs/add-a-capability.md")
    code = (
        "from capgate import compat; caps = compat.capabilities('hip:gfx1201'); print(caps.gfx12, caps.squeeze, sep='\\n')\n"
        "with compat.override(disable=['squeeze']): print(compat.capabilities('hip:gfx1201').why('squeezed_gfx12'))"
    )
    gfx12, squeeze, why = newcomer.run("python", "-c", code).splitlines()
    assert (gfx12, squeeze) == ("True", str(hasattr(pytest.importorskip("triton.language"), "squeeze")))
    assert why == "needs squeeze: disabled by override(disable=['squeeze'])"


def test_a_gpu(newcomer: Any) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    newcomer.check_out("compat", "pyproject.toml", "tests/compat/conftest.py", "tests/compat/test_capabilities.py")
    assert " passed" in newcomer.follow("docs/add-a-gpu.md")
    asked = "from capgate import compat; print(compat.capabilities('hip:gfx1200').gfx12)"
    assert newcomer.run("python", "-c", asked) == "True\n"


def test_a_triton_version(newcomer: Any) -> None:
    pytest.importorskip("triton")
    tests = ("tests/compat/conftest.py", "tests/compat/test_capabilities.py")
    newcomer.check_out("noxfile.py", "pyproject.toml", *tests)
    before = table_of_lanes((newcomer.folder / "noxfile.py").read_text())
    newcomer.follow("docs/add-a-triton-version.md", only=lambda text: text.startswith(("capgate report", "pytest")))
    assert table_of_lanes((newcomer.folder / "noxfile.py").read_text()) == [*before, "3.10.0"]

    old = json.loads((newcomer.folder / "old.json").read_text())  # which the page's command wrote; there is no 3.10.0 to ask
    old["capabilities"]["squeeze"] = {"available": True, "reason": ""}
    old["capabilities"]["gluon_barrier"]["available"] ^= True
    (newcomer.folder / "new.json").write_text(json.dumps({**old, "triton": "3.10.0"}))
    had = not old["capabilities"]["gluon_barrier"]["available"]
    assert newcomer.run("python", "changed.py", "old.json", "new.json").splitlines() == [
        f"Triton {old['triton']} -> 3.10.0",
        f"gluon_barrier: {had} -> {not had}",
        "squeeze: None -> True",
    ]
