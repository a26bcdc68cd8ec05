"""What tests of the drop-ins ask of what stands in a library's place."""

import importlib
import sys
from typing import Any

import pytest

from capgate.kernels import dropin
from capgate.kernels.dropin.sites import slot_at


def functions(name: str) -> set[str]:
    """Every function of a drop-in."""
    return {function for family in dropin.DROPINS[name] for function in family.names}


def homes(name: str) -> dict[str, tuple[str, ...]]:
    """The modules that each function of a drop-in may be reached from."""
    found: dict[str, tuple[str, ...]] = {}
    for family in dropin.DROPINS[name]:
        modules = tuple(site.module for site in family.sites if not site.waits)
        found |= dict.fromkeys(family.names, modules)
    return found


def held(name: str) -> dict[tuple[str, str], Any]:
    """What now stands where a drop-in's functions do, by what holds it, a module or a namespace in it, and function."""
    found = {}
    for family in dropin.DROPINS[name]:
        for site in family.sites:
            for function in family.names if site.module in sys.modules and not site.waits else ():
                if slot := slot_at(sys.modules[site.module], site.path.format(function)):
                    found[f"{site.module}.{site.path}".removesuffix(".{}"), function] = slot.value
    return found


def ours(name: str, function: str) -> Any:
    """The drop-in's own function."""
    return getattr(importlib.import_module(f"capgate.kernels.dropin.{name}"), function)


def is_ours(value: Any) -> bool:
    """Whether a function of a drop-in, bound to an original, is what this is."""
    return value.__module__.startswith("capgate.kernels.dropin.") and value.__wrapped__.__module__ == value.__module__


def activate(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """As a plugin of an engine whose environment has this CAPGATE_DROPIN."""
    monkeypatch.setenv("CAPGATE_DROPIN", value)
    dropin.activate()
