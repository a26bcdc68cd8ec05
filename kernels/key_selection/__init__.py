"""Selection of the top keys of every query: the step of a sparse-attention indexer that callers of the logits are after."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import select_from_logits, select_keys, select_paged_keys

__all__ = ["select_from_logits", "select_keys", "select_paged_keys"]


def __getattr__(name: str) -> Any:
    # The functions need torch; the report asks for operation.py alone, on machines that have none.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import api

    return getattr(api, name)
