"""What a function takes, asked of any kind of function; and which of ours takes the same."""

import ast
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType
from typing import Any, NamedTuple, TypeAlias

Function: TypeAlias = Callable[..., Any]

_OPENING, _CLOSING = "([{", ")]}"


class Parameters(NamedTuple):
    """The parameters of a function by name, and the defaults that are known."""

    names: tuple[str, ...]
    defaults: dict[str, Any]


def parameters(function: Any) -> Parameters:
    """A function's, but for ``*args`` and ``**kwargs``. Compiled ones say them in the first line of their documentation."""
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # there is no signature, or what stands for it is none
        return _documented(getattr(function, "__doc__", None))
    named = [one for one in found if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    return Parameters(
        tuple(one.name for one in named), {one.name: one.default for one in named if one.default is not one.empty}
    )


def _documented(documentation: Any) -> Parameters:
    """Those of "name(a: Type, b: int = 1) -> Type", as pybind11 writes it."""
    names, defaults = [], {}
    for part in _parts(documentation) if isinstance(documentation, str) else ():
        words, _, value = part.partition("=")
        name = words.partition(":")[0].strip()
        if not name.isidentifier():
            continue
        names.append(name)
        try:
            defaults[name] = ast.literal_eval(value.strip())
        except (SyntaxError, ValueError):  # none, or one that is no literal
            continue
    return Parameters(tuple(names), defaults)


def _parts(documentation: str) -> Iterator[str]:
    """What is between the commas of the first pair of parentheses in the first line."""
    text, depth = "", 0
    for character in documentation.partition("\n")[0].partition("(")[2]:
        if depth == 0 and character in ",)":
            yield text
            if character == ")":
                return
            text = ""
            continue
        depth += (character in _OPENING) - (character in _CLOSING)
        text += character


def fitting(candidates: Sequence[Function], asked: Parameters) -> Function:
    """The candidate that has the most of the names that are asked for at their places; of several the first."""

    def agreeing(candidate: Function) -> int:
        return sum(ours == theirs for ours, theirs in zip(parameters(candidate).names, asked.names, strict=False))

    return max(candidates, key=agreeing)


def with_defaults(function: Function, defaults: dict[str, Any]) -> Function:
    """The function, or where it has other defaults of the same types for these names, a copy that has those."""
    changed = {
        one.name: defaults[one.name]
        for one in inspect.signature(function).parameters.values()
        if one.name in defaults and type(one.default) is type(defaults[one.name]) and one.default != defaults[one.name]
    }
    return _copied(function, tuple(changed.items())) if changed and isinstance(function, FunctionType) else function


@functools.cache  # one copy, so that the same function stands wherever the same original did
def _copied(function: FunctionType, changed: tuple[tuple[str, Any], ...]) -> Function:
    ordered = [one for one in inspect.signature(function).parameters.values() if one.default is not one.empty]
    values = {one.name: one.default for one in ordered} | dict(changed)
    copy = FunctionType(function.__code__, function.__globals__, function.__name__, closure=function.__closure__)
    copy.__defaults__ = tuple(values[one.name] for one in ordered if one.kind is not one.KEYWORD_ONLY) or None
    copy.__kwdefaults__ = {one.name: values[one.name] for one in ordered if one.kind is one.KEYWORD_ONLY} or None
    functools.update_wrapper(copy, function)
    vars(copy).pop("__wrapped__")  # its signature is its own
    return copy
