"""probes: the code is asked, not its name or version; whatever it answers becomes words."""

import dataclasses
import os
import sys
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from capgate.compat import _probes as probes
from capgate.compat import versions
from capgate.compat._capabilities import Capabilities
from capgate.compat._probes import Finding
from capgate.compat.table import TABLE
from capgate.compat.targets import hip
from capgate.compat.versions import Build

GFX950 = hip("gfx950")


def real(pointer: object, layout: object = None, *, multicast: bool = False) -> None: ...


def stub(*args: object, **kwargs: object) -> None:
    raise NotImplementedError("removed: call something else")


@dataclasses.dataclass
class Options:
    num_warps: int = 4


@pytest.fixture
def library(monkeypatch) -> ModuleType:
    """A module ``library`` with a function, the stub of a removed function, and an options class, beside some Triton."""
    module = ModuleType("library")
    for member in (real, stub, Options):
        setattr(module, member.__name__, member)
    monkeypatch.setitem(sys.modules, "library", module)
    monkeypatch.setattr(versions, "find", lambda name: Build(name, "3.7.0+amd", (3, 7, 0), "metadata"))
    return module


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("probe", "holds"),
    [
        pytest.param(probes.has("library"), True, id="has module"),
        pytest.param(probes.has("library:real"), True, id="has function"),
        pytest.param(probes.has("library:Options.num_warps"), True, id="has nested"),
        pytest.param(probes.has("library:missing"), False, id="has no attribute"),
        pytest.param(probes.has("library:missing.deeper"), False, id="has no parent"),
        pytest.param(probes.has("library.missing:real"), False, id="has no module"),
        pytest.param(probes.takes("library:real", "layout"), True, id="takes one"),
        pytest.param(probes.takes("library:real", "layout", "multicast"), True, id="takes both"),
        pytest.param(probes.takes("library:real", "layout", "cache"), False, id="takes only one of two"),
        pytest.param(probes.takes("library:stub", "layout"), False, id="a stub takes nothing by name"),
        pytest.param(probes.takes("library:missing", "layout"), False, id="takes, missing"),
        pytest.param(probes.takes("library:Options", "num_warps"), True, id="a class takes"),
        pytest.param(probes.optional("library:real", "layout"), True, id="optional"),
        pytest.param(probes.optional("library:real", "pointer"), False, id="required"),
        pytest.param(probes.optional("library:stub", "layout"), False, id="optional, stub"),
        pytest.param(probes.optional("library:missing", "layout"), False, id="optional, missing"),
        pytest.param(probes.option("library:Options", "num_warps"), True, id="option"),
        pytest.param(probes.option("library:Options", "cluster_dims"), False, id="no option"),
        pytest.param(probes.option("library:Missing", "num_warps"), False, id="option, missing"),
        pytest.param(probes.release(3, 7), True, id="release"),
        pytest.param(probes.release(3, 7, 1), False, id="earlier release"),
        pytest.param(probes.before(3, 8), True, id="before"),
        pytest.param(probes.before(3, 7), False, id="not before itself"),
    ],
)
def test_kinds_of_probe(probe: probes.Probe, holds: bool) -> None:
    finding = probe()
    assert finding.holds is holds
    assert finding.found.startswith("Triton 3.7.0+amd" if finding.holds else "3.7.0+amd")


def _nvidia(monkeypatch, choose: Any) -> None:
    """A back end for NVIDIA whose choice of a ptxas is ``choose``."""
    compiler = SimpleNamespace(get_ptxas=choose, sm_arch_from_capability=lambda capability: f"sm_{capability}a")
    monkeypatch.setitem(sys.modules, "triton.backends.nvidia.compiler", compiler)


