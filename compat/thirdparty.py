"""Calls of other people's code, which may end in any way and must not end what asked."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

T = TypeVar("T")

LONGEST = 500  # characters of an error's own words: a failed compile may write 200 KB


class Raised(NamedTuple):
    """What was raised instead of an answer, in words."""

    words: str


def ask(function: Callable[[], T]) -> T | Raised:
    """What ``function`` returns, or what it raised: SystemExit and an extension's panic too. Ctrl-C goes on."""
    try:
        return function()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # somebody else's: it is reported, and what else there is to say is said
        return Raised(said(error))


def said(error: BaseException) -> str:
    """An error's type and its own words on one line."""
    try:
        words = " ".join(str(error).split())
    except Exception:  # an error that cannot even say what it is
        words = ""
    name = type(error).__name__
    return f"{name}: {words[:LONGEST]}" if words else f"{name}, without a message"
