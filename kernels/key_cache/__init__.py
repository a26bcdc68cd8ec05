"""The paged key cache of the sparse-attention indexer: its layout, a writer that quantises, and a gather for prefill."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import gather_keys, quantize_keys_to_cache

__all__ = ["gather_keys", "quantize_keys_to_cache"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import api

    return getattr(api, name)