@pytest.mark.parametrize(
    ("tool", "finding"),
    [
        pytest.param("12.8", Finding(False, "ptxas 12.8 with Triton 3.7.0+amd"), id="older"),
        pytest.param("12.9", Finding(True, "ptxas 12.9 with Triton 3.7.0+amd"), id="of the release"),
        pytest.param("13.0", Finding(True, "ptxas 13.0 with Triton 3.7.0+amd"), id="newer"),
        pytest.param(None, Finding(False, "3.7.0+amd, without ptxas"), id="none"),
    ],
)
@pytest.mark.parametrize("chooses", ["for all", "for each"])
@pytest.mark.usefixtures("library")
def test_ptxas_is_asked_and_not_triton(monkeypatch, tool: str | None, finding: Finding, chooses: str) -> None:
    """A distribution may give Triton another ptxas than its release has, and AMD's builds have none."""

    def for_all() -> Any:
        if tool is None:
            raise RuntimeError("Cannot find ptxas")
        return SimpleNamespace(version=tool)

    def for_each(arch: int) -> Any:
        assert arch == 90
        return for_all()

    _nvidia(monkeypatch, {"for all": for_all, "for each": for_each}[chooses])
    assert probes.ptxas(90, 12, 9)() == finding


def test_a_triton_without_a_back_end_for_nvidia_has_no_ptxas(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "triton.backends.nvidia.compiler", None)  # type: ignore[arg-type]
    assert probes.ptxas_for(90) is None


def test_an_unreadable_version_counts_as_newer_nowhere_and_as_older_nowhere(monkeypatch) -> None:
    monkeypatch.setattr(versions, "find", lambda name: Build(name, "main"))
    assert probes.release(3, 5)() == probes.before(3, 10)() == Finding(False, "main")


def test_a_probe_runs_once_per_build(monkeypatch) -> None:
    pytest.importorskip("triton")
    runs: list[str] = []

    def probe() -> Finding:
        runs.append(versions.find("triton").found)
        return Finding(True, runs[-1])

    first = probes.run(probe)
    assert probes.run(probe) is first
    assert len(runs) == 1
    monkeypatch.setattr(versions, "find", lambda name: Build(name, "3.99+other", (3, 99)))
    assert probes.run(probe).found == "3.99+other"
    assert len(runs) == 2


@pytest.mark.parametrize("error", [AttributeError("no attribute 'x'"), AssertionError(), OSError(5, "cannot open")], ids=repr)
def test_a_probe_that_fails_says_how(error: Exception) -> None:
    triton = pytest.importorskip("triton")

    def probe() -> Finding:
        raise error

    words = f"{triton.__version__}, where the probe failed: {type(error).__name__}: {str(error) or 'no message'}"
    assert probes.run(probe)[:2] == (False, words)


class PanicError(BaseException):
    """As Python's bindings of Rust raise."""


@pytest.mark.parametrize("error", [SystemExit(3), PanicError("unwrap on None")], ids=repr)
def test_a_probe_that_would_end_the_process_says_how(error: BaseException) -> None:
    pytest.importorskip("triton")

    def probe() -> Finding:
        raise error

    assert probes.run(probe).found.endswith(f"where the probe failed: {type(error).__name__}: {error}")


def test_an_interrupted_probe_has_no_finding() -> None:
    pytest.importorskip("triton")

    def probe() -> Finding:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probes.run(probe)


# What is remembered


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError()], ids=repr)
def test_what_the_machine_kept_from_being_answered_is_asked_again(error: Exception) -> None:
    pytest.importorskip("triton")
    errors = [error]

    def probe() -> Finding:
        if errors:
            raise errors.pop()
        return Finding(True, "an answer")

    assert not probes.run(probe).holds
    assert probes.run(probe) == Finding(True, "an answer")


def test_a_verdict_is_asked_again_too(monkeypatch) -> None:
    pytest.importorskip("triton")
    findings = [Finding(False, "no space", lasts=False)]
    monkeypatch.setattr(probes, "run", lambda probe, *arguments: findings.pop() if findings else Finding(True, "Triton"))
    caps = Capabilities(GFX950)
    assert not caps.gluon_cdna4
    assert caps.gluon_cdna4


