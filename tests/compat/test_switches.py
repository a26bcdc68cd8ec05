"""switches: every name is checked, and a switch holds where and only where it was set."""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import Any

import pytest

from capgate import compat
from capgate.compat import SwitchError
from capgate.compat import _switches as switches
from capgate.compat.targets import CPU, cuda, hip


def _disabled() -> set[str]:
    return set(switches.current().disabled)


# The environment


@pytest.mark.parametrize(
    ("environment", "attribute", "value"),
    [
        pytest.param({}, "disabled", {}, id="nothing disabled"),
        pytest.param({"CAPGATE_DISABLE": "gluon"}, "disabled", {"gluon": "CAPGATE_DISABLE=gluon"}, id="disable"),
        pytest.param(
            {"CAPGATE_DISABLE": " gluon, wgmma ,"},
            "disabled",
            dict.fromkeys(("gluon", "wgmma"), "CAPGATE_DISABLE=gluon,wgmma"),
            id="disable two",
        ),
        pytest.param({"CAPGATE_DISABLE": ""}, "disabled", {}, id="disable empty"),
        pytest.param({}, "enabled", {}, id="nothing enabled"),
        pytest.param(
            {"CAPGATE_ENABLE": "packed_clamp"}, "enabled", {"packed_clamp": "CAPGATE_ENABLE=packed_clamp"}, id="enable"
        ),
        pytest.param({"CAPGATE_VARIANT": "a=b"}, "variants", {"a": "b"}, id="variant"),
        pytest.param({"CAPGATE_VARIANT": "a=b, c = d"}, "variants", {"a": "b", "c": "d"}, id="two variants"),
        pytest.param({"CAPGATE_VARIANT": ""}, "variants", {}, id="variant empty"),
        pytest.param({}, "target", None, id="no target"),
        pytest.param({"CAPGATE_TARGET": "hip:gfx950"}, "target", hip("gfx950"), id="target"),
        pytest.param({"CAPGATE_TARGET": " "}, "target", None, id="target empty"),
        pytest.param({}, "strict", False, id="not strict"),
        pytest.param({"CAPGATE_STRICT": "1"}, "strict", True, id="strict"),
        pytest.param({"CAPGATE_STRICT": "0"}, "strict", False, id="strict 0"),
        pytest.param({"CAPGATE_STRICT": ""}, "strict", False, id="strict empty"),
        pytest.param({"CAPGATE_TORCH": "torch==2.9", "CAPGATED": "1", "HOME": "/"}, "disabled", {}, id="others are left alone"),
    ],
)
def test_what_a_variable_means(environment: dict[str, str], attribute: str, value: Any) -> None:
    assert getattr(switches.read(environment), attribute) == value


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        pytest.param(
            {"CAPGATE_DISABLE": "gluom"}, "CAPGATE_DISABLE: no capability 'gluom'; the nearest are gluon", id="disable"
        ),
        pytest.param({"CAPGATE_DISABLE": "gluon,nope"}, "CAPGATE_DISABLE: no capability 'nope'", id="one of two"),
        pytest.param({"CAPGATE_DISABLE": "Gluon"}, "CAPGATE_DISABLE: no capability 'Gluon'; the nearest are gluon", id="case"),
        pytest.param({"CAPGATE_DISABLE": "gluon wgmma"}, "CAPGATE_DISABLE: no capability 'gluon wgmma'", id="no comma"),
        pytest.param({"CAPGATE_ENABLE": "packed"}, "CAPGATE_ENABLE: no capability 'packed'", id="enable"),
        pytest.param(
            {"CAPGATE_ENABLE": "tma"}, "CAPGATE_ENABLE: tma is found, and not enabled; known are packed_clamp", id="found"
        ),
        pytest.param(
            {"CAPGATE_VARIANT": "classic"}, "CAPGATE_VARIANT: got 'classic', needs operation=variant pairs", id="no pair"
        ),
        pytest.param({"CAPGATE_VARIANT": "=classic"}, "CAPGATE_VARIANT: got '=classic'", id="no operation"),
        pytest.param({"CAPGATE_VARIANT": "fp8_mqa_logits="}, "CAPGATE_VARIANT: got 'fp8_mqa_logits='", id="no variant"),
        pytest.param({"CAPGATE_TARGET": "gfx9500"}, "CAPGATE_TARGET: .*nearest are gfx950", id="target"),
        pytest.param({"CAPGATE_TARGET": "cuda:0"}, "CAPGATE_TARGET: .*needs 'hip:gfx950'", id="a device is no target"),
        pytest.param({"CAPGATE_STRICT": "yes"}, "CAPGATE_STRICT: got 'yes', needs 0 or 1", id="strict"),
        pytest.param(
            {"CAPGATE_DISABEL": "gluon"}, "CAPGATE_DISABEL: no such variable; known are CAPGATE_DISABLE", id="variable"
        ),
        pytest.param(
            {"CAPGATE_DROPIN": "aiter", "CAPGATE_DROPINS": "aiter"},
            "CAPGATE_DROPINS: no such variable; known are .*CAPGATE_DROPIN",
            id="another module's variable",
        ),
    ],
)
def test_a_wrong_variable_is_an_error_that_names_it(monkeypatch, environment: dict[str, str], message: str) -> None:
    with pytest.raises(SwitchError, match=f"^{message}"):
        switches.read(environment)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for _ in range(2):  # the error is not remembered as if it were an answer
        with pytest.raises(SwitchError, match=f"^{message}"):
            compat.capabilities("cpu")


