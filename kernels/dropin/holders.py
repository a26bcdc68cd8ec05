"""Where loaded modules of the engines hold a function besides the place that they have it from."""

import functools
import gc
import sys
from collections.abc import Collection, Iterator
from types import ModuleType
from typing import Any

# Packages whose modules may hold a function that they imported by name before it was replaced. No others are searched: a
# benchmark that keeps the original to compare with shall keep it.
CALLERS = ("aiter", "atom", "deep_gemm", "flashinfer", "sgl_deep_gemm", "sgl_kernel", "sglang", "vllm")

_CACHE = type(functools.lru_cache(abs))


def package(module_name: str) -> str:
    """The first part of a module's name."""
    return module_name.partition(".")[0]


def modules() -> Iterator[tuple[str, ModuleType]]:
    """Every loaded module, by the name that it is loaded under."""
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType):
            yield name, module


def holders(value: Any) -> Iterator[tuple[ModuleType, str]]:
    """The callers' modules that have ``value`` as a global, and under which name."""
    for module_name, module in modules():
        if package(module_name) in CALLERS:
            for attribute, held in list(vars(module).items()):
                if held is value:
                    yield module, attribute


def named_holders(values: Collection[Any]) -> Iterator[tuple[str, Any]]:
    """Which globals of the callers' modules have one of these values, by the names that a person writes, and which value."""
    wanted = {id(value) for value in values}
    for module_name, module in modules():
        if wanted and package(module_name) in CALLERS:
            for attribute, held in list(vars(module).items()):
                if id(held) in wanted:
                    yield f"{module.__name__}.{attribute}", held


def forget_results(values: Collection[Any]) -> None:
    """Clear the ``functools`` caches among the callers' globals that hold one of these values as a result."""
    wanted = {id(value) for value in values}
    for module_name, module in modules():
        if package(module_name) in CALLERS:
            for held in list(vars(module).values()):
                if type(held) is _CACHE and any(id(result) in wanted for result in _results(held)):
                    held.cache_clear()


def _results(cached: Any) -> Iterator[Any]:
    """What a cache holds; and its keys, and what it is itself made of, which no caller looks for.

    The garbage collector knows the results of a bounded cache one by one, and those of an unbounded one as a dict's values.
    """
    for part in gc.get_referents(cached):
        if part is cached.__wrapped__ or part is cached.__dict__:
            continue
        yield part
        if type(part) is dict:
            yield from part.values()