@pytest.mark.parametrize("variable", ["TRITON_INTERPRET", "TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH"])
def test_a_setting_that_changes_is_asked_about_again(monkeypatch, variable: str) -> None:
    triton = pytest.importorskip("triton")
    seen: list[str | None] = []

    def probe() -> Finding:
        seen.append(os.environ.get(variable))
        return Finding(True, str(seen[-1]))

    for value in ("1", "2"):
        monkeypatch.setenv(variable, value)
        assert {probes.run(probe).found, probes.run(probe).found} == {value}
    monkeypatch.setattr(triton.knobs, "propagate_env", False)
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    probes.run(probe)
    assert seen == ["1", "2", "2"]


def test_another_triton_is_asked_anew(monkeypatch) -> None:
    """An engine's stand-in may have the version of the real one that takes its place."""
    real = pytest.importorskip("triton")
    answers = iter("ab")

    def probe() -> Finding:
        return Finding(True, next(answers))

    twin = ModuleType("triton")
    vars(twin).update(vars(real))
    assert probes.run(probe).found == "a"
    monkeypatch.setitem(sys.modules, "triton", twin)
    assert probes.run(probe).found == "b"


ASKED_EARLY = """
import os
from capgate import compat

assert not compat.capabilities("cpu").interpreter
os.environ["TRITON_INTERPRET"] = "1"
{before}
import triton, triton.language as tl
print(*compat.capabilities("cpu")["interpreter"], sep="|")
"""


@pytest.mark.parametrize(
    ("before", "said"),
    [
        pytest.param("", "True|found TRITON_INTERPRET=1", id="in time"),
        pytest.param(
            "del os.environ['TRITON_INTERPRET']; import triton; os.environ['TRITON_INTERPRET'] = '1'",
            "False|needs TRITON_INTERPRET=1: found TRITON_INTERPRET=1, set after Triton was imported, whose own functions are"
            " compiled",
            id="too late",
        ),
    ],
)
def test_the_interpreter_may_be_asked_for_after_a_question(python, before: str, said: str) -> None:
    pytest.importorskip("triton")
    done = python("-c", ASKED_EARLY.format(before=before))
    assert done.stdout.strip() == said, done.stderr


# Tritons that are not there, not real, or broken

NAMES = [name for name, row in TABLE.items() if row.probe is not None]


def _verdicts() -> dict[str, Any]:
    caps = Capabilities(GFX950)
    return {name: caps[name] for name in NAMES}


