"""report: everything with its reason, for people and for programs, on any machine."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import pytest

from capgate import compat
from capgate.compat import Variant, report
from capgate.compat.table import TABLE

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
    builds = {"capgate", "location", "python", "drivers", "triton", "triton_kernels", "torch"}
    assert builds | {"target", "targets", "notes", "capabilities", "operations"} == found.keys()
    assert found["drivers"].keys() == {"nvidia", "amd"}
    assert list(found["capabilities"]) == list(TABLE)
    keys = {"available", "reason", "kind", "meaning", "source"}
    assert all(verdict.keys() == keys for verdict in found["capabilities"].values())
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
    assert [note.partition(":")[0] for note in found["notes"] if not note.startswith(("torch", "triton"))] == ["NVIDIA"]
    caps = compat.capabilities()
    for name, row in TABLE.items():
        about = {"kind": row.kind, "meaning": row.meaning, "source": row.source}
        assert found["capabilities"][name] == {"available": caps[name].available, "reason": caps.why(name), **about}


def test_the_collected_report_is_json() -> None:
    found = report.collect("hip:gfx950")
    assert json.loads(json.dumps(found)) == found


def test_operations_show_the_variant_for_their_example(toy) -> None:
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
    assert (verdict["available"], verdict["reason"]) == (False, "disabled by override(disable=['gfx950'])")


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
        assert (verdict["available"], verdict["reason"]) == (True, f"found Triton {lane}; found gfx950")


@pytest.mark.one_lane
def test_it_says_what_it_is_and_where_it_was_loaded_from(python) -> None:
    found = json.loads(python(*MODULE, "--target", "cpu", "--json").stdout)
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert os.path.samefile(os.path.join(found["location"], "compat", "report.py"), report.__file__)
    said = " ".join(python(*MODULE, "--target", "cpu").stdout.split())
    assert f"capgate {found['capgate']} at " in said
    assert python(*MODULE, "--version").stdout == f"capgate {found['capgate']}\n"


@pytest.mark.one_lane
@pytest.mark.parametrize("file", ["capgate/anything.txt", "capgate/__init__.py", "capgate.py"])
def test_another_capgate_is_said(python, tmp_path, file) -> None:
    """One behind this on Python's path, and one in the current folder, where a command does not look and ``python -c`` does."""
    for folder in ("elsewhere", "cwd"):
        (tmp_path / folder / file).parent.mkdir(parents=True)
        (tmp_path / folder / file).touch()
    command = tmp_path / "command.py"
    behind = f"import sys; sys.path.append({str(tmp_path / 'elsewhere')!r})"
    command.write_text(f"{behind}; from capgate.compat import _installation; print(*_installation.shadows(), sep='\\n')")
    notes = python(str(command)).stdout.splitlines()
    what, place = ("module", file) if file.endswith(".py") else ("folder", "capgate")
    for folder in ("elsewhere", "cwd"):
        beginning = f"another {what} called capgate lies at {os.path.realpath(tmp_path / folder / place)}"
        assert [note.startswith(beginning) for note in notes].count(True) == 1


@pytest.mark.one_lane
def test_a_script_called_capgate_is_no_package(python, tmp_path) -> None:
    (tmp_path / "capgate").touch()
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), str(tmp_path)]))
    notes = json.loads(python(*MODULE, "--target", "cpu", "--json", PYTHONPATH=path).stdout)["notes"]
    assert str(tmp_path / "capgate") not in str(notes)


def test_the_drivers_have_versions(machine, monkeypatch, tmp_path, capsys) -> None:
    assert report.collect("cpu")["drivers"] == {"nvidia": None, "amd": None}
    nvml = machine.nvidia({"GPU-a": (9, 0)})
    nvml._nvmlSystemGetDriverVersion = lambda: b"580.65.06"
    (tmp_path / "version").write_text("6.14.14\n")
    monkeypatch.setattr("capgate.compat._installation.AMDGPU", str(tmp_path))
    assert report.collect("cpu")["drivers"] == {"nvidia": "580.65.06", "amd": "6.14.14"}
    (tmp_path / "version").unlink()
    assert report.collect("cpu")["drivers"]["amd"].startswith("of Linux ")
    report.main(["--target", "cpu"])
    assert "nvidia driver 580.65.06" in " ".join(capsys.readouterr().out.split())


