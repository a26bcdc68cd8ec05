"""``capgate bench --host`` and ``--first``: every call in every way that is there, and what is said of them."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from capgate.kernels import cli
from capgate.kernels.dropin import deep_gemm
from capgate.kernels.tools.bench import first, first_steps, host

NAMES = ("fp8_mqa_logits", "fp8_paged_mqa_logits", "get_paged_mqa_logits_metadata")
CPU = torch.device("cpu")
SIZES = host.Sizes(prefills=((8, 64), (4, 32)), decodes=((1, 70), (3, 130)), top_k=8)
LOGITS = ("fp8_mqa_logits, 8 x 64", "fp8_mqa_logits, 4 x 32", "fp8_paged_mqa_logits, 1 x 70", "fp8_paged_mqa_logits, 3 x 130")
SELECTIONS = ("select_from_logits, 8 x 64", "select_keys, 8 x 64")
CHECKS = ("checks of fp8_mqa_logits", "checks of fp8_paged_mqa_logits")

pytestmark = pytest.mark.usefixtures("no_gpu")


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A DeepGEMM whose functions are those of the drop-in."""
    module = ModuleType("deep_gemm")
    for name in NAMES:
        setattr(module, name, getattr(deep_gemm, name))
    monkeypatch.setitem(sys.modules, "deep_gemm", module)


@pytest.mark.usefixtures("library")
def test_all_ways_return_the_same() -> None:
    found = host.rows(CPU, SIZES)
    assert tuple(found) == (*LOGITS, "paged_mqa_schedule, 3", *SELECTIONS, *CHECKS)
    ways = {host.OURS, host.PLACED, host.PEER}
    for name in (*LOGITS, "paged_mqa_schedule, 3"):
        assert found[name].keys() == ways, "there is no kernel to launch plainly"
        directly, *others = (found[name][way]() for way in (host.OURS, host.PLACED, host.PEER))
        call = found[name][host.OURS]
        inside = torch.tensor(True)
        if name in LOGITS:  # what lies outside of the windows is left as it was allocated
            inside = call.func(*call.args, **{**call.keywords, "clean_logits": True}).isfinite()  # type: ignore[attr-defined]
            assert inside.any()
            directly = call()
        for other in others:
            assert ((other == directly) | ~inside).all(), name
    assert found[SELECTIONS[0]].keys() == {host.OURS, host.PEER}
    assert torch.equal(found[SELECTIONS[0]][host.OURS](), found[SELECTIONS[1]][host.OURS]())
    for name in CHECKS:
        found[name][host.OURS]()


def test_a_cpu_has_the_checks_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--host", "--repeats", "2", "--calls", "5", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)["host"]
    assert [row["row"] for row in found["rows"]] == list(CHECKS)
    assert all(row["us"].keys() == {host.OURS} and row["us"][host.OURS] > 0 for row in found["rows"])
    growth = found["growth"]
    assert growth["calls"] == 5
    assert growth["before"].keys() == growth["after"].keys() == {"resident_bytes", "objects", "kept"}
    assert growth["after"]["objects"] - growth["before"]["objects"] < 50


def test_what_it_prints_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    names = (*LOGITS, "paged_mqa_schedule, 64", "select_from_logits, 64 x 8192", *CHECKS)
    rows = [{"row": name.replace("3 x 130", "64 x 8192"), "us": dict.fromkeys(host.COLUMNS, 12345.6)} for name in names]
    state = {"resident_bytes": 2**30, "objects": 10**6, "kept": 12}
    host.show({"repeats": 200, "rows": rows, "growth": {"calls": 10**6, "before": state, "after": state}})
    table, _, words = capsys.readouterr().out.partition("us of the host")
    assert all(len(line.rstrip()) <= 80 for line in table.splitlines())
    assert "Over 1000000 calls: resident MiB 1024.0 to 1024.0, objects 1000000 to 1000000, kept calls 12 to 12." in words


def test_medians_are_of_what_is_timed() -> None:
    made: list[str] = []
    found = host.medians_of({"one": lambda: made.append("one"), "two": lambda: made.append("two")}, 3, lambda: None)
    assert found.keys() == {"one", "two"}
    assert made == ["one", "two"] * (host.WARM_UP + 3), "they take turns"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "--calls", "0"], "--calls: got 0, needs 1 or more"),
        (["--host", "--repeats", "0"], "--repeats: got 0, needs 1 or more"),
        (["--host", "--workload", "f"], "--workload: is of workloads"),
        (["--first", "--plot", "p.svg"], "--plot: is of workloads"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.one_lane
def test_a_process_s_steps_add_up(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[dict[str, str]] = []
    steps = ["start of Python", "import torch", "first call", "second call"]

    def played(environment: dict[str, str]) -> dict[str, object]:
        began.append(environment)
        return {"ends": [(step, 7.0 + number) for number, step in enumerate(steps)], "variant": "classic", "device": "cuda"}

    monkeypatch.setattr(first, "time", SimpleNamespace(time=lambda: 7.0))
    monkeypatch.setattr(first, "_run", played)
    assert cli.main(["bench", "--first"]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[-1] for line in shown.splitlines() if line.strip().startswith("to the first")] == ["2.000"]
    assert len({environment["TRITON_CACHE_DIR"] for environment in began}) == 1, "warm is what cold has left"
    assert len(began) == 2


@pytest.mark.one_lane
def test_the_steps_are_those_of_a_process() -> None:
    found = first._run({"PYTHONPATH": first._path(), "CUDA_VISIBLE_DEVICES": ""})
    names, ends = zip(*found["ends"], strict=True)
    assert names[0] == "start of Python"
    assert names[-2:] == ("first call", "second call")
    assert list(ends) == sorted(ends)
    assert found["variant"] == "reference"


def test_a_process_that_fails_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise OSError('no disk')")
    monkeypatch.setattr(first_steps, "__file__", str(broken))
    assert cli.main(["bench", "--first"]) == 2
