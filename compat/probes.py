"""Questions put to the installed Triton itself: does an attribute exist, what does a function take, does a layout build.

Behaviour is asked and not source text, because a vendor build (3.7.0+amd) carries features of a later release and because
newer releases keep removed names as stubs that only raise. Such a stub takes ``*args, **kwargs``, so looking for a
parameter by name tells it from the real function. Nothing here compiles a kernel: each probe costs at most some milliseconds
once Triton is imported.

A probe is a function without arguments that returns a :class:`Finding`; :func:`run` answers it once per build.
"""

import os
import tempfile
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NamedTuple

from . import versions

GLUON = "triton.experimental.gluon"
GL = f"{GLUON}.language"


class Finding(NamedTuple):
    """What a probe found: whether it holds, and the words that follow "found" in a reason."""

    holds: bool
    found: str


Probe = Callable[[], Finding]

_findings: dict[tuple[Probe, str | None], Finding] = {}


def run(probe: Probe) -> Finding:
    """The probe's finding on the installed Triton, remembered for as long as the build stays the same."""
    build = versions.find("triton")
    key = (probe, build.text)
    if key not in _findings:
        _findings[key] = _answer(probe, build)
    return _findings[key]


def _answer(probe: Probe, build: versions.Build) -> Finding:
    if build.text is None:
        return Finding(False, build.found if build.error else "no Triton")
    try:
        import_module("triton")
        return probe()
    except Exception as error:  # a vendor's build may fail in any way, and then it has no such capability: say how it failed
        return Finding(False, f"{build.text}, where the probe failed: {type(error).__name__}: {error}")


def _finding(holds: bool, lacking: str = " without it") -> Finding:
    text = versions.find("triton").found
    return Finding(holds, f"Triton {text}" if holds else f"{text}{lacking}")


def _by_release(holds: bool, build: versions.Build) -> Finding:
    return Finding(holds, f"Triton {build.found}" if holds else build.found)


def resolve(path: str) -> Any:
    """The object that ``package.module:attribute.attribute`` names, None where the module or an attribute is missing."""
    module, _, attributes = path.partition(":")
    try:
        found: Any = import_module(module)
    except ModuleNotFoundError:
        return None
    for name in attributes.split(".") if attributes else ():
        found = getattr(found, name, None)
    return found


def has(path: str) -> Probe:
    """Holds where ``module:attribute`` exists."""
    return lambda: _finding(resolve(path) is not None)


def takes(path: str, *parameters: str) -> Probe:
    """Holds where the function or class at ``path`` names all ``parameters``; false for a stub that takes anything."""

    def probe() -> Finding:
        function = resolve(path)
        return _finding(function is not None and all(name in _parameters(function) for name in parameters))

    return probe


def optional(path: str, parameter: str) -> Probe:
    """Holds where the function at ``path`` has ``parameter`` and a default for it."""

    def probe() -> Finding:
        function = resolve(path)
        found = _parameters(function).get(parameter) if function is not None else None
        return _finding(found is not None and found.default is not found.empty)

    return probe


def option(path: str, field: str) -> Probe:
    """Holds where the launch options class at ``path`` (a dataclass) has ``field``."""
    fields = f"{path}.__dataclass_fields__"
    return lambda: _finding(field in (resolve(fields) or ()))


def release(*at_least: int) -> Probe:
    """Holds from a release on: only for what cannot be asked of the code itself, such as the meaning of an option."""

    def probe() -> Finding:
        build = versions.find("triton")
        return _by_release(build.at_least(*at_least), build)

    return probe


def before(*release_: int) -> Probe:
    """Holds up to a release, exclusively; an unreadable version counts as newer."""

    def probe() -> Finding:
        build = versions.find("triton")
        return _by_release(bool(build.release) and not build.at_least(*release_), build)

    return probe


def ptxas(*at_least: int) -> Probe:
    """Holds where the ptxas that Triton takes below sm100 is of a release or newer: its own, or that of TRITON_PTXAS_PATH."""

    def probe() -> Finding:
        try:
            tool = resolve("triton:knobs.nvidia.ptxas")
        except RuntimeError:  # none of its own, and none where the variable points
            tool = None
        if tool is None:
            return _finding(False, ", without ptxas")
        holds = versions.parse_release(tool.version) >= at_least
        return Finding(holds, f"ptxas {tool.version} with Triton {versions.find('triton').found}")

    return probe


def _parameters(function: Any) -> Mapping[str, Any]:
    from inspect import signature  # 8 ms that importing this package need not take

    return signature(function).parameters


def triton() -> Finding:
    """Triton imports and is the real one: a placeholder that an engine leaves in its place has no compiler."""
    return _finding(callable(resolve("triton:compile")), ", a placeholder without a compiler")


def triton_ge_36() -> Finding:
    """The release says so; where the version is unreadable, Gluon's 3.6 interface does."""
    build = versions.find("triton")
    return _by_release(build.at_least(3, 6), build) if build.release else gluon()


