"""report: everything with its reason, for people and for programs, on any machine."""

import json
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from capgate import compat
from capgate.compat import Variant, report
from capgate.compat.capabilities import TABLE

MODULE = ("-m", "capgate.compat")
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")

# The report in a process where these packages cannot be found, whatever is installed.
WITHOUT = """
import runpy, sys
from importlib.machinery import PathFinder

class Hidden(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {names!r} else super().find_spec(name, path, target)

sys.meta_path[:] = [Hidden if finder is PathFinder else finder for finder in sys.meta_path]
sys.argv = ["report", *{arguments!r}]
runpy.run_module("capgate.compat", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def toy() -> compat.Operation[Any]:
    """An operation with an example, which one of its variants does not take."""
    made: compat.Operation[Any] = compat.Operation("toy", example=lambda target: f"an example for {target}")
    made.add(Variant("scaled", lambda: None, requires=("scaled_mfma",), accepts=lambda problem: f"does not take {problem}"))
    made.add(Variant("plain", lambda: None))
    return made


# For programs


def test_keys() -> None:
    found = report.collect("hip:gfx950")
    assert {"triton", "triton_kernels", "torch", "target", "targets", "notes", "capabilities", "operations"} == found.keys()
    assert list(found["capabilities"]) == list(TABLE)
    assert all(verdict.keys() == {"available", "reason"} for verdict in found["capabilities"].values())
    for operation in found["operations"].values():
        assert operation.keys() == {"variant", "trace"}
        assert all(step.keys() == {"variant", "accepted", "reason"} for step in operation["trace"])


def test_values(machine, site) -> None:
    site.package("triton_kernels")
    site.distribution("triton-kernels", "3.5.1")
    machine.amd("gfx942", "gfx950")
    found = report.collect()
    assert (found["target"], found["targets"]) == ("hip:gfx942", ["hip:gfx942", "hip:gfx950"])
    assert found["triton_kernels"] == "3.5.1"
    assert len(found["notes"]) == 1
    caps = compat.capabilities()
    assert found["capabilities"] == {name: {"available": caps[name].available, "reason": caps.why(name)} for name in TABLE}


def test_the_collected_report_is_json() -> None:
    found = report.collect("hip:gfx950")
    assert json.loads(json.dumps(found)) == found


def test_operations_show_the_branch_for_their_example(toy) -> None:
    shown = report.collect("hip:gfx950")["operations"]["toy"]
    assert shown["variant"] == "plain"
    assert shown["trace"] == [
        {"variant": "scaled", "accepted": False, "reason": "does not take an example for hip:gfx950"},
        {"variant": "plain", "accepted": True, "reason": "needs nothing"},
    ]


def test_operations_without_an_example_show_capabilities_only() -> None:
    bare: compat.Operation[Any] = compat.Operation("bare")
    bare.add(Variant("scaled", lambda: None, requires=("scaled_mfma",), accepts=lambda problem: pytest.fail("there is none")))
    shown = {target: report.collect(target)["operations"]["bare"]["variant"] for target in ("hip:gfx950", "cpu")}
    assert shown == {"hip:gfx950": "scaled", "cpu": None}


def test_switches_show_in_the_report() -> None:
    with compat.override(disable=["gfx950"]):
        verdict = report.collect("hip:gfx950")["capabilities"]["gfx950"]
    assert verdict == {"available": False, "reason": "disabled by override(disable=['gfx950'])"}


def test_json_of_the_command_differs_between_lanes_as_it_should(python, lane: str) -> None:
    done = python(*MODULE, "--target", "hip:gfx950", "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert (shown["triton"], shown["target"]) == (lane, "hip:gfx950")
    verdict = shown["capabilities"]["gluon_cdna4"]
    if lane == "3.5.1":
        assert not verdict["available"]
        assert verdict["reason"].startswith("needs the Gluon API of Triton 3.6: found 3.5.1")
    else:
        assert verdict == {"available": True, "reason": f"found Triton {lane}; found gfx950"}


# For people


def _cells(line: str) -> list[str]:
    return line.replace("|", " ").split()


@pytest.mark.parametrize(
    ("output", "variables"),
    [
        pytest.param("piped", {}, id="piped"),
        pytest.param("terminal", {"FORCE_COLOR": "1", "COLUMNS": "80", "TERM": "xterm-256color"}, id="terminal of 80 columns"),
        pytest.param("piped", {"PYTHONIOENCODING": "ascii"}, id="piped as ASCII"),
    ],
)
def test_the_report_fits_80_columns(python, output: str, variables: dict[str, str]) -> None:
    done = python(*MODULE, "--target", "hip:gfx950", **variables)
    assert done.returncode == 0, done.stderr
    assert ("\x1b" in done.stdout) is (output == "terminal")
    lines = ESCAPE.sub("", done.stdout).splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in done.stdout, "nothing is cut off"
    rows = {cells[0] for cells in map(_cells, lines) if cells[1:2] in (["yes"], ["no"])}
    assert set(TABLE) <= rows


def test_the_report_shows_versions_gpus_reasons_and_branches(toy, machine, capsys) -> None:
    machine.amd("gfx942")
    assert report.main([]) == 0
    words = " ".join(capsys.readouterr().out.split())
    for expected in (
        f"torch {report.collect()['torch'] or 'not installed'}",
        "0 hip:gfx942",
        "This target (hip:gfx942)",
        "scaled_mfma no needs gfx950: found gfx942",
        "toy takes plain on hip:gfx942",
        "scaled no needs gfx950: found gfx942",
    ):
        assert expected in words


def test_reasons_are_shown_as_they_are(toy, machine, capsys) -> None:
    """Square brackets are no markup: "takes no [M, N, K] instruction shape"."""
    toy.add(Variant("bracketed", lambda: None, accepts=lambda problem: "takes no [bold] shape"))
    report.main(["--target", "cpu"])
    assert "takes no [bold] shape" in capsys.readouterr().out


@pytest.mark.parametrize("hidden", [("torch", "triton", "triton_kernels"), ("triton",), ("torch",)], ids=" and ".join)
@pytest.mark.parametrize("arguments", [[], ["--json"], ["--target", "hip:gfx950", "--json"]], ids=" ".join)
def test_the_report_works_without_torch_and_triton(python, hidden: tuple[str, ...], arguments: list[str]) -> None:
    done = python("-c", WITHOUT.format(names=hidden, arguments=arguments))
    assert done.returncode == 0, done.stderr
    if "--json" in arguments:
        shown = json.loads(done.stdout)
        for name in hidden:
            assert shown[name] is None
            assert not shown["capabilities"][name]["available"]
        if "triton" in hidden:
            assert shown["capabilities"]["gluon"]["reason"] == "needs the Gluon API of Triton 3.6: found no Triton"
        assert shown["capabilities"]["scaled_mfma"]["available"] is ("hip:gfx950" in arguments)
    else:
        assert "not installed" in done.stdout


def test_a_brief_report_shows_what_the_build_can_do_on_the_target(toy, capsys) -> None:
    assert report.main(["--target", "hip:gfx950", "--brief"]) == 0
    said = capsys.readouterr().out
    assert "This Triton on this target (hip:gfx950)" in said
    assert "toy takes plain on hip:gfx950" in said
    assert "scaled_mfma" not in said.partition("toy takes")[0]
    assert "gluon_padded_layout" not in said


def test_the_picture_shows_what_the_terminal_would(toy, tmp_path, capsys) -> None:
    toy.add(Variant("bracketed", lambda: None, accepts=lambda problem: "takes no [bold] shape & such"))
    assert report.main(["--target", "hip:gfx950", "--brief", "--svg", str(tmp_path / "report.svg")]) == 0
    assert capsys.readouterr().out == ""
    picture = ElementTree.fromstring((tmp_path / "report.svg").read_text())
    shown = "".join(picture.itertext()).replace("\xa0", " ")
    for words in (
        "capgate report --target hip:gfx950 --brief",
        "toy takes plain on hip:gfx950",
        "takes no [bold] shape & such",
    ):
        assert words in shown
    assert "needs sm90: found gfx950" in shown


def test_the_picture_fetches_nothing(tmp_path) -> None:
    """A repository's page shows it as an image, where the network is out of reach."""
    assert report.main(["--target", "cpu", "--svg", str(tmp_path / "report.svg")]) == 0
    text = (tmp_path / "report.svg").read_text()
    assert "font-face" not in text
    assert not re.search(r"url\(['\"]?http|href=", text)


# Errors


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        pytest.param(["--target", "hip:gfx9500"], {}, "target: got 'gfx9500', .*nearest are gfx950", id="unknown target"),
        pytest.param(["--target", "cuda:0", "--json"], {}, "target: got 'cuda:0', needs 'hip:gfx950'", id="a device"),
        pytest.param([], {"CAPGATE_TARGET": "nonsense"}, "CAPGATE_TARGET: target: got 'nonsense'", id="bad variable"),
        pytest.param(
            [], {"CAPGATE_DISABLE": "gluom"}, "CAPGATE_DISABLE: no capability 'gluom'; the nearest are gluon", id="bad switch"
        ),
    ],
)
def test_a_wrong_request_is_one_line_and_status_2(python, arguments: list[str], variables: dict[str, str], words: str) -> None:
    done = python(*MODULE, *arguments, **variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(f"capgate: {words}.*\n", done.stderr)


def test_help(python) -> None:
    done = python(*MODULE, "--help")
    assert done.returncode == 0
    assert {"--target", "--json"} <= set(re.findall(r"--\w+", done.stdout))
