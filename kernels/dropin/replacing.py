"""Which functions of other libraries ours can stand in for, and the exchange of one for the other in loaded modules."""

import inspect
import logging
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

from capgate.compat.spelling import nearest

LOG = logging.getLogger("capgate")

# Drop-in (a module of this package) -> its functions -> the modules that callers import each from. A release has one of these
# modules or several, under an old and a new name.
DROPINS: dict[str, dict[str, tuple[str, ...]]] = {
    "aiter": {
        "fp8_mqa_logits": ("aiter.ops.triton.attention.fp8_mqa_logits", "aiter.ops.triton.fp8_mqa_logits"),
        "deepgemm_fp8_paged_mqa_logits": ("aiter.ops.triton.attention.pa_mqa_logits", "aiter.ops.triton.pa_mqa_logits"),
    },
    # get_num_sms and set_num_sms stay theirs: their matmuls use them too.
    "deep_gemm": {
        "fp8_mqa_logits": ("deep_gemm",),
        "fp8_paged_mqa_logits": ("deep_gemm",),
        "get_paged_mqa_logits_metadata": ("deep_gemm",),
    },
    "vllm_rocm": dict.fromkeys(
        ("rocm_fp8_mqa_logits", "rocm_fp8_paged_mqa_logits"),
        ("vllm.v1.attention.ops.rocm_aiter_mla_sparse", "vllm.attention.ops.rocm_aiter_mla_sparse"),
    ),
}


class Schedule(NamedTuple):
    """A schedule that a replaced function makes in units of its own: whoever else reads it must be replaced with it.

    DeepGEMM's kernels end a worker where it stands exactly at the next one's begin, in splits of 256 or 384 keys. From a
    schedule in other units they may never get there: they go on past the batch and do not end.

    maker : the function that makes it
    reader : the name of a function that reads it
    parameter : what readers call it, whatever their own names are
    """

    maker: str
    reader: re.Pattern[str]
    parameter: re.Pattern[str]


SCHEDULES = {
    "deep_gemm": Schedule(
        "get_paged_mqa_logits_metadata",
        # fp8_, fp8_fp4_, bf16_ and more to come; their makers' names say metadata
        re.compile(r"^(?!.*metadata).*paged_mqa_logits"),
        re.compile(r"\bschedule_?meta"),
    )
}

# Packages whose modules may hold a function that they imported by name before it was replaced. No others are searched: a
# benchmark that keeps the original to compare with shall keep it.
CALLERS = ("aiter", "atom", "deep_gemm", "sglang", "vllm")

Target = tuple[str, ModuleType]  # a function's name, and a loaded module that offers it


class DropinError(RuntimeError):
    """A library does not offer what a drop-in would replace, or something would go on reading a schedule that becomes ours.

    No ImportError: engines take that for a library they lack.
    """


class Place(NamedTuple):
    """Where a function of ours stands, and what stood there before."""

    module: ModuleType
    attribute: str
    original: Any
    ours: Any


_places: dict[str, list[Place]] = {}  # by drop-in


def unknown(name: str) -> str | None:
    """None for a drop-in's name, else what to say of it."""
    return None if name in DROPINS else f"no drop-in {name!r}; {nearest(name, DROPINS)}"


def is_installed(name: str) -> bool:
    """Whether functions of ours stand in the place of the library's in this process."""
    return bool(_places.get(name))


def is_there(name: str) -> bool:
    """Whether the drop-in's library could be imported; it is not."""
    packages = {home.partition(".")[0] for homes in DROPINS[name].values() for home in homes}
    return all(package in sys.modules or _findable(package) for package in packages)


