"""The torch operators of this package, which hide the choice of a variant from torch.compile."""

from collections.abc import Callable
from typing import Any

import torch

# One library, for its operators live as long as it does. Library.impl and not custom_op: the latter adds 5 us to a call.
_LIBRARY = torch.library.Library("capgate", "FRAGMENT")


def register(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any] | None = None) -> None:
    """Define operator ``capgate::name`` by its schema.

    fake : makes its results' shapes from fake tensors; None for an operator that only writes into its operands
    """
    name = _LIBRARY.define(schema)
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"capgate::{name}", fake or (lambda *operands: None), lib=_LIBRARY)
