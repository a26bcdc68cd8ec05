"""lookup: which target a question means, fresh where it must be, constant inside a compiled graph."""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
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


@pytest.mark.parametrize("variable", ["TRITON_INTERPRET", "TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH"])
def test_a_snapshot_is_of_the_settings_of_triton(monkeypatch, variable: str) -> None:
    before = compat.capabilities("cuda:90")
    monkeypatch.setenv(variable, "/another")
    assert compat.capabilities("cuda:90") is not before
    monkeypatch.delenv(variable)
    assert compat.capabilities("cuda:90") is before


def test_a_snapshot_is_of_the_triton_that_is_loaded(monkeypatch) -> None:
    """A stand-in gives way to the real one, of the same version or of none; neither may be asked in vain."""

    class Lazy(ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

    monkeypatch.setitem(sys.modules, "triton", Lazy("triton"))
    before = compat.capabilities("cuda:90")
    assert not before.triton
    monkeypatch.setitem(sys.modules, "triton", Lazy("triton"))
    assert compat.capabilities("cuda:90") is not before


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
    "capabilities(Target made inside)": lambda caps, x: compat.capabilities(Target("hip", "gfx950", 64)).scaled_mfma,
    "names": lambda caps, x: "gfx950" in list(compat.capabilities(x.device)),
    "names of a snapshot": lambda caps, x: sorted(name for name in caps) == sorted(caps) and len(caps) > 3,
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


ASKS: dict[str, tuple[Callable[[], bool], dict[str, Any]]] = {
    "a named target": (lambda: compat.capabilities("hip:gfx950").gfx950, {"disable": ["gfx950"]}),
    "what needs it": (lambda: compat.capabilities(Target("hip", "gfx950", 64)).gluon_cdna4, {"disable": ["gfx950"]}),
    "the default target": (lambda: not compat.capabilities().gfx950, {"target": "hip:gfx950"}),
    "two at once": (lambda: compat.capabilities("cuda:90").tma, {"disable": ["tma"], "target": "hip:gfx950"}),
}


@pytest.mark.parametrize("question", ASKS)
@pytest.mark.parametrize("first", ["outside", "inside"])
def test_an_override_round_a_compiled_function_holds_in_it(compiled, question: str, first: str) -> None:
    """Whichever was compiled first, and again after the override has ended."""
    torch = pytest.importorskip("torch")
    ask, switches = ASKS[question]
    x = torch.zeros(1)

    def gated(x: Any) -> Any:
        return x + 1 if ask() else x - 1

    graph = compiled(gated)
    outside = gated(x)
    if first == "outside":
        assert graph(x) == outside
    for _ in range(2):
        with compat.override(**switches):
            assert graph(x) == gated(x) == (-1 if outside == 1 else outside)
        assert graph(x) == outside


def test_a_compiled_function_follows_the_override_of_its_own_thread(compiled) -> None:
    torch = pytest.importorskip("torch")
    x = torch.zeros(1)
    graph = compiled(lambda x: x + 1 if compat.capabilities("hip:gfx950").gfx950 else x - 1)
    with compat.override(disable=["gfx950"]), ThreadPoolExecutor(1) as other:
        assert (graph(x), other.submit(graph, x).result(), graph(x)) == (-1, 1, -1)


def test_an_override_compiles_a_function_once_for_each_setting() -> None:
    torch = pytest.importorskip("torch")
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    gated = torch.compile(
        lambda x: x + 1 if compat.capabilities("hip:gfx950").gfx950 else x - 1, fullgraph=True, backend=backend
    )
    for _ in range(3):
        gated(torch.zeros(1))
        with compat.override(disable=["gfx950"]):
            gated(torch.zeros(1))
    assert len(graphs) == 2
