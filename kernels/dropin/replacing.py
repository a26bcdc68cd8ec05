"""Which functions of other libraries ours can stand in for, and the exchange of one for the other in loaded modules."""

import logging
import sys
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

from capgate.compat.capabilities import nearest

LOG = logging.getLogger("capgate")

# Drop-in (a module of this package) -> its functions -> the modules that callers import each from. A release has one of these
# modules or several, under an old and a new name.
DROPINS: dict[str, dict[str, tuple[str, ...]]] = {
    "aiter": {
        "fp8_mqa_logits": ("aiter.ops.triton.attention.fp8_mqa_logits", "aiter.ops.triton.fp8_mqa_logits"),
        "deepgemm_fp8_paged_mqa_logits": ("aiter.ops.triton.attention.pa_mqa_logits", "aiter.ops.triton.pa_mqa_logits"),
    },
    # The schedule goes with the function that reads it. get_num_sms and set_num_sms stay theirs: their matmuls use them too.
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

# Packages whose modules may hold a function that they imported by name before it was replaced. No others are searched: a
# benchmark that keeps the original to compare with shall keep it.
CALLERS = ("aiter", "atom", "deep_gemm", "sglang", "vllm")

Target = tuple[str, ModuleType]  # a function's name, and a loaded module that offers it


class DropinError(RuntimeError):
    """A library does not offer what a drop-in would replace. No ImportError: engines take that for a library they lack."""


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

    DropinError, and nothing is replaced, where a module does not offer its function.
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


def _holders(value: Any) -> Iterator[tuple[ModuleType, str]]:
    """The loaded callers' modules that have ``value`` as a global, and under which name."""
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] in CALLERS and isinstance(module, ModuleType):
            for attribute, held in list(vars(module).items()):
                if held is value:
                    yield module, attribute
