"""The sites of families in this process: which modules are there, and what stands in them."""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

from .families import DROPINS, Family, Site
from .holders import package


class Key(NamedTuple):
    """A family at one of its sites."""

    family: Family
    module: str


class Target(NamedTuple):
    """A family at one of its sites, whose module is loaded."""

    family: Family
    site: Site
    module: ModuleType

    @property
    def key(self) -> Key:
        return Key(self.family, self.site.module)


class Slot(NamedTuple):
    """Where a function stands."""

    holder: Any
    attribute: str
    value: Any


def is_there(name: str) -> bool:
    """Whether the drop-in's library, or one of several, could be imported; it is not."""
    packages = {package(site.module) for family in DROPINS[name] for site in family.sites if not site.waits}
    return any(one in sys.modules or _findable(one) for one in packages)


def _findable(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):  # of somebody's finder, or of a module that is half there
        return False


def is_whole(module: str) -> bool:
    """Whether the packages round a loaded module are loaded as well: an import that fails in a package leaves modules of it."""
    parts = module.split(".")
    return all(".".join(parts[:count]) in sys.modules for count in range(1, len(parts) + 1))


def loaded(name: str) -> list[Target]:
    """The drop-in's targets whose modules are loaded, and not what a failed import has left of them."""
    found = [(family, site, sys.modules.get(site.module)) for family in DROPINS[name] for site in family.sites]
    return [
        Target(family, site, module)
        for family, site, module in found
        if isinstance(module, ModuleType) and is_whole(site.module)
    ]


def imported(name: str) -> dict[Key, Exception]:
    """Import the first package of each family's that is there; what became of the modules that failed, by family and module."""
    tried: dict[str, Exception | None] = {}
    failed: dict[Key, Exception] = {}
    for family in DROPINS[name]:
        sites = [site.module for site in family.sites if not site.waits]
        for one in dict.fromkeys(map(package, sites)):
            own = [module for module in sites if package(module) == one]
            for module in own:
                for imported_now in (one, module):  # once a package has failed, a second attempt finds what the first has left
                    if imported_now not in tried:
                        tried[imported_now] = _import(imported_now)
                if error := tried[one] or tried[module]:
                    failed[Key(family, module)] = error
            if any(module in sys.modules for module in own):
                break
    return failed


def _import(module: str) -> Exception | None:
    """Import a module; what it raised, None also where there is none of its name."""
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        absent = error.name is not None and (module == error.name or module.startswith(f"{error.name}."))
        return None if absent else error
    except Exception as error:  # somebody else's module fails in any way; what it says goes along
        return error
    return None


def slots_of(target: Target) -> dict[str, Slot]:
    """The family's functions that the site has."""
    found = {name: slot_at(target.module, target.site.path.format(name)) for name in target.family.names}
    return {name: slot for name, slot in found.items() if slot is not None}


def slot_at(module: ModuleType, path: str) -> Slot | None:
    """What a path leads to, if that can be called."""
    *outer, attribute = path.split(".")
    holder: Any = module
    for part in outer:
        holder = getattr(holder, part, None)
    value = getattr(holder, attribute, None)
    return Slot(holder, attribute, value) if callable(value) else None


def is_unfilled(target: Target) -> bool:
    """Whether the site has places for the family's functions that its own function has still to fill."""
    filler = target.site.filled_by
    named = any(hasattr(target.module, target.site.path.format(name)) for name in target.family.names)
    return filler is not None and named and callable(getattr(target.module, filler, None))


def incomplete(target: Target, slots: dict[str, Slot]) -> str | None:
    """Why a site that has these of the family's functions has too few of them."""
    family, module = target.family, target.site.module
    if missing := [name for name in family.functions if name not in slots]:
        return f"{module} offers no {' and no '.join(missing)}"
    if family.schedule is not None and slots.keys() == {family.schedule.maker}:
        return f"{module} offers no function that reads its schedules"
    return None