def test_without_triton_nothing_holds_and_every_reason_says_so(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    for name, verdict in _verdicts().items():
        assert verdict == (False, f"needs {TABLE[name].needs}: found no Triton")


def test_a_placeholder_is_not_taken_for_triton(site) -> None:
    """Engines put an empty module in the place of a Triton that is missing; the wheel's metadata may still be there."""
    site.package("triton")
    site.distribution("triton", "3.6.0")
    verdicts = _verdicts()
    file = site.folder / "triton" / "__init__.py"
    assert verdicts["triton"] == (False, f"needs Triton: found 3.6.0, a placeholder without a compiler: {file}")
    assert not any(verdict.available for name, verdict in verdicts.items() if name.startswith("gluon"))


@pytest.mark.parametrize("error", ["ImportError('libtriton.so')", "RuntimeError('no driver')", "OSError('GLIBC')"])
def test_a_broken_triton_gives_its_error_as_the_reason(site, error: str) -> None:
    site.package("triton", f"raise {error}")
    site.distribution("triton", "3.6.0+vendor")
    words = error.replace("('", ": ").rstrip("')")
    verdicts = _verdicts()
    assert verdicts.pop("interpreter") == (False, "needs TRITON_INTERPRET=1: found TRITON_INTERPRET unset")
    for name, verdict in verdicts.items():
        assert verdict == (False, f"needs {TABLE[name].needs}: found 3.6.0+vendor, where the probe failed: {words}")


def test_gluon_of_triton_3_5_imports_and_is_no_capability(lane: str) -> None:
    """What upstream's gates trip over: on 3.5.1 the import succeeds, and the interface is another one."""
    if lane != "3.5.1":
        pytest.skip("is about Triton 3.5.1")
    assert import_module("triton.experimental.gluon.language.amd.cdna4").mfma_scaled
    caps = Capabilities(GFX950)
    assert (caps.gluon, caps.gluon_cdna4) == (False, False)
    assert caps.why("gluon_cdna4").startswith("needs the Gluon API of Triton 3.6: found 3.5.1, whose AMDMFMALayout takes no ")


def test_stubs_of_triton_3_9_are_told_from_functions(lane: str) -> None:
    """hasattr says yes to a removed name that is kept to raise."""
    if lane != "3.9.0":
        pytest.skip("is about Triton 3.9.0")
    assert import_module("triton.experimental.gluon.language.nvidia.hopper").tma.async_copy_global_to_shared
    caps = Capabilities(GFX950)
    assert (caps.gluon_tma_copy, caps.gluon_tma_load) == (False, True)


def _raising(*arguments: Any, **keywords: Any) -> None:
    raise NotImplementedError("Block pointers have been removed")


def _doing_nothing(*arguments: Any, **keywords: Any) -> None:
    pass


@pytest.mark.parametrize("stub", [_raising, _doing_nothing, None])
@pytest.mark.parametrize("name", ["make_block_ptr", "advance"])
def test_block_pointers_whose_symbol_is_a_stub_are_none(monkeypatch, lane: str, name: str, stub: Any) -> None:
    """As on builds that call themselves 3.8.0 and are of Triton's main branch."""
    if lane == "3.9.0":
        pytest.skip("has no block pointers of its own")
    assert Capabilities(GFX950).block_pointers
    monkeypatch.setattr(probes, "_findings", {})
    monkeypatch.setattr(f"triton.language.core.{name}", stub)
    words = f"needs block pointers: found {lane}, without tl.{name}, or with a stub of it"
    assert Capabilities(GFX950)["block_pointers"] == (False, words)


@pytest.mark.parametrize(
    ("text", "release", "release_says"),
    [
        pytest.param("3.5.1+vendor", (3, 5, 1), False, id="backport"),
        pytest.param("main", (), True, id="unreadable"),
    ],
)
def test_a_probe_outranks_the_version(monkeypatch, lane: str, text: str, release: Any, release_says: bool) -> None:
    """A vendor's 3.5.1 that carries the Gluon of 3.6: what the code can do counts, and the reason names the build."""
    if lane == "3.5.1":
        pytest.skip("needs a Triton whose Gluon is at least that of 3.6")
    monkeypatch.setattr(versions, "find", lambda name: Build(name, text, release, "metadata"))
    caps = Capabilities(GFX950)
    assert caps["gluon"] == (True, f"found Triton {text}")
    assert caps["gluon_cdna4"] == (True, f"found Triton {text}; found gfx950")
    assert caps.triton_ge_36 is release_says


def test_half_of_an_interface_is_none(monkeypatch, lane: str) -> None:
    """A build between 3.5 and 3.6: three-part MFMA shapes, and still three CTA keywords in the layouts."""
    if lane == "3.5.1":
        pytest.skip("needs a Triton whose Gluon is at least that of 3.6")
    gl = import_module("triton.experimental.gluon.language")
    monkeypatch.setattr(gl, "BlockedLayout", lambda size_per_thread, order, ctas_per_cga, cta_split_num, cta_order: None)
    words = f"needs the Gluon API of Triton 3.6: found {lane}, whose BlockedLayout takes no cga_layout"
    assert Capabilities(GFX950)["gluon"] == (False, words)


def test_a_version_never_stands_in_for_behaviour(monkeypatch, lane: str) -> None:
    """Triton's main branch calls itself X.Y.0+git before X.Y.0 has its features."""
    truth = _verdicts()["gluon_cache_policy"].available
    monkeypatch.setattr(versions, "find", lambda name: Build(name, "99.0.0+git1a2b", (99, 0, 0), "metadata"))
    assert _verdicts()["gluon_cache_policy"].available is truth
    assert _verdicts()["triton_ge_36"].available
