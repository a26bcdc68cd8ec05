"""Questions put to the installed Triton itself: does an attribute exist, what does a function take, does a layout build.

Behaviour is asked and not source text, because a vendor build (3.7.0+amd) carries features of a later release and because
newer releases keep removed names as stubs that only raise. Such a stub takes ``*args, **kwargs``, so looking for a
parameter by name tells it from the real function. Nothing here compiles a kernel: each probe costs at most some milliseconds
once Triton is imported.

A probe is a function without arguments that returns a :class:`Finding`; :func:`run` answers it once per build.
"""

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

from . import versions
from ._errors import of_the_machine, summary
from .releases import parse_release
from .targets import Target, base_label


class Finding(NamedTuple):
    """What a probe found: whether it holds, and the words that follow "found" in a reason.

    lasts : False where the machine kept the question from being answered, so that it is to be asked again
    """

    holds: bool
    found: str
    lasts: bool = True


Probe = Callable[[], Finding]

_findings: dict[tuple[Any, ...], Finding] = {}
_loaded: dict[str, ModuleType | None] = {}
_texts: dict[tuple[Any, ...], str] = {}


def run(probe: Callable[..., Finding], *arguments: Any) -> Finding:
    """The probe's finding on the installed Triton, remembered for as long as the build and its settings stay the same."""
    build = versions.find("triton")
    if build.text is None:
        return Finding(False, build.found if build.error else "no Triton")
    key = (probe, arguments, build.text, settings())
    if key not in _findings:
        answer = _answer(probe, arguments, build)
        if not answer.lasts:
            return answer
        _findings[key] = _findings[probe, arguments, build.text, settings()] = answer  # under what has been imported, too
    return _findings[key]


