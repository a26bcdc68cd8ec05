"""What a run launches is noted: in the interpreter, and where nothing is run."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from capgate import compat
from capgate.compat.check import recordings
from capgate.compat.check.record_command import OTHERWISE

for needed in ("torch", "triton"):
    pytest.importorskip(needed)


def launches(file: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = recordings.DOCUMENT.read(str(file))["launches"]
    return found


def values(launch: dict[str, Any], part: str = "arguments") -> dict[str, Any]:
    return {name: described.get("value") for name, described in launch[part].items() if "value" in described}


def test_launches_in_the_interpreter_are_run_and_noted(
    record: Callable[..., int], project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert record("script.py") == 0
    printed = capfd.readouterr()
    assert printed.out == "sum 6138.0\n"  # 1023 times 2 * 3, which the last launch wrote
    plain, aligned, odd = launches(project / OTHERWISE)
    assert [launch["launches"] for launch in (plain, aligned, odd)] == [2, 1, 1]
    for launch in (plain, aligned, odd):
        kernel = {key: launch["kernel"][key] for key in ("module", "file", "name", "gluon")}
        assert kernel == {"module": "__main__", "file": "script.py", "name": "scaled", "gluon": False}
        assert (launch["grid"], launch["constants"], launch["trial"]) == ([4], ["BLOCK", "EVEN", "DTYPE"], False)
        assert values(launch, "options")["num_warps"] == 2
        assert launch["arguments"]["DTYPE"] == {"kind": "dtype", "name": "float32", "of": "triton"}
    assert values(plain) == {"count": 1000, "factor": 2.0, "BLOCK": 256, "EVEN": False}
    assert values(aligned)["count"] == 1008  # a multiple of 16, for which Triton compiles other code
    assert [launch["arguments"]["x"]["aligned"] for launch in (plain, aligned, odd)] == [True, True, False]


def test_fake_launches_are_noted_and_answered(
    record: Callable[..., int], project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert record("--fake", "--configs=all", "script.py", "fake") == 0
    found = launches(project / OTHERWISE)
    named = [(launch["kernel"]["name"], launch["trial"]) for launch in found]
    # A count's configurations are tried once, 256 is chosen, and the offset tensor's key is known by then.
    assert named.count(("scaled", True)) == 2
    assert named.count(("scaled", False)) == 3
    (tiled,) = [launch for launch in found if launch["kernel"]["name"] == "tiled"]
    assert (tiled["kernel"]["module"], tiled["kernel"]["gluon"], tiled["grid"]) == ("gluons", True, [2, 3])
    assert tiled["arguments"]["pair"] == {
        "kind": "tuple",
        "items": [{"kind": "int", "value": 1}, {"kind": "float", "value": 2.0}],
    }
    assert tiled["arguments"]["LAYOUT"]["type"].endswith(":BlockedLayout")
    (hidden,) = [launch for launch in found if launch["unrecorded"]]
    assert hidden["unrecorded"] == "it is defined inside a function, where no other process finds it"
    assert "script.py:closure.<locals>.hidden: cannot be recorded" in capfd.readouterr().err
    assert str(project) not in (project / OTHERWISE).read_text()
    twice = recordings.merged([recordings.DOCUMENT.read(str(project / OTHERWISE))] * 2)["launches"]
    assert [launch["launches"] for launch in twice] == [2 * launch["launches"] for launch in found]


@pytest.mark.one_lane
def test_a_run_that_breaks_off_leaves_what_it_did(record: Callable[..., int], project: Path) -> None:
    text = (project / "script.py").read_text().replace("    return out\n", "    import os\n    os.abort()\n")
    (project / "script.py").write_text(text)
    assert record("--no-run", "script.py") == 134  # SIGABRT, as a shell says it
    assert [launch["kernel"]["name"] for launch in launches(project / OTHERWISE)] == ["scaled"] * 3


@pytest.mark.one_lane
def test_a_context_records_and_leaves_triton_as_it_was(project: Path) -> None:
    code = (
        "import sys; sys.argv = ['script.py', 'nothing']; from capgate import compat\n"
        "from triton.runtime.jit import JITFunction; from triton.runtime import driver\n"
        "before = JITFunction.run, driver._active\n"
        "with compat.record('here.json', run=False):\n    import script\n    assert driver.active.get_current_device() == 0\n"
        "assert before == (JITFunction.run, driver._active)"
    )
    environment = {"PYTHONPATH": ":".join([str(project), *sys.path]), "PATH": ""}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=project, capture_output=True)
    assert {launch["kernel"]["module"] for launch in launches(project / "here.json")} == {"script"}
    with pytest.raises(ValueError, match="configs: got 'best', needs one of chosen, all"), compat.record("x", configs="best"):
        pass


@pytest.mark.one_lane
def test_a_command_that_launches_nothing_fails(
    record: Callable[..., int], project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (project / "idle.py").write_text("import os; os._exit(int(os.environ.get('STATUS', 0)))")
    assert record("idle.py") == 1
    assert "no launch of a Triton kernel was noted" in capfd.readouterr().err
    assert not (project / OTHERWISE).exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "capgate recording 7"}, "format: got"),
        ({"launches": [{"kernel": {}}]}, r"launches\[0\]"),
        ({"stack": None}, "stack: got null"),
    ],
)
@pytest.mark.one_lane
def test_what_is_no_recording_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    document = {"format": recordings.FORMAT, "stack": {"triton": None, "torch": None, "how": "run"}, "launches": []}
    file = tmp_path / "file.json"
    file.write_text(json.dumps(document))
    assert recordings.DOCUMENT.read(str(file)) == document
    file.write_text(json.dumps({**document, **change}))
    with pytest.raises(ValueError, match=words):
        recordings.DOCUMENT.read(str(file))