def test_drop_ins_are_reported_where_somebody_knows_them(capsys) -> None:
    states = {"aiter": {"asked": True, "library": False, "installed": False}}
    assert report.collect("cpu", lambda: states)["dropins"] == states
    report.show(report.collect("cpu", lambda: states))
    assert "aiter asked for by CAPGATE_DROPIN, its library is not there" in " ".join(capsys.readouterr().out.split())
    taken, left = (
        {"functions": ["f", "g"], "places": ["a.f", "a.g"]},
        {"functions": ["h"], "reason": "a offers no such function"},
    )
    states["aiter"] |= {"library": True, "installed": True, "taken": [taken], "left": [left]}
    report.show(report.collect("cpu", lambda: states))
    said = " ".join(capsys.readouterr().out.split())
    assert "installed in this process taken: f, g at a.f, a.g left: h (a offers no such function)" in said


def test_every_meaning_is_shown(capsys) -> None:
    report.main(["--target", "hip:gfx950"])
    said = "".join(capsys.readouterr().out.split())  # a long word is folded
    assert [name for name, row in TABLE.items() if "".join(row.meaning.split()) not in said] == []


# What others' code does to it


class Panic(BaseException):
    """As an extension in Rust raises it."""


def raising(error: BaseException) -> Callable[..., Any]:
    def function(*arguments: Any) -> Any:
        raise error

    return function


ENDINGS = [ZeroDivisionError("division by zero"), SystemExit(3), Panic("rust"), RecursionError()]


@pytest.mark.parametrize("error", ENDINGS, ids=lambda error: type(error).__name__)
def test_an_example_that_raises_is_named_and_hides_no_other_operation(toy, error: BaseException) -> None:
    other: compat.Operation[Any] = compat.Operation("other", example=raising(error))
    other.add(Variant("scaled", lambda: None, requires=("scaled_mfma",), accepts=raising(AssertionError("not asked"))))
    shown = report.collect("hip:gfx950")["operations"]
    assert shown["toy"]["variant"] == "plain"
    assert shown["other"]["error"].startswith(f"its example raised {type(error).__name__}")
    assert [step["variant"] for step in shown["other"]["trace"]] == ["scaled"], "its capabilities are known all the same"


