"""The operations by name: those defined in this process, and those that installed distributions name as entry points."""

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from .thirdparty import Raised, ask

if TYPE_CHECKING:
    from ._operation import Operation

LOG = logging.getLogger("capgate")

ENTRY_POINTS = "capgate.operations"  # where a distribution names its operations, so that a report finds them unimported


class Registered:
    """An operation, as far as it matters here: it has a name, and a module that defines it."""

    name: str
    module: str | None


REGISTERED: "dict[str, Operation[Any]]" = {}


def register(operation: "Operation[Any]") -> None:
    """Add an operation that is being defined. Raises ValueError when another module has defined one of its name."""
    known = REGISTERED.get(operation.name)
    if known is not None and known.module != operation.module:
        raise ValueError(f"name: operation {operation.name!r} is defined by {known.module} already")
    REGISTERED[operation.name] = operation


def operations() -> "dict[str, Operation[Any]]":
    """Every operation by name: those defined in this process, and those that installed distributions name as entry points.

    An entry point of group ``capgate.operations`` is ``name = "package.module:operation"``; one that does not import is
    left out with a warning.
    """
    found, failed = find_operations()
    for words in failed.values():
        LOG.warning("%s", words)
    return found


def find_operations() -> "tuple[dict[str, Operation[Any]], dict[str, str]]":
    """As :func:`operations`, and for each entry point that gives no operation of its name why not, in words."""
    failed: dict[str, str] = {}
    for entry in entry_points(ENTRY_POINTS, failed):
        if entry.name in REGISTERED:
            continue
        operation = ask(entry.load)
        if isinstance(operation, Raised):
            failed[entry.name] = f"operation {entry.name} ({entry.value}) does not load: {operation.words}"
        elif isinstance(operation, Registered) and operation.name == entry.name:
            REGISTERED[entry.name] = cast("Operation[Any]", operation)
        else:
            failed[entry.name] = f"operation {entry.name} ({entry.value}) is not an operation of that name"
    return dict(REGISTERED), failed


def entry_points(group: str, failed: dict[str, str]) -> list[Any]:
    """Those of a group; a distribution whose entry points cannot be read goes into ``failed`` and hides no other."""
    from importlib import metadata

    every = ask(lambda: list(metadata.entry_points(group=group)))
    if not isinstance(every, Raised):
        return every
    found = []
    for distribution in metadata.distributions():
        own = ask(partial(_entry_points_of, distribution, group))
        if isinstance(own, Raised):
            named = ask(partial(_name_of, distribution))
            name = "without a name" if isinstance(named, Raised) else named
            failed[name] = f"distribution {name}: its entry points cannot be read: {own.words}"
        else:
            found += own
    return found


def _entry_points_of(distribution: Any, group: str) -> list[Any]:
    return list(distribution.entry_points.select(group=group))


def _name_of(distribution: Any) -> str:
    return str(distribution.metadata["Name"])