def _answer(probe: Callable[..., Finding], arguments: tuple[Any, ...], build: versions.Build) -> Finding:
    try:
        if probe is not interpreter:
            import_module("triton")
        return probe(*arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a vendor's build fails in any way, and then has no such capability
        return Finding(False, f"{build.text}, where the probe failed: {summary(error)}", not of_the_machine(error))


# What programs change while they run: variables, and the knobs of Triton that stand for them when they are set in its place.
_SETTINGS = tuple(
    (variable, os.fsencode(variable) if os.supports_bytes_environ else variable, group, name)  # as os.environ keeps it
    for variable, group, name in (
        ("TRITON_INTERPRET", "runtime", "interpret"),
        ("TRITON_PTXAS_PATH", "nvidia", "ptxas"),
        ("TRITON_PTXAS_BLACKWELL_PATH", "nvidia", "ptxas_blackwell"),
    )
)
_NONE: dict[Any, Any] = {}


def settings() -> str:
    """What findings depend on beside the build: which Triton is loaded, and its settings. Equal texts mean equal findings."""
    module = sys.modules.get("triton")
    groups = getattr(module, "__dict__", _NONE).get("knobs")
    state: list[Any] = [id(module)]
    variables = getattr(os.environ, "_data", None)  # this runs at every call, and os.environ.get takes a microsecond or two
    for variable, kept, group, name in _SETTINGS:
        state.append(os.environ.get(variable) if variables is None else variables.get(kept))
        state.append(getattr(getattr(groups, group, None), "__dict__", _NONE).get(name))
    try:
        return _texts[tuple(state)]
    except (KeyError, TypeError):  # a state that is new, or in which somebody has set a knob to what cannot be a key
        text = repr(state)
    _loaded.setdefault(text, module)  # kept, so that no other module gets this id
    with suppress(TypeError):
        _texts[tuple(state)] = text
    return text


def set_to() -> dict[str, str]:
    """The settings that are set, by their variables, and their values: a knob's, where somebody has set that."""
    knobs, found = getattr(sys.modules.get("triton"), "knobs", None), {}
    for variable, _, group, name in _SETTINGS:
        value = getattr(getattr(knobs, group, None), "__dict__", _NONE).get(name, os.environ.get(variable))
        if value is not None:
            found[variable] = str(value)
    return found


def package(name: str) -> Finding:
    """Whether a package is installed and imports."""
    from subprocess import SubprocessError

    build = versions.find(name)
    if build.text is None:
        return Finding(False, build.found)
    found = f"{name} {build.text}"
    try:
        failure = versions.import_failure(name)
    except (OSError, SubprocessError) as error:
        return Finding(False, f"{found}; whether it imports could not be asked: {summary(error)}", lasts=False)
    return Finding(not failure, f"{found}, which does not import: {failure}" if failure else found)


def finding(holds: bool, lacking: str = " without it") -> Finding:
    """The finding in words: the build, and behind it what it lacks."""
    text = versions.find("triton").found
    return Finding(holds, f"Triton {text}" if holds else f"{text}{lacking}")


def by_release(holds: bool, build: versions.Build) -> Finding:
    """The finding of a question that the release answers."""
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


def first(*paths: str) -> Any:
    """The first of several names under which builds offer one thing; None where a build has none of them."""
    return next((found for path in paths if (found := resolve(path)) is not None), None)


def has(path: str) -> Probe:
    """Holds where ``module:attribute`` exists."""
    return lambda: finding(resolve(path) is not None)


def takes(path: str, *parameters: str) -> Probe:
    """Holds where the function or class at ``path`` names all ``parameters``; false for a stub that takes anything."""

    def probe() -> Finding:
        function = resolve(path)
        return finding(function is not None and all(name in parameters_of(function) for name in parameters))

    return probe


def optional(path: str, parameter: str) -> Probe:
    """Holds where the function at ``path`` has ``parameter`` and a default for it."""

    def probe() -> Finding:
        function = resolve(path)
        found = parameters_of(function).get(parameter) if function is not None else None
        return finding(found is not None and found.default is not found.empty)

    return probe


def option(path: str, field: str) -> Probe:
    """Holds where the launch options class at ``path`` (a dataclass) has ``field``."""
    fields = f"{path}.__dataclass_fields__"
    return lambda: finding(field in (resolve(fields) or ()))


def release(*at_least: int) -> Probe:
    """Holds from a release on: only for what cannot be asked of the code itself, such as the meaning of an option."""

    def probe() -> Finding:
        build = versions.find("triton")
        return by_release(build.at_least(*at_least), build)

    return probe


knows_gfx1250 = release(3, 7)  # 3.6.0 lowers for it and hangs in LLVM, which no probe may try


# The release from which on tl.dot_scaled becomes block-scaled instructions. Earlier ones make bfloat16 of its operands, at the
# price of more instructions than a kernel needs for that itself, or do not compile; asking takes a whole compile.
BLOCK_SCALED_DOT = {
    "gfx950": (3, 5), "gfx1250": (3, 7), "sm100": (3, 9), "sm103": (3, 9), "sm120": (3, 6), "sm121": (3, 6),
}  # fmt: skip


def block_scaled_dot(target: Target) -> Finding:
    """Whether the installed Triton makes block-scaled matrix instructions of tl.dot_scaled."""
    build = versions.find("triton")
    least = BLOCK_SCALED_DOT.get(base_label(target.label))
    return Finding(least is not None and build.at_least(*least), f"{build.found} for {target.label}")


def gfx950_wide_tiles(target: Target) -> Finding:
    """Whether the installed Triton keeps the widest attention tiles in gfx950's registers; asking takes a compile of 10 s."""
    build = versions.find("triton")
    holds = base_label(target.label) == "gfx950" and build.at_least(3, 6) and not build.at_least(3, 7)
    return Finding(holds, f"{build.found} for {target.label}")


def before(*release_: int) -> Probe:
    """Holds up to a release, exclusively; an unreadable version counts as newer."""

    def probe() -> Finding:
        build = versions.find("triton")
        return by_release(bool(build.release) and not build.at_least(*release_), build)

    return probe


def ptxas_for(arch: int) -> Any:
    """The ptxas that Triton takes for a compute capability, with ``path`` and ``version``; None where it has none.

    Its own, or that of TRITON_PTXAS_PATH or TRITON_PTXAS_BLACKWELL_PATH; which of the two, depends on the Triton.
    """
    choose = resolve("triton.backends.nvidia.compiler:get_ptxas")
    if choose is None:
        return None
    try:
        return choose(arch) if parameters_of(choose) else choose()
    except RuntimeError:  # none of its own, and none where the variable points
        return None


def ptxas(arch: int, *at_least: int) -> Probe:
    """Holds where the ptxas that Triton takes for a compute capability is of a release or newer."""

    def probe() -> Finding:
        tool = ptxas_for(arch)
        if tool is None:
            return finding(False, ", without ptxas")
        holds = parse_release(tool.version) >= at_least
        return Finding(holds, f"ptxas {tool.version} with Triton {versions.find('triton').found}")

    return probe


def parameters_of(function: Any) -> Mapping[str, Any]:
    """What a function or class takes, by name."""
    from inspect import signature  # 8 ms that importing this package need not take

    return signature(function).parameters


def triton() -> Finding:
    """Triton imports and is the real one: a placeholder that an engine leaves in its place has no compiler."""
    file = getattr(sys.modules["triton"], "__file__", None)
    return finding(callable(resolve("triton:compile")), f", a placeholder without a compiler: {file}")


def constexpr_tuple_permute() -> Finding:
    """Permute by a tuple of constexprs and see whether plain integers reach the compiler."""
    core = import_module("triton.language.core")
    reached: list[Any] = []

    class Semantic:
        def permute(self, tensor: object, dims: Any) -> None:
            reached.extend(dims)

    core.permute(object(), (core.constexpr(1), core.constexpr(0)), _semantic=Semantic())
    return finding(reached == [1, 0] and all(type(dim) is int for dim in reached), ", whose permute passes constexprs on")


def dot_infers_out_dtype() -> Finding:
    """tl.dot's out_dtype has None for its default."""
    return finding(parameters_of(resolve("triton.language:dot"))["out_dtype"].default is None)


def block_pointers() -> Finding:
    """Offer make_block_ptr and advance what is no pointer, and see whether both look at it.

    Releases keep the names as stubs, which raise or do nothing, whatever they are given.
    """
    import warnings

    class LookedAtError(Exception):
        pass

    class Given:
        def __getattr__(self, name: str) -> Any:
            raise LookedAtError

    def looks(function: Any, *arguments: Any) -> bool:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they are deprecated from 3.7 on, and still work
                function(Given(), *arguments, _semantic=Given())
        except (LookedAtError, ValueError):  # 3.8's advance refuses what is no block pointer
            return True
        except (TypeError, NotImplementedError):
            pass
        return False

    core = import_module("triton.language.core")
    if not looks(getattr(core, "make_block_ptr", None), (16,), (1,), (0,), (16,), (0,)):
        return finding(False, ", without tl.make_block_ptr, or with a stub of it")
    return finding(looks(getattr(core, "advance", None), (16,)), ", without tl.advance, or with a stub of it")


def interpreter() -> Finding:
    """Whether kernels defined from now on run in Triton's interpreter, on CPU tensors.

    Triton's own functions in Triton's language (``tl.sum``) are interpreted or compiled for good by what held at its import.
    So Triton is not imported to answer no: a program may set the variable yet, and import it then.
    """
    setting = os.environ.get("TRITON_INTERPRET")
    words = "TRITON_INTERPRET unset" if setting is None else f"TRITON_INTERPRET={setting}"
    if "triton" not in sys.modules and (setting or "").lower() in ("", "0", "off", "false", "no", "n"):
        return Finding(False, words)
    loaded = import_module("triton")
    if not loaded.knobs.runtime.interpret:
        return Finding(False, words)
    if isinstance(loaded.language.sum, loaded.runtime.JITFunction):
        return Finding(False, f"{words}, set after Triton was imported, whose own functions are compiled")
    return Finding(True, words)