def test_the_environment_is_read_once_at_first_use(python) -> None:
    code = """
import os
from capgate import compat
os.environ["CAPGATE_DISABLE"] = "gfx950"
print(compat.capabilities("hip:gfx950").why("gfx950"))
os.environ["CAPGATE_DISABLE"] = "nonsense"
print(compat.capabilities("hip:gfx950").why("gfx950"))
"""
    assert python("-c", code, CAPGATE_DISABLE="nonsense").stdout.splitlines() == ["disabled by CAPGATE_DISABLE=gfx950"] * 2


def test_the_environment_s_target_answers_where_no_device_is_named(monkeypatch, machine) -> None:
    machine.amd("gfx942")
    monkeypatch.setenv("CAPGATE_TARGET", "hip:gfx950")
    assert compat.capabilities().target == hip("gfx950")
    assert compat.capabilities("cuda:90").target == cuda(90)
    torch = pytest.importorskip("torch")
    assert compat.capabilities(torch.device("cpu")).target == CPU, "a tensor's own device answers for that tensor"


# override()


@pytest.fixture
def toy() -> None:
    """An operation with the variant "plain", gone after the test."""
    compat.Operation("toy").add(compat.Variant("plain", print))


@pytest.mark.parametrize(
    ("switch", "message"),
    [
        pytest.param({"disable": ["gluom"]}, "disable: no capability 'gluom'; the nearest are gluon", id="disable"),
        pytest.param({"disable": "gluon,nope"}, "disable: no capability 'nope'", id="disable as text"),
        pytest.param({"enable": ["gluon"]}, "enable: gluon is found, and not enabled", id="enable"),
        pytest.param({"variant": "classic"}, "variant: got 'classic', needs operation=variant pairs", id="no pair"),
        pytest.param({"variant": "toi=plain"}, "variant: no operation 'toi'; the nearest are toy", id="operation"),
        pytest.param({"variant": {"toi": "plain"}}, "variant: no operation 'toi'; the nearest are toy", id="operation as key"),
        pytest.param({"variant": "toy=plane"}, "variant: toy has no variant 'plane'; the nearest are plain", id="variant"),
        pytest.param({"variant": {"toy": ""}}, "variant: toy has no variant ''; known are plain", id="variant empty"),
        pytest.param({"variant": "fp8_mqa_logits=clasic"}, "variant: fp8_mqa_logits has no variant 'clasic'", id="installed"),
        pytest.param({"target": "hip:gfx9500"}, "target: .*the nearest are gfx950", id="target"),
    ],
)
@pytest.mark.usefixtures("toy")
def test_override_is_as_strict(switch: Any, message: str) -> None:
    before = switches.current()
    with pytest.raises(SwitchError, match=f"^{message}"), compat.override(**switch):
        pytest.fail("the block was entered")
    assert switches.current() is before


