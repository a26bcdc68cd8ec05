"""CAPGATE_TUNINGS: rows of a file over those of the tables, for one GPU; what is wrong in it is refused by name."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from capgate import compat
from capgate.compat import SwitchError, report
from capgate.compat import _switches as switches
from capgate.compat.tunings import Tunings


class Tuning(NamedTuple):
    num_warps: int
    options: tuple[tuple[str, Any], ...] = ()


class Problem(NamedTuple):
    device: Any
    heads: int = 64


@pytest.fixture
def toy() -> compat.Operation[Problem]:
    operation = compat.Operation[Problem]("toy", example=Problem)
    operation.add(compat.Variant("plain", print))
    return operation


def document(*rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"tunings": 1, "target": "cuda:90", "device": "NVIDIA H200", "rows": list(rows), **changes}


ROW = {
    "operation": "toy",
    "variant": "plain",
    "where": {"heads": 64},
    "fields": {"num_warps": 8, "options": [["maxnreg", 128]]},
}


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Any]:
    def write(content: Any) -> str:
        (tmp_path / "h200.json").write_text(json.dumps(content))
        return str(tmp_path / "h200.json")

    return write


def test_fields_of_a_row_are_those_of_the_problems_that_it_means(toy: Any, file: Any) -> None:
    name = file(document(ROW))
    assert toy.loaded("plain", Problem("cuda:90")) is None
    with compat.override(tunings=name):
        loaded = toy.loaded("plain", Problem("cuda:90"))
        assert loaded.over(Tuning(4)) == Tuning(8, (("maxnreg", 128),))
        assert toy.loaded("plain", Problem("cuda:90", heads=32)) is None
        assert toy.loaded("plain", Problem("hip:gfx950")) is None, "of another target"
        with compat.override(disable=["gluon"]):
            assert toy.loaded("plain", Problem("cuda:90")), "other switches leave it"
    assert toy.loaded("plain", Problem("cuda:90")) is None


def test_a_problem_of_the_default_target_is_looked_up_for_each(toy: Any, file: Any) -> None:
    with compat.override(tunings=file(document(ROW))):
        for target, has in {"hip:gfx950": False, "cuda:90": True, "cpu": False}.items():
            with compat.override(target=target):
                assert (toy.loaded("plain", Problem(None)) is not None) == has


def test_the_trace_and_the_report_say_it(toy: Any, file: Any) -> None:
    name = file(document(ROW))
    words = f"needs nothing; tuned by {name}: num_warps 8, options (('maxnreg', 128),)"
    with compat.override(tunings=name):
        assert toy.explain(Problem("cuda:90")).steps[0].reason == words
        assert report.collect("cuda:90")["operations"]["toy"]["trace"][0]["reason"] == words
    assert toy.explain(Problem("cuda:90")).steps[0].reason == "needs nothing"


def test_the_environment_names_the_file(file: Any) -> None:
    read = switches.read({"CAPGATE_TUNINGS": file(document(ROW))})
    assert read.tunings is not None
    assert read.tunings.rows == (ROW,)
    assert read.key != switches.read({}).key, "launches are kept for one tuning"
    assert switches.read({"CAPGATE_TUNINGS": ""}).tunings is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "does not hold what CAPGATE_TUNINGS loads"),
        (document({**ROW, "field": {}}), r"does not hold what CAPGATE_TUNINGS loads: rows\[0\]: .*field"),
        (
            document({**ROW, "fields": {"options": {"maxnreg": 128}}}),
            r"does not hold what CAPGATE_TUNINGS loads: rows\[0\]\.fields\.options: got an object",
        ),
        (document(ROW, gpu="H200"), "does not hold what CAPGATE_TUNINGS loads: .*gpu"),
        (document(ROW, tunings=2), "does not hold what CAPGATE_TUNINGS loads: tunings: got 2"),
    ],
)
def test_a_file_of_another_form_is_refused(content: Any, words: str, file: Any) -> None:
    name = file(content)
    with pytest.raises(SwitchError, match=f"^CAPGATE_TUNINGS: {name}: {words}"):
        switches.read({"CAPGATE_TUNINGS": name})
    with pytest.raises(SwitchError, match=f"^tunings: {name}: {words}"):
        compat.override(tunings=name)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SwitchError, match=r"^CAPGATE_TUNINGS: .*No such file.*nowhere\.json"):
        switches.read({"CAPGATE_TUNINGS": str(tmp_path / "nowhere.json")})
    with pytest.raises(TypeError, match=r"^tunings: got int, needs"):
        compat.override(tunings=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"operation": "toi"}, "no operation 'toi'; the nearest are toy"),
        ({"variant": "plane"}, "toy has no variant 'plane'; the nearest are plain"),
        ({"where": {"head": 64}}, "toy has no field 'head' of a problem; the nearest are heads"),
        ({"fields": {"num_warp": 8}}, "no field 'num_warp' of a tuning; the nearest are num_warps"),
    ],
)
def test_a_row_of_what_does_not_exist_is_refused(row: dict[str, Any], words: str, toy: Any) -> None:
    tunings = Tunings("h200.json", "cuda:90", "NVIDIA H200", [ROW | row])
    with compat.override(tunings=tunings), pytest.raises(ValueError, match=f"^h200.json: {words}"):
        toy.loaded("plain", Problem("cuda:90")).over(Tuning(4))


@pytest.mark.parametrize(("found", "target"), [("NVIDIA H100 80GB HBM3", "cuda:90"), ("AMD Instinct MI355X", "hip:gfx950")])
def test_a_file_of_another_gpu_is_refused(found: str, target: str, toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: found)
    tunings = Tunings("h200.json", "cuda:90", "NVIDIA H200", [ROW])
    problem = Problem(torch.device("cuda"))
    aim = compat.capabilities(target).target
    with pytest.raises(ValueError, match=rf"^h200\.json: is of NVIDIA H200 \(cuda:90\), found {found} \({target}\)"):
        tunings.loaded(toy, "plain", problem, aim)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    loaded = tunings.loaded(toy, "plain", problem, compat.capabilities("cuda:90").target)
    assert loaded is not None
