"""current: which target a question means, fresh where it must be, constant inside a compiled graph."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from capgate import compat
from capgate.compat import Target
from capgate.compat.targets import CPU, cuda, hip

# Which device


@pytest.mark.parametrize(
    ("device", "target"),
    [
        (None, CPU),
        ("cpu", CPU),
        ("hip:gfx950", hip("gfx950")),
        ("cuda:90", cuda(90)),
        (hip("gfx942"), hip("gfx942")),
        (Target("xpu"), Target("xpu")),
    ],
    ids=str,
)
def test_forms_of_a_device(device: Any, target: Target) -> None:
    assert compat.capabilities(device).target == target


@pytest.mark.parametrize("name", ["cpu", "meta", "xpu"])
def test_a_torch_device(name: str) -> None:
    torch = pytest.importorskip("torch")
    assert compat.capabilities(torch.device(name)).target == (Target(name) if name == "xpu" else CPU)


def test_a_named_target_needs_no_such_gpu(machine) -> None:
    machine.nvidia({"GPU-1": (9, 0)})
    assert compat.capabilities("hip:gfx950").gfx950
    assert not compat.capabilities("hip:gfx950").sm90


def test_each_gpu_of_a_mixed_machine_answers_for_itself(machine, monkeypatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.version, "hip", "7.1")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    machine.amd("gfx942", "gfx950")
    scaled = [compat.capabilities(torch.device("cuda", index)).scaled_mfma for index in (0, 1)]
    assert scaled == [False, True]


@pytest.mark.parametrize("device", [0, 90, ("hip", "gfx950"), object()], ids=["index", "number", "tuple", "object"])
def test_what_is_no_device_is_a_type_error(device: Any) -> None:
    words = f"^device: got {type(device).__name__}, needs a torch.device, a Target, 'hip:gfx950' or None$"
    with pytest.raises(TypeError, match=words):
        compat.capabilities(device)


def test_an_index_as_text_says_how_to_ask() -> None:
    with pytest.raises(ValueError, match=r"got 'cuda:0'.*a device such as cuda:0 is passed as torch\.device"):
        compat.capabilities("cuda:0")


# What is remembered


def test_no_gpu_is_never_remembered(machine, monkeypatch) -> None:
    assert not compat.capabilities().gpu
    machine.amd("gfx942", "gfx950")
    assert compat.capabilities().gfx942
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "1")
    assert compat.capabilities().gfx950
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "")
    assert not compat.capabilities().gpu


def test_the_same_question_gives_the_same_snapshot() -> None:
    assert compat.capabilities("hip:gfx950") is compat.capabilities(hip("gfx950"))
    with compat.override(disable=["tma"]):
        assert compat.capabilities("hip:gfx950") is not compat.capabilities("cuda:90")
        inside = compat.capabilities("hip:gfx950")
    assert compat.capabilities("hip:gfx950") is not inside


def test_a_snapshot_does_not_change_with_the_switches() -> None:
    """A kernel may keep one."""
    caps = compat.capabilities("hip:gfx950")
    with compat.override(disable=["gfx950"]):
        assert caps.gfx950
        inside = compat.capabilities("hip:gfx950")
    assert not inside.gfx950


def test_require_asks_under_the_switches() -> None:
    compat.require("gfx950", "hip:gfx950")
    with compat.override(disable=["gfx950"], target="hip:gfx950"):
        with pytest.raises(compat.CapabilityError, match=r"^gfx950: disabled by override"):
            compat.require("gfx950")
        compat.require("scaled_mfma")


# Inside torch.compile

GFX950 = hip("gfx950")


@pytest.fixture
def compiled() -> Iterator[Callable[..., Any]]:
    """``torch.compile`` without a code generator and without graph breaks."""
    torch = pytest.importorskip("torch")

    def compile_(function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, fullgraph=True, backend="eager")  # type: ignore[no-any-return]

    torch.compiler.reset()
    yield compile_
    torch.compiler.reset()


QUESTIONS: dict[str, Callable[[compat.Capabilities, Any], Any]] = {
    "a flag": lambda caps, x: caps.gfx950,
    "a flag that does not hold": lambda caps, x: not caps.sm90,
    "a flag of the build": lambda caps, x: caps.gluon == bool(caps["gluon"]),
    "a verdict": lambda caps, x: caps["gluon_hopper"].available is False,
    "why": lambda caps, x: caps.why("gfx950") == "found gfx950",
    "capabilities()": lambda caps, x: not compat.capabilities().gfx950,
    "capabilities(tensor.device)": lambda caps, x: not compat.capabilities(x.device).gpu,
    "capabilities(text)": lambda caps, x: compat.capabilities("hip:gfx950").scaled_mfma,
    "capabilities(Target)": lambda caps, x: compat.capabilities(GFX950).scaled_mfma,
    "require": lambda caps, x: compat.require("gfx950", "hip:gfx950") is None,
}


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_is_a_constant_of_the_graph(compiled, question: str, warm: bool) -> None:
    torch = pytest.importorskip("torch")
    ask, caps = QUESTIONS[question], compat.capabilities("hip:gfx950")

    def gated(x: Any) -> Any:
        return x + 1 if ask(caps, x) else x - 1

    if warm:
        assert gated(torch.zeros(1)) == 1
    assert compiled(gated)(torch.zeros(1)) == 1


def test_a_graph_compiled_under_an_override(compiled) -> None:
    torch = pytest.importorskip("torch")

    def gated(x: Any) -> Any:
        return x + 1 if compat.capabilities("hip:gfx950").gfx950 else x - 1

    with compat.override(disable=["gfx950"]):
        assert compiled(gated)(torch.zeros(1)) == -1
