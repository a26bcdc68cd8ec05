"""Recordings and operations are compiled for other GPUs and Tritons, and what is found is said."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from capgate import compat
from capgate.compat.check import cells, command, configuration, tables, tritons
from capgate.compat.check.recordings import import_folder
from capgate.compat.check.sources import Sources, kernel_of
from capgate.compat.check.unrun import UnrunGpu
from capgate.compat.check.values import Pointer, UnrecordableError, describe, rebuild
from capgate.kernels.cli import main

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")


def rows_of(file: Path, **wanted: Any) -> list[dict[str, Any]]:
    result = json.loads(file.read_text())
    rows = [{**row, "title": result["subjects"][row["subject"]]["title"]} for row in result["rows"]]
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def test_a_recording_is_compiled_without_running_the_script(record: Callable[..., int], project: Path) -> None:
    assert record("--fake", "script.py", "fake") == 0
    (project / "gone.py").write_text("")
    asked = ["--target", "cuda:90,hip:gfx950", "--json", "r.json", "--junit", "r.xml", "--markdown", "r.md"]
    assert main(["check", *asked]) == 1
    rows = rows_of(project / "r.json")
    assert len(rows) == 2 * 6
    scaled = [row for row in rows if "scaled" in row["title"]]
    assert [(row["compiled"], row["spills"]) for row in scaled] == [(True, 0)] * 6, scaled
    assert all(row["vgprs"] > 0 and row["code_bytes"] > 0 for row in scaled)
    # They differ in alignment and in divisibility alone.
    assert len({row["code_bytes"] for row in scaled if row["target"] == "cuda:90"}) > 1
    tiled = {row["target"]: row for row in rows if "tiled" in row["title"]}
    assert tiled["cuda:90"]["compiled"]
    assert not tiled["hip:gfx950"]["compiled"]  # its layout has 32 lanes, and a wave there 64
    (broken,) = {row["error"] for row in rows if "broken" in row["title"]}
    assert "has no attribute 'no_such_function'" in broken
    (hidden,) = {row["error"] for row in rows if "hidden" in row["title"]}
    assert hidden.startswith("not recorded: it is defined inside a function")

    suites = ElementTree.parse(project / "r.xml").getroot()
    assert [(suite.get("tests"), suite.get("failures")) for suite in suites] == [("6", "2"), ("6", "3")]
    page = (project / "r.md").read_text()
    assert "script.py:broken | cuda:90 | no 1 |" in page
    assert f"\n\n1. {broken[:20]}" in page


@pytest.mark.one_lane
def test_a_result_is_known_until_the_source_changes(record: Callable[..., int], project: Path) -> None:
    assert record("--no-run", "script.py") == 0
    asked = ["check", "--target", "hip:gfx950", "--json", "r.json"]

    def cached() -> list[bool]:
        assert main(asked) == 0
        return [row["cached"] for row in rows_of(project / "r.json")]

    assert cached() == [False] * 3
    first = rows_of(project / "r.json")
    assert cached() == [True] * 3
    assert [{**row, "cached": False} for row in rows_of(project / "r.json")] == first
    neighbour = project / "neighbour.py"
    neighbour.write_text(neighbour.read_text().replace("value + value", "value * 2 + 1"))  # which the kernel calls
    assert cached() == [False] * 3


@pytest.mark.one_lane
def test_an_operation_is_compiled_where_it_applies(project: Path) -> None:
    assert main(["check", "paged_mqa_schedule", "--target", "hip:gfx950", "--json", "r.json"]) == 0
    rows = rows_of(project / "r.json", applies=True)
    assert [(row["title"].split(",")[0], row["compiled"]) for row in rows] == [("paged_mqa_schedule: classic", True)]


# --- arguments ------------------------------------------------------------------------------------------------------------


@dataclass
class Descriptor:
    """As Triton's and Gluon's, which get fields from release to release."""

    block: list[int]
    rounded: int
    padding: str = "zero"
    bases: list[int] = field(default_factory=list)


def refused(value: Any) -> dict[str, Any]:
    raise UnrecordableError("a function")


@pytest.mark.one_lane
def test_arguments_come_back_as_triton_sees_them() -> None:
    x = torch.zeros(64, dtype=torch.bfloat16)
    for value, aligned in ((x, True), (x[1:], False), (torch.empty(8, device="meta")[1:], False)):
        pointer = rebuild(json.loads(json.dumps(describe(value, refused))), refused)
        assert isinstance(pointer, Pointer)
        assert (pointer.dtype, pointer.data_ptr() % 16 == 0) == (value.dtype, aligned)
        assert pointer.ptr_range() < 2**31
    far = describe(torch.empty(2**31, dtype=torch.uint8, device="meta"), refused)
    assert rebuild(far, refused).ptr_range() >= 2**31
    for plain in (None, True, 7, -(2**40), 0.5, float("inf"), "none", (1, (2.0, None)), torch.float16):
        assert rebuild(json.loads(json.dumps(describe(plain, refused))), refused) == plain
    padded = describe(Descriptor([16], 3), refused)
    assert list(padded["fields"]) == ["block", "rounded"]  # what has its default is left to the class, which may not have it
    tl = pytest.importorskip("triton.language")
    assert rebuild(describe(tl.constexpr(tl.float8e5), refused), refused) == tl.float8e5
    with pytest.raises(UnrecordableError, match=r"a builtins\.set, which no file can hold"):
        describe({1}, refused)


@pytest.mark.one_lane
def test_of_a_script_only_what_a_kernel_needs_is_run(project: Path) -> None:
    for file in ("ran", "begun"):  # with either the script raises
        (project / file).write_text("")
    sources = Sources(project)
    found = sources.find("__main__", "script.py", "scaled")
    assert kernel_of(found).__name__ == "scaled"
    assert kernel_of(found) is not found
    assert "run" not in kernel_of(found).fn.__globals__
    assert sources.find("gone", "neighbour.py", "twice").__name__ == "twice"  # a module that nobody has on the path


@pytest.mark.one_lane
def test_what_stands_beside_a_script_goes_before_others_of_its_names(project: Path) -> None:
    """Two scripts, each with a module and a package of names that the other and the current folder have, too."""
    for folder in (project / "first", project / "second", project):
        (folder / "shared").mkdir(parents=True)
        (folder / "shared" / "__init__.py").write_text("")
        (folder / "shared" / "inner.py").write_text(f"def whose():\n    return '{folder.name}, shared'\n")
        (folder / "beside.py").write_text(f"def whose():\n    return '{folder.name}, beside'\n")
        text = "import beside\nimport shared.inner\ndef both():\n    return beside.whose(), shared.inner.whose()\n"
        (folder / "script.py").write_text(text)
    sys.path.append(str(project))  # where capgate check looks last
    sources = Sources(project)
    for name in ("first", "second", "first"):
        wanted = f"{name}, beside", f"{name}, shared"
        assert sources.find("beside", f"{name}/beside.py", "whose")() == wanted[0]
        assert sources.find("shared.inner", f"{name}/shared/inner.py", "whose")() == wanted[1]
        assert sources.find("__main__", f"{name}/script.py", "both")() == wanted
    assert sources.find("beside", "beside.py", "whose")() == f"{project.name}, beside"
    assert sources.find("shared.inner", "shared/inner.py", "whose")() == f"{project.name}, shared"
    assert sources.find("__main__", "script.py", "both")() == (f"{project.name}, beside", f"{project.name}, shared")


@pytest.mark.one_lane
def test_a_folder_that_was_on_the_path_keeps_its_place(project: Path) -> None:
    for folder in (project / "early", project / "scripts"):
        folder.mkdir()
        (folder / "beside.py").write_text(f"def whose():\n    return '{folder.name}'\n")
    sys.path[:] = before = [str(project / "early"), *sys.path]
    sources = Sources(project)
    for name in ("scripts", "early"):
        assert sources.find("beside", f"{name}/beside.py", "whose")() == name
    assert sources.find("beside", "beside.py", "whose")() == "early"
    assert sys.path == [*before, str(project / "scripts")]


@pytest.mark.one_lane
@pytest.mark.parametrize(
    ("module", "file", "folder"),
    [
        ("a.b", "/x/a/b.py", "/x"),
        ("a.b", "/x/a/b/__init__.py", "/x"),
        ("b", "x/b.py", "x"),
        ("b", "b.py", None),
        ("b", "x/c.py", None),
        ("__main__", "/x/script.py", None),
    ],
)
def test_what_a_module_is_imported_from(module: str, file: str, folder: str | None) -> None:
    assert import_folder(module, Path(file)) == (Path(folder) if folder else None)


# --- which Tritons --------------------------------------------------------------------------------------------------------


def wheel(folder: Path, version: str) -> None:
    """A Triton of no great use."""
    info = f"triton-{version}.dist-info"
    with zipfile.ZipFile(folder / f"triton-{version}-py3-none-any.whl", "w") as file:
        file.writestr("triton/__init__.py", f"__version__ = '{version}'\n")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: triton\nVersion: {version}\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


@pytest.mark.one_lane
def test_a_triton_is_fetched_once_and_beside_the_installed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pip")
    wheel(tmp_path, "9.8.7")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    said: list[str] = []
    found = tritons.overlay("9.8.7", tmp_path / "cache", said.append)
    assert found.folder is not None
    assert (found.name, (found.folder / "triton" / "__init__.py").is_file()) == ("9.8.7", True)
    assert tritons.overlay("9.8.7", tmp_path / "cache", said.append) == found
    assert said == ["fetching Triton 9.8.7"]
    assert [one.name for one in found.folder.parent.iterdir()] == ["triton-9.8.7"]
    code = "import triton; print(triton.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(found.folder)}, check=True
    )
    assert done.stdout == "9.8.7\n"
    with pytest.raises(ValueError, match=r"pip gets no 9\.8\.8: ERROR: .*9\.8\.8"):
        tritons.overlay("9.8.8", tmp_path / "cache")
    assert tritons.overlay(str(found.folder), tmp_path).name == "9.8.7"
    for wrong in ("newest", "./nowhere"):
        with pytest.raises(ValueError, match=f"triton: got '{wrong}', needs a version"):
            tritons.overlay(wrong, tmp_path)


# --- what is asked, and what is said --------------------------------------------------------------------------------------


@pytest.mark.one_lane
@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("tritons = ['3.6.0']", "no key 'tritons'; the nearest"),
        ("triton = '3.6.0'", "triton: got '3.6.0', needs a list of texts"),
        ("fail-on = 'always'", "fail-on: got 'always', needs one of failures"),
        ("timeout = 0", "timeout: got 0, needs more than 0"),
    ],
)
def test_a_wrong_setting_is_named(
    table: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / configuration.FILE).write_text(f"[tool.capgate.check]\n{table}\n")
    assert main(["check"]) == 2
    said = capsys.readouterr().err
    assert words in said or "needs Python 3.11" in said


@pytest.mark.one_lane
def test_a_python_that_reads_no_toml_needs_to_only_for_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tomllib", None)
    (tmp_path / configuration.FILE).write_text("[project]\nname = 'theirs'\n")
    assert configuration.load(tmp_path) == {}
    (tmp_path / configuration.FILE).write_text("[tool.capgate.check]\n")
    with pytest.raises(ValueError, match=r"needs Python 3\.11 or newer"):
        configuration.load(tmp_path)


@pytest.mark.one_lane
def test_a_check_that_compiles_nothing_is_none(tmp_path: Path) -> None:
    code = "import sys; from capgate.kernels.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "check", "quantize_mx", "--target", "cuda:90", "--json", "r.json"]
    switches = {"CAPGATE_CACHE": str(tmp_path), "CAPGATE_DISABLE": "triton"}
    environment = {**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path)), **switches}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "capgate: needs triton: disabled" in done.stderr
    assert not any(row["applies"] for row in rows_of(tmp_path / "r.json"))


def result_of(*rows: dict[str, Any], trial: bool = False) -> tables.Result:
    """Of one kernel on two Tritons."""
    base = {"subject": 0, "target": "cuda:90", "applies": True, "compiled": True, "error": None, "cached": False}
    figures = {"vgprs": 40, "spills": 0, "lds_bytes": 1024}
    made = [{**base, **figures, "triton": name, **row} for name, row in zip(("3.5.1", "3.6.0"), rows, strict=True)]
    subjects = [{"title": "k", "told": ["x *float32"], "trial": trial}]
    return {"tritons": ["3.5.1", "3.6.0"], "targets": ["cuda:90"], "subjects": subjects, "rows": made}


FAILS = {"compiled": False, "error": "CompilationError: <no>"}


@pytest.mark.one_lane
def test_what_changed_is_told_from_the_first_triton() -> None:
    for row, cell, words in (
        ({}, "=", []),
        ({"vgprs": 48, "spills": 8}, "48/8/1024", ["registers 40 -> 48", "spills 0 -> 8"]),
        (FAILS, "no 1", ["compiles no more"]),
    ):
        result = result_of({}, row)
        assert f"| k | cuda:90 | 40/0/1024 | {cell} |" in tables.markdown(result)
        assert tables.changes(*result["rows"]) == words
    assert tables.changes(*result_of(FAILS, {})["rows"]) == ["compiles now"]
    assert r"1. CompilationError: \<no\>" in tables.markdown(result_of({}, FAILS))
    cases = ElementTree.fromstring(tables.junit(result_of({}, FAILS)).encode()).iter("failure")
    assert [case.get("message") for case in cases] == [FAILS["error"]]


@pytest.mark.one_lane
def test_what_fails_is_what_was_asked_to_fail() -> None:
    spilling, changed, failing = result_of({}, {"spills": 8}), result_of({}, {"vgprs": 41}), result_of({}, FAILS)
    fails = {name: [command._fails(result, name) for result in (spilling, changed, failing)] for name in command.FAIL_ON}
    assert fails == {"failures": [False, False, True], "spills": [True, False, True], "changes": [True, True, True]}
    assert not command._fails(result_of({}, FAILS, trial=True), "changes")  # an autotuner passes over it


@pytest.mark.one_lane
@pytest.mark.parametrize(
    ("target", "capability", "shared"),
    [("cuda:90", (9, 0), 232448), ("cuda:120", (12, 0), 101376), ("hip:gfx950", (9, 5), 163840), ("gfx1201", (12, 0), 65536),
     ("gfx90a", (9, 0), 65536), ("gfx1250-strict", (12, 5), 65536)],
)  # fmt: skip
def test_a_script_is_told_of_the_target(target: str, capability: tuple[int, int], shared: int) -> None:
    gpu = UnrunGpu(compat.capabilities(target).target, fake=False)
    assert (gpu.get_device_capability(), gpu.get_device_properties()["max_shared_mem"]) == (capability, shared)


@pytest.mark.one_lane
def test_a_pointer_without_torch_has_a_dtype_of_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    described = {"kind": "tensor", "dtype": "bfloat16", "aligned": True, "small": True}
    assert rebuild(described, pytest.fail).dtype is torch.bfloat16
    monkeypatch.setitem(sys.modules, "torch", None)
    assert rebuild(described, pytest.fail).dtype == triton.language.bfloat16


@pytest.mark.one_lane
def test_what_no_block_has_the_memory_for_is_a_failure() -> None:
    """Triton compiles it, and raises OutOfResources when it is launched."""
    target = compat.capabilities("hip:gfx942").target
    fits, too_large = ({"compiled": True, "lds_bytes": size} for size in (65536, 65537))
    assert cells._too_large(fits, target) == {}
    words = "compiles, and cannot be launched: needs 65537 bytes of shared memory, found 65536"
    assert cells._too_large(too_large, target) == {"compiled": False, "error": words}
    assert cells._too_large(too_large, compat.capabilities("cuda:90").target) == {}
    assert cells._too_large({"compiled": False, "error": "no"}, target) == {}


@pytest.mark.one_lane
def test_neither_torch_nor_triton_is_imported_to_be_asked() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['triton'] = None\n"
        "from capgate.kernels.cli import main; print(main(['record', '--', 'true'])); sys.exit(main(['check', 'nowhere.json']))"
    )
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path)), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    nothing, missing = done.stderr.splitlines()
    assert (done.stdout, nothing) == ("1\n", "capgate: no launch of a Triton kernel was noted, and no file written")
    assert done.returncode == 2
    assert missing == "capgate: what: no file 'nowhere.json', needs one that capgate record wrote, or an operation's name"
    assert compat.record is not None
