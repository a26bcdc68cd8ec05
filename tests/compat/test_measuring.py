"""Measured choice: what is timed, when, what is remembered of it, and who may use what was remembered."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")

from capgate import compat  # noqa: E402
from capgate.compat import Operation, SwitchError, Variant  # noqa: E402
from capgate.compat import _measuring as measuring  # noqa: E402
from capgate.compat.tunings import Tunings  # noqa: E402


class Problem(NamedTuple):
    """A class of calls for these tests."""

    device: Any = torch.device("cpu")
    size: int = 1


class Calls(list[str]):
    """The variants that ran, in order; each of them takes its time."""

    def variant(self, name: str, seconds: float, **rules: Any) -> Variant[Problem]:
        def run(*arguments: Any) -> str:
            self.append(name)
            time.sleep(seconds)
            return name

        return Variant(name, run, **rules)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of what is remembered."""
    monkeypatch.setenv("CAPGATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "measured"


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def made(cache: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Operation[Problem]]:
    """Make the operation, as a new process would: "slow" comes first, "fast" is the last resort but one."""

    def make() -> Operation[Problem]:
        monkeypatch.setattr(compat._registry, "REGISTERED", {})
        toy: Operation[Problem] = Operation("toy", repeatable=True)
        toy.add(calls.variant("slow", 0.02))
        toy.add(calls.variant("fast", 0.0))
        toy.add(calls.variant("last", 0.0, last_resort=True))
        return toy

    return make


def test_nobody_is_timed_unless_asked(made, calls: Calls, cache: Path) -> None:
    toy = made()
    assert [toy(Problem()) for _ in range(3)] == ["slow"] * 3
    assert calls == ["slow"] * 3
    assert not cache.exists()


def test_the_fastest_runs_once_they_are_timed_and_the_trace_says_so(made, calls: Calls) -> None:
    toy = made()
    with compat.override(measure=True):
        assert toy(Problem()) == "fast"
        trace, timed = toy.explain(Problem()), len(calls)
        assert [toy(Problem()) for _ in range(3)] == ["fast"] * 3
    assert trace.variant == "fast"
    slow, fast, last = trace.steps
    words, _, measured = slow.reason.partition("; measured ")
    assert words == "needs nothing"
    assert float(measured.removesuffix(" us")) >= 20_000
    assert fast.reason.endswith(" us, the fastest")
    assert last.reason == "needs nothing", "what nobody expects to run is not timed"
    assert calls[timed:] == ["fast"] * 3, "nobody is timed again"
    assert "last" not in calls


def test_a_problem_is_timed_by_itself(made, calls: Calls) -> None:
    toy = made()
    with compat.override(measure=True):
        toy(Problem())
        calls.clear()
        toy(Problem(size=2))
        assert "slow" in calls


def test_another_process_takes_what_was_measured(made, calls: Calls, cache: Path) -> None:
    with compat.override(measure=True):
        made()(Problem())
    (file,) = cache.iterdir()
    written = json.loads(file.read_text())
    assert written["operation"] == "toy"
    assert set(written["times"]) == {"slow", "fast"}
    assert written["stack"]["target"] == "cpu"
    assert torch.__version__ in written["stack"]["torch"]
    calls.clear()
    with compat.override(measure=True):
        assert made()(Problem()) == "fast"
    assert calls == ["fast"]
    assert made()(Problem()) == "slow", "without the switch nothing is read"


def test_a_rank_takes_what_another_measured_on_a_gpu_like_its_own(made, calls: Calls, cache: Path) -> None:
    with compat.override(measure=True):
        made()(Problem(torch.device("cpu", 0)))
        calls.clear()
        assert made()(Problem(torch.device("cpu"))) == "fast"
    assert calls == ["fast"]
    assert len(list(cache.iterdir())) == 1


def test_other_switches_have_times_of_their_own(made, calls: Calls, cache: Path) -> None:
    """A kernel's work is another one under other tunings, and where a capability is taken away."""
    tunings = Tunings("h200.json", "cuda:90", "NVIDIA H200", [])
    toy = made()
    with compat.override(measure=True):
        toy(Problem())
        for others in ({"tunings": tunings}, {"disable": ["gluon"]}, {"enable": ["packed_clamp"]}):
            calls.clear()
            with compat.override(**others):
                toy(Problem())
            assert "slow" in calls, "timed anew"
        calls.clear()
        toy(Problem())
    assert calls == ["fast"]
    with compat.override(measure=True, tunings=tunings):
        calls.clear()
        made()(Problem())
    assert calls == ["fast"], "another process under the same tunings takes what was measured under them"
    assert len(list(cache.iterdir())) == 4


def test_a_setting_of_triton_s_that_a_knob_has_is_one_of_the_stack(made, cache: Path, monkeypatch) -> None:
    triton = pytest.importorskip("triton")
    for path in ("/opt/ptxas-1", "/opt/ptxas-2"):
        with monkeypatch.context() as patch, compat.override(measure=True):
            patch.setitem(triton.knobs.nvidia.__dict__, "ptxas", path)
            made()(Problem())
    written = [json.loads(file.read_text())["stack"] for file in cache.iterdir()]
    assert sorted(stack["TRITON_PTXAS_PATH"] for stack in written) == ["/opt/ptxas-1", "/opt/ptxas-2"]


def test_a_new_variant_is_timed_beside_the_others(made, calls: Calls) -> None:
    with compat.override(measure=True):
        made()(Problem())
        toy = made()
        toy.add(calls.variant("new", 0.0))
        toy(Problem())
    assert "new" in calls


def test_a_variant_that_may_not_run_any_more_does_not(made) -> None:
    with compat.override(measure=True):
        made()(Problem())
        toy = made()
        toy.variants["fast"].accepts = lambda problem: "no longer"
        assert toy(Problem()) == "slow"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda file: file.write_text("{"), "cannot be read"),
        (
            lambda file: file.write_text(json.dumps({**json.loads(file.read_text()), "times": {"fast": "soon"}})),
            "cannot be read",
        ),
        (lambda file: file.write_text(file.read_text().replace('"target": "cpu"', '"target": "cuda:90"')), "of another stack"),
    ],
)
def test_what_cannot_be_used_is_said_once_and_measured_anew(
    made, calls: Calls, cache: Path, warned, damage, words: str
) -> None:
    with compat.override(measure=True):
        made()(Problem())
        (file,) = cache.iterdir()
        damage(file)
        calls.clear()
        toy = made()
        assert [toy(Problem()) for _ in range(2)] == ["fast"] * 2
        assert "slow" in calls
        made()(Problem())
    (said,) = warned()
    assert said.startswith("toy: measured anew, for ")
    assert words in said