@pytest.mark.parametrize("error", ENDINGS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("rule", ["accepts", "unless_named"])
def test_a_rule_that_raises_sets_its_own_variant_aside(rule: str, error: BaseException, capsys) -> None:
    made: compat.Operation[Any] = compat.Operation("made", example=str)
    made.add(Variant("faulty", lambda: None, **{rule: raising(error)}))
    made.add(Variant("plain", lambda: None))
    shown = report.collect("hip:gfx950")["operations"]["made"]
    assert shown["variant"] == "plain"
    faulty, plain = shown["trace"]
    assert (faulty["accepted"], plain["accepted"]) == (False, True)
    assert faulty["reason"].startswith(f"its rule {rule} raised {type(error).__name__}")
    assert json.loads(json.dumps(shown)) == shown
    assert report.main(["--target", "hip:gfx950"]) == 0
    assert f"its rule {rule} raised" in " ".join(capsys.readouterr().out.split())


def test_rules_of_the_operation_itself_stay_as_they_were(toy) -> None:
    before = [(variant.accepts, variant.unless_named) for variant in toy.variants.values()]
    report.collect("hip:gfx950")
    assert [(variant.accepts, variant.unless_named) for variant in toy.variants.values()] == before


def test_an_example_that_is_no_problem_is_named(toy) -> None:
    compat.Operation("listed", example=lambda target: [target]).add(Variant("plain", lambda: None))
    shown = report.collect("cpu")["operations"]
    assert "the choice for its example raised TypeError" in shown["listed"]["error"]
    assert shown["toy"]["variant"] == "plain"


def test_ctrl_c_is_no_fault_of_an_operation(capsys) -> None:
    compat.Operation("slow", example=raising(KeyboardInterrupt()))
    assert report.main(["--target", "cpu"]) == 130
    assert capsys.readouterr() == ("", "capgate: interrupted\n")


ENTRY_POINT = "[capgate.operations]\ntheirs = their_kernels:operation\n"


def test_an_entry_point_that_exits_is_an_operation_with_an_error(site, capsys) -> None:
    site.package("their_kernels", "raise SystemExit(4)")
    site.distribution("their-kernels", "1.0", ENTRY_POINT)
    assert report.main(["--target", "cpu", "--json"]) == 0
    said = capsys.readouterr()
    shown = json.loads(said.out)["operations"]
    words = "operation theirs (their_kernels:operation) does not load: SystemExit: 4"
    assert shown["theirs"] == {"variant": None, "trace": [], "error": words}
    assert {"fp8_mqa_logits", "select_keys"} <= shown.keys()
    assert said.err == "", "it is said once"
    assert report.main(["--target", "cpu"]) == 0
    assert words in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("text", [b"[capgate.operations]\nno equals sign\n", b"[capgate.operations]\nJ\xfcrgen = a:b\n"])
def test_a_distribution_with_broken_entry_points_hides_no_other(site, text: bytes) -> None:
    site.distribution("broken", "1.0")
    (site.folder / "broken-1.0.dist-info" / "entry_points.txt").write_bytes(text)
    shown = report.collect("cpu")["operations"]
    assert "fp8_mqa_logits" in shown
    if "distribution broken" not in str(shown):  # Python 3.10 reads a line without an equals sign
        assert all("error" not in choice for choice in shown.values())


PRINTS = """
import atexit, ctypes, os, subprocess, sys
from capgate import compat
print("Welcome")
sys.__stdout__.write("Welcome, buffered")
os.write(1, b"Welcome, unbuffered")
libc = ctypes.CDLL(None)
libc.printf(b"Welcome from C")
subprocess.run([sys.executable, "-c", "print('Welcome from a child')"])
atexit.register(print, "Goodbye")
atexit.register(libc.printf, b"Goodbye from C")
operation = compat.Operation("theirs", example=print)
operation.add(compat.Variant("plain", print, accepts=print))
"""


@pytest.mark.one_lane
def test_standard_output_is_json_alone_whatever_is_printed(site, python) -> None:
    site.package("their_kernels", PRINTS)
    site.distribution("their-kernels", "1.0", ENTRY_POINT)
    path = os.pathsep.join([str(site.folder), os.environ.get("PYTHONPATH", "")])
    done = python(*MODULE, "--target", "cpu", "--json", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["operations"]["theirs"]["variant"] == "plain"
    for words in ("Welcome\n", "buffered", "unbuffered", "from C", "from a child", "Goodbye\n", "Goodbye from C"):
        assert words in done.stderr


def _into(output: Any, arguments: list[str], unbuffered: str) -> tuple[int, str]:
    """The status and last words of a report whose standard output is ``output``; without packages that take long to import."""
    code = WITHOUT.format(names=["torch", "triton"], arguments=["--target", "cpu", *arguments])
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, timeout=1200, env=environment)
    return done.returncode, done.stderr


@pytest.mark.one_lane
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--json"], []], ids=" ".join)
def test_nobody_has_to_read_to_the_end(arguments: list[str], unbuffered: str) -> None:
    """A pipe without a reader: quiet, and with the status of a process that SIGPIPE ended."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        assert _into(closed, arguments, unbuffered) == (128 + signal.SIGPIPE, "")


@pytest.mark.one_lane
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--json"], []], ids=" ".join)
def test_a_full_disk_is_one_line(arguments: list[str], unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        assert _into(full, arguments, unbuffered) == (2, "capgate: standard output: No space left on device\n")


@pytest.mark.one_lane
@pytest.mark.parametrize("closed", [1, 2])
def test_closed_descriptors_are_no_fault(closed: int) -> None:
    command = [sys.executable, *MODULE, "--target", "cpu", "--json"]
    done = subprocess.run(command, capture_output=True, preexec_fn=lambda: os.close(closed), timeout=1200)
    assert done.returncode == 0


@pytest.mark.one_lane
@pytest.mark.parametrize(
    ("package", "distribution"),
    [("rich", "rich"), ("rocm_bootstrap", "rocm-bootstrap"), ("pynvml", "nvidia-ml-py"), ("packaging", "packaging")],
)
def test_a_dependency_that_is_missing_is_named_with_what_brings_it(site, python, package: str, distribution: str) -> None:
    site.package("triton", "__version__ = '3.6.0'")  # without any Triton no version is read, and packaging not needed
    path = os.pathsep.join([str(site.folder), os.environ.get("PYTHONPATH", "")])
    done = python("-c", WITHOUT.format(names=(package,), arguments=["--target", "hip:gfx950"]), PYTHONPATH=path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"capgate: needs {distribution}, which is not installed: pip install {distribution} brings it\n"


@pytest.mark.one_lane
def test_json_needs_no_rich(python) -> None:
    done = python("-c", WITHOUT.format(names=("rich",), arguments=["--target", "hip:gfx950", "--json"]))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["target"] == "hip:gfx950"


# For people


def _cells(line: str) -> list[str]:
    return line.replace("|", " ").split()


@pytest.mark.parametrize(
    ("output", "variables"),
    [
        pytest.param("piped", {}, id="piped"),
        pytest.param(
            "terminal",
            {"FORCE_COLOR": "1", "COLUMNS": "80", "TERM": "xterm-256color"},
            id="terminal of 80 columns",
            marks=pytest.mark.one_lane,
        ),
        pytest.param("piped", {"PYTHONIOENCODING": "ascii"}, id="piped as ASCII", marks=pytest.mark.one_lane),
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


def test_the_report_shows_versions_gpus_reasons_and_variants(toy, machine, capsys) -> None:
    machine.amd("gfx942")
    assert report.main([]) == 0
    words = " ".join(capsys.readouterr().out.split())
    for expected in (
        f"torch {report.collect()['torch'] or 'not installed'}",
        "0 hip:gfx942",
        "This target (hip:gfx942)",
        "scaled_mfma no block-scaled MFMA instructions (f8f6f4) needs gfx950: found gfx942",
        "toy takes plain on hip:gfx942",
        "scaled no needs gfx950: found gfx942",
    ):
        assert expected in words


def test_reasons_are_shown_as_they_are(toy, machine, capsys) -> None:
    """Square brackets are no markup: "takes no [M, N, K] instruction shape"."""
    toy.add(Variant("bracketed", lambda: None, accepts=lambda problem: "takes no [bold] shape"))
    report.main(["--target", "cpu"])
    assert "takes no [bold] shape" in capsys.readouterr().out


@pytest.mark.one_lane
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


def test_names_and_reasons_of_others_steer_no_terminal(tmp_path, capsys) -> None:
    loud = "\x1b]8;;http://there\x07[red]here[/]\x9b31m \u202etxet"
    made: compat.Operation[Any] = compat.Operation(loud, example=lambda target: "a problem")
    made.add(Variant(loud, lambda: None, accepts=lambda problem: loud))
    made.add(Variant("failing", lambda: None, accepts=raising(ValueError(loud))))
    assert report.main(["--target", "cpu"]) == 0
    said = capsys.readouterr().out
    assert said.isprintable() or set(filter(lambda letter: not letter.isprintable(), said)) == {"\n"}
    assert "[red]here[/]" in said
    assert r"\x1b]8;;http://there\x07" in said
    assert report.main(["--target", "cpu", "--svg", str(tmp_path / "report.svg")]) == 0
    shown = "".join(ElementTree.fromstring((tmp_path / "report.svg").read_text()).itertext())
    assert "[red]here[/]" in shown


def test_a_brief_report_shows_what_the_build_can_do_on_the_target(toy, capsys) -> None:
    assert report.main(["--target", "hip:gfx950", "--brief"]) == 0
    said = capsys.readouterr().out
    assert "This Triton on this target (hip:gfx950)" in said
    capabilities, _, operations = said.partition("Operations on hip:gfx950")
    assert re.search(r"toy +plain", operations)
    assert "scaled_mfma" not in capabilities
    assert "gluon_padded_layout" not in said


def test_the_picture_shows_what_the_terminal_would(toy, tmp_path, capsys) -> None:
    toy.add(Variant("bracketed", lambda: None, accepts=lambda problem: "takes no [bold] shape & such"))
    assert report.main(["--target", "hip:gfx950", "--brief", "--svg", str(tmp_path / "report.svg")]) == 0
    assert capsys.readouterr().out == ""
    picture = ElementTree.fromstring((tmp_path / "report.svg").read_text())
    shown = "".join(picture.itertext()).replace("\xa0", " ")
    for words in (
        "capgate report --target hip:gfx950 --brief",
        "Operations on hip:gfx950",
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


@pytest.mark.one_lane
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


@pytest.mark.parametrize(
    ("file", "words"), [("missing/report.svg", "No such file or directory"), (".", "Is a directory"), ("", "Is a directory")]
)
def test_a_picture_that_cannot_be_written_is_one_line(file: str, words: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(report, "collect", lambda target: pytest.fail("nothing is asked before the file was looked at"))
    assert report.main(["--svg", file]) == 2
    assert capsys.readouterr() == ("", f"capgate: --svg: {file}: {words}\n")


@pytest.mark.one_lane
def test_help(python) -> None:
    done = python(*MODULE, "--help")
    assert done.returncode == 0
    assert {"--target", "--json"} <= set(re.findall(r"--\w+", done.stdout))
