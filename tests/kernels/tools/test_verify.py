"""``capgate verify``: what it finds, what it writes, and what becomes of cases that fail, of whatever they die."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from markdown_it import MarkdownIt  # rich brings it

from capgate import compat
from capgate.compat import versions
from capgate.kernels import cli
from capgate.kernels.mqa_logits.operation import operation as dense
from capgate.kernels.tools.verify import catalogue, child, document, jobs, page, verdicts, verification
from capgate.kernels.tools.verify.judge import Disagreement
from capgate.kernels.tools.verify.timed import timed

pytestmark = pytest.mark.usefixtures("no_gpu")
CASE = "rows 3 keys 150 heads 64 dim 128 packed clean"


def files(folder: Path) -> list[str]:
    return ["--json", str(folder / "run.json"), "--markdown", str(folder / "run.md")]


@pytest.mark.one_lane
def test_without_a_gpu_it_verifies_the_reference_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["verify", "quantize_mx", "paged_mqa_schedule", "--variants", "reference", "--quick", "--workers", "1"]
    assert cli.main([*arguments, *files(tmp_path)]) == 3
    run = document.DOCUMENT.read(str(tmp_path / "run.json"))
    assert [(case["operation"], case["variant"], case["verdict"]) for case in run["cases"]] == [
        ("paged_mqa_schedule", "reference", "agrees"),
        ("quantize_mx", "reference", "agrees"),
    ]
    assert run["complete"]
    assert run["stack"]["triton"] == versions.find("triton").text
    assert "serial" not in run["stack"]
    said = capsys.readouterr().out
    assert "There is no GPU here." in " ".join(said.split())
    written = (tmp_path / "run.md").read_text()
    assert "**2 of 2 cases agree with float64, 0 fail**" in written
    assert "No GPU ran anything of this." in written


def test_the_classic_kernels_are_verified_in_the_interpreter(interpreter: None, tmp_path: Path) -> None:
    arguments = ["verify", "fp8_mqa_logits", "--variants", "classic", "--quick", "--workers", "1"]
    assert cli.main([*arguments, *files(tmp_path)]) == 3
    run = document.DOCUMENT.read(str(tmp_path / "run.json"))
    assert run["executed"] == document.INTERPRETER
    verdict = {case["case"]: case["verdict"] for case in run["cases"]}
    assert verdict.pop("rows 3 keys 150 heads 64 dim 128 ragged unclean nan") == verdicts.NOT_TAKEN
    assert len(verdict) == 6
    assert set(verdict.values()) == {verdicts.AGREES}
    assert run["asked"] == [
        {"capability": "packed_clamp", "holds": None, "words": "not answered here: no variant that runs here uses it"}
    ]


def test_one_case_runs_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", "--case", "fp8_mqa_logits", "reference", CASE]) == 0
    assert capsys.readouterr().out == f"fp8_mqa_logits, reference, {CASE}: agrees\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fp8_mqa_logit"], "operation: no operation 'fp8_mqa_logit'; the nearest are fp8_mqa_logits"),
        (["--variants", "clasic"], "--variants: no variant 'clasic'; the nearest are classic"),
        (["--workers", "0"], "--workers: got 0, needs 1 or more"),
        (["--case", "fp8_mqa_logits", "referense", CASE], "--case: fp8_mqa_logits has no variant 'referense'"),
        (["--case", "fp8_mqa_logits", "reference", "rows 3"], "case: fp8_mqa_logits has none called 'rows 3'"),
        (["--merge", "/nowhere/run.json"], "/nowhere/run.json"),
    ],
)
def test_wrong_arguments_are_refused_by_name(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", *files(tmp_path), *arguments]) == 2
    assert words in capsys.readouterr().err


# --- the catalogue ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("small", [True, False])
def test_every_operation_has_cases_each_under_a_name_of_its_own(small: bool) -> None:
    every = catalogue.cases(small)
    names = [(case.operation.name, case.name) for case in every]
    assert len(set(names)) == len(names)
    ours = {name for name, operation in compat.operations().items() if (operation.module or "").startswith("capgate.kernels.")}
    assert {name for name, _ in names} == ours
    assert {case.operation.name for case in catalogue.cases(small, quick=True)} == ours
    assert {each.operation.name for each in timed()} == ours
    assert all(len(name) < 200 for _, name in names)
    for operation, name in names:
        assert catalogue.find(operation, name, small).name == name


# --- what is found ----------------------------------------------------------------------------------------------------------


def judged(variant: str = "reference", case: str = CASE) -> dict[str, Any]:
    """What the process for it says of a case, in this one."""
    job = {"what": "judge", "operation": "fp8_mqa_logits", "variant": variant, "case": case}
    began, row = child.answer(child.Child(torch.device("cpu"), small=True, flush_bytes=0), job)
    assert began == {"began": True}, "its time is counted from here"
    assert row.pop("compiled")
    assert row.pop("usable")
    return row


def replace_reference(monkeypatch: pytest.MonkeyPatch, launch: Any) -> None:
    monkeypatch.setattr(dense.variants["reference"], "_implementation", launch)


def test_a_wrong_cell_is_a_disagreement(monkeypatch: pytest.MonkeyPatch) -> None:
    right = dense.load(dense.variants["reference"])

    def wrong(inputs: Any, out: torch.Tensor, **options: Any) -> None:
        right(inputs, out, **options)  # type: ignore[operator]
        inside = out.isfinite().nonzero()[0]
        out[tuple(inside)] += 1

    assert judged()["verdict"] == verdicts.AGREES
    replace_reference(monkeypatch, wrong)
    row = judged()
    assert row["verdict"] == verdicts.DISAGREES
    assert row["words"].startswith(("calc_diff is", "1 cells of"))


def test_a_word_between_the_rows_is_a_disagreement(monkeypatch: pytest.MonkeyPatch) -> None:
    right = dense.load(dense.variants["reference"])

    def spills(inputs: Any, out: torch.Tensor, **options: Any) -> None:
        right(inputs, out, **options)  # type: ignore[operator]
        torch.empty(0).set_(out.untyped_storage())[0] = 7.0

    replace_reference(monkeypatch, spills)
    row = judged()
    assert (row["verdict"], row["words"].partition(" that ")[0]) == (verdicts.DISAGREES, "1 words changed")


def test_what_is_raised_is_told_from_what_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*operands: Any, **options: Any) -> None:
        raise RuntimeError("an illegal memory access")

    replace_reference(monkeypatch, raises)
    row = judged()
    assert (row["verdict"], row["words"]) == (verdicts.RAISES, "RuntimeError: an illegal memory access")
    assert "an illegal memory access" in row["traceback"]
    space = {"__name__": "triton.compiler.compiler"}
    exec("def compile(*operands, **options): raise ValueError('no such layout')", space)
    replace_reference(monkeypatch, space["compile"])
    assert judged()["verdict"] == verdicts.DOES_NOT_COMPILE


def test_a_variant_that_refuses_a_case_is_no_failure() -> None:
    row = judged("gluon_hopper")
    assert row["verdict"] == verdicts.NOT_TAKEN
    assert "needs sm90" in row["words"]


# --- processes that break ---------------------------------------------------------------------------------------------------


class Processes:
    """What stands in the place of a child process: its answers are by case, a list of them one for each time it is asked."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers, self.started = answers, 0

    def __call__(self, module: str, request: dict[str, Any], environment: Any, called: str) -> "Processes.Child":
        self.started += 1
        return self.Child(self, [job["case"] for job in request["jobs"]])

    class Child:
        def __init__(self, every: "Processes", cases: list[str]) -> None:
            self._every, self._left, self.gone = every, cases, False

        def __enter__(self) -> "Processes.Child":
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def answer(self, timeout: float) -> dict[str, Any]:
            assert not self.gone, "the process is dead"
            given = self._every.answers.get(self._left.pop(0), "agrees")
            given = given.pop(0) if isinstance(given, list) else given
            if given == "dies":
                self.gone = True
                return {"compiled": False, "error": "the process died of SIGSEGV"}
            row = {"compiled": True, "usable": given != "faults", "verdict": "agrees", "words": "", "seconds": 0.1}
            return row if given in ("agrees", "faults") else {**row, "verdict": given}