def test_a_cache_that_cannot_be_written_is_said(made, calls: Calls, cache: Path, warned) -> None:
    cache.parent.mkdir()
    cache.write_text("a file, where a folder should be")
    toy = made()
    with compat.override(measure=True):
        assert [toy(Problem()) for _ in range(2)] == ["fast"] * 2
    assert any("what was measured is not remembered" in words for words in warned())


def test_nobody_s_home_is_no_error(made, monkeypatch: pytest.MonkeyPatch, warned) -> None:
    """A container's user may have none: pathlib raises RuntimeError there."""

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("CAPGATE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", home)
    toy = made()
    with compat.override(measure=True):
        assert [toy(Problem()) for _ in range(2)] == ["fast"] * 2
    assert any("what was measured is not remembered: Could not determine home" in words for words in warned())


def test_what_stands_in_the_cache_is_always_whole(made, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that dies leaves what was there: a file is written beside, and put in its place."""
    with compat.override(measure=True):
        made()(Problem())
    (file,) = cache.iterdir()
    before = file.read_text()
    monkeypatch.setattr("os.replace", lambda *paths: None)  # dies in between
    made().measure(Problem(), lambda name: None)
    assert [path.name for path in cache.iterdir()] == [file.name]
    assert file.read_text() == before


def test_writers_at_once_leave_what_one_of_them_wrote(made, cache: Path) -> None:
    toy, seen = made(), set()

    def write(number: int) -> None:
        measuring.Measurements[Problem]("toy").keep(Problem(), measuring.Measurement({"slow": float(number), "fast": 1.0}))
        with compat.override(measure=True):
            found = measuring.Measurements[Problem]("toy").find(Problem())
        assert found is not None
        seen.add(found.times["slow"])

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(1, 33)))
    assert seen <= set(map(float, range(1, 33)))
    assert len(list(cache.iterdir())) == 1
    assert toy.explain(Problem()).variant == "slow"


def test_a_variant_that_does_not_load_is_set_aside_and_the_others_are_timed(made, calls: Calls, warned) -> None:
    toy = made()
    toy.add(Variant("broken", "no_such_package_at_all:kernel"))
    with compat.override(measure=True):
        assert toy(Problem()) == "fast"
    assert "slow" in calls
    (said,) = warned()
    assert "toy: broken set aside: does not load" in said


def test_errors_of_the_machine_and_of_what_ran_surface(made, calls: Calls) -> None:
    def fails(*arguments: Any) -> None:
        raise error

    toy = made()
    toy.add(Variant("failing", fails))
    for error in (MemoryError("out of memory"), RuntimeError("illegal address")):
        with compat.override(measure=True), pytest.raises(type(error)):
            toy(Problem())


def test_an_operation_whose_calls_may_not_be_repeated_is_never_timed(cache: Path, calls: Calls) -> None:
    toy: Operation[Problem] = Operation("adds_in_place")
    toy.add(calls.variant("slow", 0.001))
    toy.add(calls.variant("fast", 0.0))
    with compat.override(measure=True):
        assert toy(Problem()) == "slow"
    assert calls == ["slow"]


def test_a_named_variant_is_taken_without_timing(made, calls: Calls) -> None:
    toy = made()
    with compat.override(measure=True):
        assert toy(Problem(), variant="slow") == "slow"
        with compat.override(variant="toy=slow"):
            assert toy(Problem()) == "slow"
    assert calls == ["slow", "slow"]


def test_nothing_is_timed_while_a_graph_is_captured_nor_remembered_of_it(made, calls: Calls, monkeypatch) -> None:
    toy = made()
    monkeypatch.setattr("capgate.compat._operation.capturing", lambda device: True)
    with compat.override(measure=True):
        assert toy(Problem()) == "slow"
        with pytest.raises(RuntimeError, match=r"^toy: nothing can be measured while a graph is captured$"):
            toy.measure(Problem(), lambda name: None)
        assert calls == ["slow"]
        monkeypatch.setattr("capgate.compat._operation.capturing", lambda device: False)
        assert toy(Problem()) == "fast"


def test_a_repeating_call_is_not_kept_from_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: compat.Calls[str] = compat.Calls()
    operand = (torch.zeros(1),)
    with compat.override(measure=True):
        assert kept.call(operand) is not None, "no driver was started, of which one could ask"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert kept.call(operand) is not None
    with compat.override(measure=True):
        assert kept.call(operand) is None
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        assert kept.call(operand) is not None


def test_what_is_kept_of_calls_is_forgotten_with_the_choice_it_was_of(made) -> None:
    toy = made()
    kept: compat.Calls[str] = compat.Calls()
    call = kept.call((torch.zeros(1),))
    assert call is not None
    for _ in range(2):
        kept.remember(call, lambda: toy.select(Problem()).name)
    assert kept.find(call) == "slow"
    measured = toy.measure(Problem(), lambda name: toy(Problem(), variant=name))
    assert measured is not None
    assert measured.fastest == "fast"
    assert kept.find(call) is None
    assert toy(Problem()) == "fast", "what this process measured holds without the switch"


def test_the_choice_that_was_remembered_outside_is_forgotten_too(made) -> None:
    toy = made()
    assert toy(Problem()) == "slow"
    with compat.override(measure=True), compat.override(strict=True):
        assert toy(Problem()) == "fast"
    assert toy.explain(Problem()).variant == "fast"
    assert toy(Problem()) == "fast", "as the trace says"


def test_a_single_variant_has_nothing_to_be_timed_against(cache: Path, calls: Calls) -> None:
    toy: Operation[Problem] = Operation("alone", repeatable=True)
    toy.add(calls.variant("only", 0.0))
    assert toy.measure(Problem(), lambda name: toy(Problem(), variant=name)) is None
    assert not cache.exists()


def test_a_problem_without_a_device_cannot_be_timed(made) -> None:
    toy = made()
    with pytest.raises(ValueError, match=r"^problem: its device is 'hip:gfx950', needs a torch.device of a GPU or of the CPU$"):
        toy.measure(Problem("hip:gfx950"), lambda name: None)
    with compat.override(measure=True):
        assert toy(Problem("hip:gfx950")) == "slow"


def test_the_variable(monkeypatch: pytest.MonkeyPatch, made, forget) -> None:
    toy = made()
    monkeypatch.setenv("CAPGATE_MEASURE", "1")
    forget()
    assert toy(Problem()) == "fast"
    monkeypatch.setenv("CAPGATE_MEASURE", "yes")
    forget()
    with pytest.raises(SwitchError, match=r"^CAPGATE_MEASURE: got 'yes', needs 0 or 1$"):
        toy(Problem())


def test_a_variant_far_behind_has_no_rounds() -> None:
    ran: list[str] = []

    def slow() -> None:
        ran.append("slow")
        time.sleep(0.05)

    times = measuring.timed(torch.device("cpu"), {"slow": slow, "fast": lambda: ran.append("fast")})
    assert ran.count("slow") == 1
    assert ran.count("fast") > measuring.ROUNDS
    assert times["slow"] > 50_000 > times["fast"]
