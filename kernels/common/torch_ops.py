"""The torch operators of this package, which hide the choice of a variant from torch.compile."""

from collections.abc import Callable, Collection
from typing import Any

import torch

from .operands import I, Operands

# One library, for its operators live as long as it does. Library.impl and not custom_op: the latter adds 5 us to a call.
_LIBRARY = torch.library.Library("capgate", "FRAGMENT")


def register(
    name: str,
    operands: Operands[I],
    options: str,
    returns: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any] | None = None,
    *,
    left_out: Collection[str] = (),
) -> None:
    """Define operator ``capgate::name``.

    options, returns : what it takes behind the operands and what it returns, in the words of a schema
    implementation : gets the operands as their NamedTuple, and the options
    fake : as ``implementation``, and makes its results' shapes from fake tensors; None for an operator that only writes
    left_out : the last operands, if the operator has no use for them: they are None
    """
    count = len(operands.rows) - len(left_out)
    inputs = operands.inputs

    def run(*arguments: Any) -> Any:
        return implementation(inputs(*arguments[:count]), *arguments[count:])

    def pretend(*arguments: Any) -> Any:
        return fake(inputs(*arguments[:count]), *arguments[count:]) if fake else None

    _LIBRARY.define(f"{name}({operands.schema(left_out)}, {options}) -> {returns}")
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"capgate::{name}", pretend, lib=_LIBRARY)
