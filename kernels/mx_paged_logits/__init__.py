"""Paged MQA logits in MX formats: the last queries of every request against its keys in a paged cache of the same kind."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import mx_paged_mqa_logits, mx_paged_mqa_workers

__all__ = ["mx_paged_mqa_logits", "mx_paged_mqa_workers"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import api

    return getattr(api, name)