def judge_jobs(monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any], *groups: str) -> tuple[list[tuple[str, str]], int]:
    """Each case with its verdict as they come, and how many processes that took."""
    processes = Processes(answers)
    monkeypatch.setattr(jobs, "Answers", processes)
    asked = [[{"what": "judge", "operation": "o", "variant": "v", "case": case} for case in group] for group in groups]
    found = jobs.Runner("cuda:0").side_by_side(asked, 1)
    return [(job["case"], row["verdict"]) for job, row in found], processes.started


def test_a_case_that_kills_its_process_leaves_the_others_and_is_tried_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found, started = judge_jobs(monkeypatch, {"b": "dies"}, "abc", "d")
    assert found == [("a", "agrees"), ("b", "dies"), ("c", "agrees"), ("d", "agrees"), ("b", "dies")]
    assert started == 4


def test_a_fault_that_another_process_caused_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    found, started = judge_jobs(monkeypatch, {"a": ["faults", "agrees"]}, "ab")
    assert found == [("a", "faults"), ("b", "agrees"), ("a", "agrees")]
    assert started == 3


def test_a_group_ends_after_a_few_broken_processes_and_so_does_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    found, started = judge_jobs(monkeypatch, dict.fromkeys("abcde", "dies"), "abcde")
    assert found[:5] == [("a", "dies"), ("b", "dies"), ("c", "dies"), ("d", "not judged"), ("e", "not judged")]
    assert found[5:] == [("a", "dies"), ("b", "dies"), ("c", "dies")]
    assert started == 6