def _findable(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # of somebody's finder, or of a module that is half there
        return False


def imported(name: str) -> list[Target]:
    """The drop-in's targets, their modules imported now. DropinError for a module that fails, and a function without one."""
    targets = []
    for function, homes in DROPINS[name].items():
        found = [home for home in homes if _import(name, function, home)]
        if not found:
            raise DropinError(f"{name}: cannot replace {function}: no module {' or '.join(homes)} is importable")
        targets += [(function, sys.modules[home]) for home in found]  # as they are now: importing one may have renewed another
    return targets


def _import(name: str, function: str, home: str) -> bool:
    """Whether there is such a module; it is imported. Any failure but its absence is a DropinError."""
    try:
        import_module(home)
    except ModuleNotFoundError as error:
        if error.name is None or not (home == error.name or home.startswith(f"{error.name}.")):
            raise DropinError(f"{name}: cannot replace {function}: {home} does not import: {error}") from error
        return False
    except Exception as error:  # somebody else's module fails in any way; the cause goes along
        why = f"{type(error).__name__}: {error}"
        raise DropinError(f"{name}: cannot replace {function}: {home} does not import: {why}") from error
    return True


def loaded(name: str) -> list[Target]:
    """The drop-in's targets whose modules are loaded."""
    functions = DROPINS[name].items()
    return [(function, sys.modules[home]) for function, homes in functions for home in homes if home in sys.modules]


def replace(name: str, targets: list[Target]) -> None:
    """Put ours in the place of every target, and of the same objects in the callers' modules; say so where that is news.

    DropinError, and nothing is replaced, where a module does not offer its function, or a reader of a schedule would be left.
    """
    for function, module in targets:
        if not callable(getattr(module, function, None)):
            raise DropinError(f"{name}: cannot replace {function}: {module.__name__} offers no such function")
    new: dict[tuple[int, str], Place] = {}
    for function, module in targets:
        ours, original = getattr(import_module(f".{name}", __package__), function), getattr(module, function)
        if original is ours:
            continue
        new[id(module), function] = Place(module, function, original, ours)
        for holder, attribute in _holders(original):
            new[id(holder), attribute] = Place(holder, attribute, original, ours)
    if not new:
        return
    if left := sorted(_left_behind(name, new)):
        raise DropinError(
            f"{name}: cannot replace {SCHEDULES[name].maker}: {', '.join(left)} would go on reading the schedules "
            "and not end on ours"
        )
    renewed = [place for place in _places.get(name, []) if (id(place.module), place.attribute) not in new]
    _places[name] = [*renewed, *new.values()]
    for place in new.values():
        setattr(place.module, place.attribute, place.ours)
    LOG.warning(
        "drop-in %s: capgate's functions are in the place of %s; capgate.kernels.dropin.uninstall(%r) undoes it",
        name,
        ", ".join(sorted({f"{place.module.__name__}.{place.attribute}" for place in new.values()})),
        name,
    )


def replace_or_warn(name: str, targets: list[Target]) -> bool:
    """As :func:`replace`, for CAPGATE_DROPIN: a DropinError becomes a warning, and nothing of the drop-in stays replaced.

    An engine that imports its library has no use for an error of ours. False where it was refused.
    """
    try:
        replace(name, targets)
    except DropinError as error:
        LOG.warning("CAPGATE_DROPIN: nothing is replaced: %s", error)
        restore(name)
        return False
    return True


def restore(name: str) -> None:
    """Put back what stood in every place, and into the callers' modules that have imported ours since."""
    places = _places.pop(name, [])
    for place in places:
        if getattr(place.module, place.attribute, None) is place.ours:
            setattr(place.module, place.attribute, place.original)
        else:
            LOG.warning("%s.%s is not capgate's any more and stays as it is", place.module.__name__, place.attribute)
    for place in places:
        for holder, attribute in _holders(place.ours):
            setattr(holder, attribute, place.original)


def _left_behind(name: str, new: dict[tuple[int, str], Place]) -> Iterator[str]:
    """Which functions would read a schedule of ours and stay as they are, once ``new`` is in place."""
    schedule = SCHEDULES.get(name)
    originals = {place.attribute: place.original for place in new.values()}
    if schedule is None or (maker := originals.get(schedule.maker)) is None:
        return
    library = {home.partition(".")[0] for homes in DROPINS[name].values() for home in homes}
    replaced = {id(value) for place in new.values() for value in (place.original, place.ours)}
    readers = {id(value) for attribute, value in originals.items() if schedule.reader.search(attribute)}
    for module_name, module in list(sys.modules.items()):
        if not isinstance(module, ModuleType):
            continue
        package, held = module_name.partition(".")[0], list(vars(module).items())
        makes = any(value is maker for _, value in held)
        if package in library:
            left = [attribute for attribute, value in _readers(module, schedule) if id(value) not in replaced]
        elif package in CALLERS:  # its own function of a replaced one's name hands on to that what it is given
            found = _readers(module, schedule) if makes else ()
            left = [attribute for attribute, value in found if id(value) not in replaced and attribute not in DROPINS[name]]
        else:  # it keeps the originals that it holds: a reader without its maker would be given what ours makes
            left = [] if makes else [attribute for attribute, value in held if id(value) in readers]
        yield from (f"{module_name}.{attribute}" for attribute in left)


def _readers(module: ModuleType, schedule: Schedule) -> Iterator[tuple[str, Any]]:
    """The module's functions that read a schedule, by their names or their parameters'."""
    held = vars(module)
    for attribute in {*held, *dir(module)}:  # a module with __getattr__ and __dir__ may have more than it holds
        named = schedule.reader.search(attribute)
        value = getattr(module, attribute, None) if named else held.get(attribute)
        if callable(value) and (named or _takes(value, schedule.parameter)):
            yield attribute, value


def _takes(function: Any, parameter: re.Pattern[str]) -> bool:
    """Whether a function has such a parameter. Compiled ones say it in the first line of their documentation."""
    try:
        words = " ".join(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        words = (getattr(function, "__doc__", None) or "").partition("\n")[0]
    return parameter.search(words) is not None


def _holders(value: Any) -> Iterator[tuple[ModuleType, str]]:
    """The loaded callers' modules that have ``value`` as a global, and under which name."""
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] in CALLERS and isinstance(module, ModuleType):
            for attribute, held in list(vars(module).items()):
                if held is value:
                    yield module, attribute
