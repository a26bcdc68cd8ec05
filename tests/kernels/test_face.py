"""What somebody meets first: names that are listed, the command's version, and the state of the drop-ins."""

import ast
import json
from pathlib import Path

import pytest

from capgate import kernels
from capgate.kernels import cli, dropin


def test_every_public_function_is_listed_and_found() -> None:
    assert set(kernels.__all__) <= set(dir(kernels))
    for name in kernels.__all__:
        assert callable(getattr(kernels, name))
    assert {"quantize_keys", "quantize_queries"} <= set(kernels.__all__)


def test_type_checkers_are_told_of_every_folder_that_has_functions() -> None:
    tree = ast.parse(Path(kernels.__file__).read_text())
    told = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1}
    homes = {getattr(kernels, name).__module__.removeprefix("capgate.kernels.").split(".")[0] for name in kernels.__all__}
    assert told == homes


def test_help_shows_the_functions() -> None:
    import pydoc

    text = pydoc.plain(pydoc.render_doc(kernels))
    for name in kernels.__all__:
        assert f"    {name}(" in text


def test_the_command_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("capgate ")


def test_the_report_has_the_drop_ins(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CAPGATE_DROPIN", "aiter,vllm_rocm")
    assert cli.main(["report", "--target", "cpu", "--json"]) == 0
    states = json.loads(capsys.readouterr().out)["dropins"]
    assert {name for name, state in states.items() if state["asked"]} == {"aiter", "vllm_rocm"}
    assert states.keys() == dropin.DROPINS.keys()
    assert not any(state["installed"] for state in states.values())


def test_a_drop_in_that_does_not_exist_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CAPGATE_DROPIN", "aitr")
    assert cli.main(["report"]) == 2
    assert capsys.readouterr() == ("", "capgate: CAPGATE_DROPIN: no drop-in 'aitr'; the nearest are aiter\n")