def test_a_failure_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert judge_jobs(monkeypatch, {"a": "disagrees"}, "ab") == ([("a", "disagrees"), ("b", "agrees")], 1)


@pytest.mark.one_lane
def test_a_real_process_that_dies_is_named(tmp_path: Path) -> None:
    runner = jobs.Runner("no such device")
    ((_, row),) = runner.in_order([{"what": "judge", "operation": "o", "variant": "v", "case": "c"}])
    assert row["verdict"] == verdicts.DIES
    assert row["words"].startswith("the process exited with status 1: ")


# --- files ------------------------------------------------------------------------------------------------------------------


def case(name: str, verdict: str = verdicts.AGREES, words: str = "", variant: str = "gluon_cdna4") -> dict[str, Any]:
    names = {"operation": "fp8_mqa_logits", "variant": variant, "case": name}
    return {**names, "verdict": verdict, "words": words, "seconds": 1.5}


def a_run(*cases: dict[str, Any], **changes: Any) -> dict[str, Any]:
    stack = {"device": "AMD Instinct MI355X", "target": "hip:gfx950", "capgate": "0.1.0", "triton": "3.6.0"}
    variants = [
        {"operation": "fp8_mqa_logits", "variant": "gluon_cdna4", "taken": True, "reason": "found gfx950"},
        {"operation": "fp8_mqa_logits", "variant": "gluon_hopper", "taken": False, "reason": "needs sm90: found gfx950 | 1"},
    ]
    times = [
        {"operation": "fp8_mqa_logits", "variant": "gluon_cdna4", "call": "4096 x 4096", "words": ""}
        | {"median_ms": 0.0705, "low_ms": 0.07, "high_ms": 0.071, "floor_ms": 0.05}
    ]
    run = {"verify": 1, "date": "2026-11-30", "executed": document.GPU, "quick": False, "complete": True, "seconds": 99.5}
    run |= {
        "stack": {**stack, "python": "3.12.1", "torch": "2.13", "runtime": "7.1", "driver": "6.16"},
        "variants": variants,
        "cases": list(cases),
    }
    run |= {"asked": [], "ceilings": {"flops": 3e15, "copy": 5e12, "read": 6e12}, "times": times}
    return {
        **run,
        "first_failure": document.first_failure(list(cases), dict.fromkeys(map(place, cases), "Traceback")),
        **changes,
    }


def place(row: dict[str, Any]) -> tuple[str, ...]:
    return row["operation"], row["variant"], row["case"]


@pytest.mark.parametrize(
    ("run", "status"),
    [
        (a_run(case("a"), case("b", verdicts.NOT_TAKEN)), 0),
        (a_run(case("a"), case("b", verdicts.DISAGREES)), 1),
        (a_run(case("a"), case("b", verdicts.NOT_JUDGED)), 1),
        (a_run(case("a"), complete=False), 1),
        (a_run(case("a", verdicts.NOT_TAKEN)), 1),
        (a_run(), 1),
        (a_run(case("a"), executed=document.CPU), 3),
        (a_run(case("a", verdicts.RAISES), executed=document.CPU), 1),
    ],
)
def test_the_status_says_whether_a_gpu_agreed(run: dict[str, Any], status: int) -> None:
    assert document.status(run) == status


