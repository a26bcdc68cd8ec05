"""Keys and queries in MX formats: quantisers that round as a named producer does, and the way back."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import dequantize_mx, quantize_mx_keys, quantize_mx_queries

__all__ = ["dequantize_mx", "quantize_mx_keys", "quantize_mx_queries"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import api

    return getattr(api, name)