@pytest.mark.parametrize(
    ("switch", "message"),
    [
        ({"disable": None}, "disable: got NoneType, needs capability names"),
        ({"disable": 3}, "disable: got int, needs capability names"),
        ({"enable": 3}, "enable: got int, needs capability names"),
        ({"disable": ["gluon", 3]}, "disable: got int, needs capability names"),
        ({"variant": None}, "variant: got NoneType, needs a mapping of operation to variant, or text"),
        ({"variant": ["toy", "plain"]}, "variant: got list, needs a mapping"),
        ({"variant": {"toy": None}}, "variant: got NoneType, needs names of variants"),
        ({"variant": {3: "plain"}}, "variant: got int, needs names of operations"),
        ({"target": 950}, "target: got int, needs a Target, its text or None"),
        ({"strict": "yes"}, "strict: got str, needs a bool or None"),
        ({"strict": 1}, "strict: got int, needs a bool or None"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("toy")
def test_override_names_a_value_of_another_type(switch: Any, message: str) -> None:
    before = switches.current()
    with pytest.raises(TypeError, match=f"^{message}"), compat.override(**switch):
        pytest.fail("the block was entered")
    assert switches.current() is before


@pytest.mark.parametrize("disable", ["gfx950,tma", ["gfx950", "tma"], ("gfx950", "tma")], ids=["text", "list", "tuple"])
def test_override_disables(disable: Any) -> None:
    with compat.override(disable=disable):
        caps = compat.capabilities("hip:gfx950")
        assert (caps.gfx950, caps.gluon_cdna4) == (False, False)
        assert caps.why("gfx950") == "disabled by override(disable=['gfx950', 'tma'])"
    assert compat.capabilities("hip:gfx950").gfx950


def test_override_enables_what_no_hardware_has_shown_where_it_may_hold() -> None:
    assert not compat.capabilities("hip:gfx950").packed_clamp
    with compat.override(enable="packed_clamp"):
        assert compat.capabilities("hip:gfx950")["packed_clamp"] == (
            True,
            "found gfx950, enabled by override(enable=['packed_clamp'])",
        )
        assert not compat.capabilities("hip:gfx942").packed_clamp
        with compat.override(disable=["packed_clamp"]):
            assert not compat.capabilities("hip:gfx950").packed_clamp
        with compat.override(strict=True):
            assert compat.capabilities("hip:gfx950").packed_clamp
    reason = "needs gfx950 and CAPGATE_ENABLE=packed_clamp, since no hardware has shown it: found gfx950"
    assert compat.capabilities("hip:gfx950").why("packed_clamp") == reason


@pytest.mark.parametrize("target", ["hip:gfx950", hip("gfx950")], ids=["text", "Target"])
def test_override_names_the_target(target: Any) -> None:
    with compat.override(target=target):
        assert compat.capabilities().gfx950
        assert compat.capabilities("cuda:90").sm90
    assert compat.capabilities().target == CPU


def test_nested_overrides_add_up_and_the_inner_one_wins() -> None:
    for name in ("a", "b"):
        operation: compat.Operation[Any] = compat.Operation(name)
        for variant in ("1", "2"):
            operation.add(compat.Variant(variant, print))
    outer = {"disable": ["tma"], "variant": {"a": "1", "b": "1"}, "target": "hip:gfx950", "strict": True}
    with compat.override(**outer):
        with compat.override(disable=["wgmma"], variant="b=2"):
            inner = switches.current()
            assert set(inner.disabled) == {"tma", "wgmma"}
            assert inner.disabled["tma"] == "override(disable=['tma'])"
            assert (inner.variants, inner.target, inner.strict) == ({"a": "1", "b": "2"}, hip("gfx950"), True)
        with compat.override(target="cuda:90", strict=False):
            inner = switches.current()
            assert (set(inner.disabled), inner.target, inner.strict) == ({"tma"}, cuda(90), False)
        assert (switches.current().variants, switches.current().strict) == ({"a": "1", "b": "1"}, True)


def test_override_adds_to_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("CAPGATE_DISABLE", "tma")
    with compat.override(disable=["wgmma"]):
        assert _disabled() == {"tma", "wgmma"}
    assert _disabled() == {"tma"}


def test_override_decorates() -> None:
    @compat.override(disable=["tma"])
    def decorated() -> set[str]:
        return _disabled()

    assert [decorated(), _disabled(), decorated()] == [{"tma"}, set(), {"tma"}]


def test_an_exception_ends_an_override() -> None:
    with pytest.raises(ZeroDivisionError), compat.override(disable=["tma"]):
        raise ZeroDivisionError
    assert _disabled() == set()


def test_an_override_ends_with_the_switches_that_were_in_force() -> None:
    """What was worked out under them is still remembered."""
    before = switches.current()
    with compat.override(strict=True):
        assert switches.current() is not before
    assert switches.current() is before


def _in_a_thread(question: Callable[[], Any]) -> Any:
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(question()))
    thread.start()
    thread.join()
    return answers[0]


def test_another_thread_does_not_see_an_override() -> None:
    with compat.override(disable=["tma"]):
        assert _in_a_thread(_disabled) == set()
        assert _disabled() == {"tma"}


def test_a_copied_context_keeps_its_override() -> None:
    with compat.override(disable=["tma"]):
        context = contextvars.copy_context()
    assert _disabled() == set()
    assert _in_a_thread(lambda: context.run(_disabled)) == {"tma"}


def test_tasks_do_not_see_each_other_s_overrides() -> None:
    async def task(name: str, barrier: asyncio.Event, opens: bool) -> set[str]:
        with compat.override(disable=[name]):
            barrier.set() if opens else await barrier.wait()
            await asyncio.sleep(0)
            return _disabled()

    async def both() -> list[set[str]]:
        barrier = asyncio.Event()
        return await asyncio.gather(task("tma", barrier, False), task("wgmma", barrier, True))

    assert asyncio.run(both()) == [{"tma"}, {"wgmma"}]


def test_a_decorator_disables_the_same_at_every_call() -> None:
    @compat.override(disable=(name for name in ["gfx950"]))
    def flag() -> bool:
        return compat.capabilities("hip:gfx950").gfx950

    assert [flag(), flag()] == [False, False]
