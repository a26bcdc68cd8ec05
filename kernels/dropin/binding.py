"""What stands in a library's place: ours, and where it does not serve a call the original."""

import functools
import logging
from typing import Any, NamedTuple

from .families import NotServed
from .parameters import Function, parameters

LOG = logging.getLogger("capgate")


class Bound(NamedTuple):
    """A function of ours that is bound to the one in whose place it stands."""

    function: Function
    ours: Function
    original: Any


_REQUIRED = object()  # in the place of a default
_known: dict[tuple[int, int], Bound] = {}  # by ours and the original: one function, however many places it stands at
_functions: dict[int, Bound] = {}  # by the bound function
_said: set[tuple[str, str]] = set()


def bind(ours: Function, original: Any) -> Bound:
    """Ours, which calls ``original`` with the same arguments where it raises NotServed, and says so once for each reason.

    So it does where a keyword that only the original has is given, and not as it is by default.
    """
    key = id(ours), id(original)
    if key not in _known:
        theirs, mine = parameters(original), parameters(ours).names
        beyond = {name: theirs.defaults.get(name, _REQUIRED) for name in theirs.names if name not in mine}

        @functools.wraps(ours)
        def function(*args: Any, **kwargs: Any) -> Any:
            try:
                return ours(*args, **(_without(beyond, kwargs) if beyond else kwargs))
            except NotServed as error:
                _say(ours.__name__, str(error))
            return original(*args, **kwargs)

        _known[key] = _functions[id(function)] = Bound(function, ours, original)
    return _known[key]


def _without(beyond: dict[str, Any], keywords: dict[str, Any]) -> dict[str, Any]:
    """The keywords but for those of the original alone; NotServed where one of them says more than nothing."""
    for name, default in beyond.items():
        if keywords.get(name, default) is not default:
            raise NotServed(f"argument {name}")
    return {name: value for name, value in keywords.items() if name not in beyond}


def bound(value: Any) -> Bound | None:
    """What :func:`bind` returned, for its function; None for any other value."""
    found = _functions.get(id(value))
    return found if found is not None and found.function is value else None


def original_of(value: Any) -> Any:
    """What ours that stands in a library's place is bound to; anything else is itself."""
    known = bound(value)
    return value if known is None else known.original


def _say(name: str, reason: str) -> None:
    if (name, reason) not in _said:
        _said.add((name, reason))
        LOG.warning("drop-in %s: the library's own function is called: %s", name, reason)