@pytest.mark.parametrize(
    ("cases", "executed", "holds", "words"),
    [
        ([case("p"), case("q")], document.GPU, True, "yes: 2 calls have the bits that they have without it"),
        ([case("p"), case("q")], document.EMULATOR, None, "not answered here: executed in the emulator, which is no hardware"),
        ([case("p"), case("q", verdicts.DISAGREES, "3 logits")], document.GPU, False, "no: fp8_mqa_logits, q: 3 logits"),
        ([case("p"), case("q", verdicts.NOT_JUDGED)], document.GPU, None, "not answered here"),
        ([case("p", verdicts.NOT_TAKEN, "needs it")], document.GPU, None, "not answered here: needs it"),
        ([], document.GPU, None, "not answered here: no variant that runs here uses it"),
    ],
)
def test_only_a_gpu_turns_on_what_no_hardware_has_shown(
    cases: list[Any], executed: str, holds: bool | None, words: str
) -> None:
    asks = {("fp8_mqa_logits", name): "packed_clamp" for name in "pq"}
    (answer,) = document.answers(cases, asks, executed)
    assert answer["holds"] is holds
    assert answer["words"].startswith(words)


def test_a_page_and_a_merged_page_have_tables_and_the_first_failure(tmp_path: Path, capsys: Any) -> None:
    failing = a_run(case("a"), case("it's | b", verdicts.FAULTS, "a *fault*"), case("c", verdicts.RAISES))
    other = a_run(case("a"))
    other["stack"] = {**other["stack"], "device": "NVIDIA H200", "target": "cuda:90"}
    for name, run in {"one": failing, "two": other}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(run))
    assert cli.main(["verify", "--merge", str(tmp_path / "one.json"), str(tmp_path / "two.json")]) == 0
    merged = capsys.readouterr().out
    assert merged == page.merged([failing, other])
    assert merged.index("## NVIDIA H200, Triton 3.6.0") < merged.index("## AMD Instinct MI355X, Triton 3.6.0"), "by target"
    alone = page.page(failing)
    assert "**1 of 3 cases agree with float64, 2 fail**" in alone
    assert """capgate verify --case fp8_mqa_logits gluon_cdna4 'it'"'"'s | b'\n""" in alone
    assert "| fp8_mqa_logits | gluon_cdna4 | 4096 x 4096 | 70.5 | 70 to 71 | 1.41 |" in alone
    for text in (alone, merged):
        tables = [token for token in MarkdownIt().enable("table").parse(text) if token.type == "table_open"]
        assert tables
        assert "a \\*fault\\*" in text
    assert page.merged([]).rstrip().endswith(page.NONE)


def test_a_file_of_another_kind_is_refused(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "other.json").write_text(json.dumps({**a_run(), "verify": 2}))
    assert cli.main(["verify", "--merge", str(tmp_path / "other.json")]) == 2
    assert "does not hold what capgate verify --json writes: verify: got 2" in capsys.readouterr().err


@pytest.fixture
def _names(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine and a user whose names a text may have."""
    monkeypatch.setattr(socket, "gethostname", lambda: "node-17.example.org")
    monkeypatch.setenv("HOME", "/home/ada.lovelace")
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(variable, "ada.lovelace")
    return


@pytest.mark.usefixtures("_names")
def test_no_host_and_no_user_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "/home/ada.lovelace/kernels/a.py on node-17.example.org (node-17): ada.lovelace; node-170"
    assert document.without_names(said) == "~/kernels/a.py on HOST (HOST): USER; node-170"

    def raises(*operands: Any, **options: Any) -> None:
        raise RuntimeError(said)

    replace_reference(monkeypatch, raises)
    verified = verification.Verification(["fp8_mqa_logits"], ["reference"], quick=True, timed=False)

    class InProcess:
        def side_by_side(self, groups: Any, workers: int) -> Iterator[Any]:
            yield from ((job, judged(case=job["case"])) for group in groups for job in group)

    for known in verified.go_on(InProcess(), 1):  # type: ignore[arg-type]
        written = json.dumps(known) + page.page(known)
        assert known["first_failure"]["verdict"] == verdicts.RAISES
        for name in ("ada.lovelace", "node-17.", "node-17)", "/home/", os.getcwd()):
            assert name not in written
    assert len(verified.found["cases"]) == 7


def test_disagreement_is_an_assertion() -> None:
    """So that the tests that judge by it fail, and are no errors."""
    assert issubclass(Disagreement, AssertionError)