def gluon() -> Finding:
    """Build the layouts of the 3.6 interface: three-part MFMA shapes, and cga_layout in place of three CTA keywords."""
    if resolve(f"{GL}.amd:AMDMFMALayout") is None:
        return _finding(False, ", without Gluon for AMD")
    gl, amd = import_module(GL), import_module(f"{GL}.amd")
    try:
        amd.AMDMFMALayout(version=4, instr_shape=[16, 16, 128], transposed=True, warps_per_cta=[1, 1])
    except (TypeError, AssertionError, ValueError):
        return _finding(False, ", whose AMDMFMALayout takes no [M, N, K] instruction shape")
    if "cga_layout" not in _parameters(gl.BlockedLayout):
        return _finding(False, ", whose BlockedLayout takes no cga_layout")
    return _finding(True)


def gluon_linear_async_copy() -> Finding:
    """Offer the direct-to-LDS copy a pointer tensor in a linear layout, and see whether it gets past the layout check."""
    copy = resolve(f"{GL}.amd.cdna4.async_copy:global_load_to_shared")
    if copy is None:
        return _finding(False, ", without cdna4.async_copy.global_load_to_shared")
    gl = import_module(GL)

    class AcceptedError(Exception):
        pass

    class Pointers:  # all that the copy asks of its pointers before it compares their shape with the destination's
        layout = gl.DistributedLinearLayout([[0, 1]], [[0, 1 << bit] for bit in range(1, 7)], [], [], [1, 128])
        shape = (1, 128)

        @property
        def type(self) -> "Pointers":
            return self

        def is_block(self) -> bool:
            return True

    class Destination:
        @property
        def shape(self) -> None:
            raise AcceptedError

    try:
        copy(Destination(), Pointers(), _semantic=object())
    except AcceptedError:
        return _finding(True)
    except ValueError as error:
        return _finding(False, f", whose copy says: {error}")
    return _finding(False, ", whose copy looked at no layout")


def constexpr_tuple_permute() -> Finding:
    """Permute by a tuple of constexprs and see whether plain integers reach the compiler."""
    core = import_module("triton.language.core")
    reached: list[Any] = []

    class Semantic:
        def permute(self, tensor: object, dims: Any) -> None:
            reached.extend(dims)

    core.permute(object(), (core.constexpr(1), core.constexpr(0)), _semantic=Semantic())
    return _finding(reached == [1, 0] and all(type(dim) is int for dim in reached), ", whose permute passes constexprs on")


def tma_multicast() -> Finding:
    """The tensor-map load, under the newer of its two names, takes multicast."""
    tma = f"{GL}.nvidia.hopper:tma"
    load = resolve(f"{tma}.async_load") or resolve(f"{tma}.async_copy_global_to_shared")
    holds = load is not None and "multicast" in _parameters(load)
    return _finding(holds, ", whose tensor-map load takes no multicast")


_CARRIED_BOUND = """
tt.func public @kernel(%memory: !tt.ptr<i32>, %count: i32) {
  %zero = arith.constant 0 : i32
  %one = arith.constant 1 : i32
  %last = scf.for %i = %zero to %count step %one iter_args(%bound = %one) -> (i32) : i32 {
    scf.for %j = %zero to %bound step %one : i32 {
      tt.store %memory, %j : !tt.ptr<i32>
    }
    %next = tt.load %memory : !tt.ptr<i32>
    scf.yield %next : i32
  }
  tt.return
}
"""


def carried_loop_bounds() -> Finding:
    """Simplify a loop that loads the bound of its inner loop one iteration ahead, and see whether the load is still there.

    Triton's elimination of dead loop arguments takes a value for dead that only bounds inner loops, on builds without this.
    """
    ir, passes = resolve("triton._C.libtriton:ir"), resolve("triton._C.libtriton:passes")
    if ir is None or passes is None:
        return _finding(False, ", without Triton's IR")
    context = ir.context()
    ir.load_dialects(context)
    with tempfile.NamedTemporaryFile("w", suffix=".ttir") as file:
        file.write(_CARRIED_BOUND)
        file.flush()
        module = ir.parse_mlir_module(file.name, context)
    manager = ir.pass_manager(context)
    passes.ttgpuir.add_remove_layout_conversions(manager)  # of kernels in the classic language; Gluon's has the pattern too
    passes.common.add_canonicalizer(manager)
    try:
        manager.run(module, "carried_loop_bounds")
    except TypeError:  # 3.5's takes no name
        manager.run(module)
    return _finding("tt.load" in str(module), ", whose loops freeze them")


def dot_infers_out_dtype() -> Finding:
    """tl.dot's out_dtype has None for its default."""
    return _finding(_parameters(resolve("triton.language:dot"))["out_dtype"].default is None)


def block_pointers() -> Finding:
    """Both halves of the block-pointer interface are there; later releases keep one of them as a stub."""
    return _finding(resolve("triton.language:advance") is not None, ", without tl.advance")


def interpreter() -> Finding:
    """Whether kernels defined from now on run in Triton's interpreter, on CPU tensors."""
    active = bool(import_module("triton").knobs.runtime.interpret)
    setting = os.environ.get("TRITON_INTERPRET", "unset")
    return Finding(active, f"TRITON_INTERPRET={setting}" if setting != "unset" else "TRITON_INTERPRET unset")
