"""Calls of other people's code, which may end in any way and must not end what asked."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from ._errors import summary

T = TypeVar("T")


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
        return Raised(summary(error))
