"""Candidate blocks of keys, the first level of DeepSeek-V4.1's indexer: chosen by a row's logits, and logits masked by them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import apply_candidate_mask, select_candidate_blocks

__all__ = ["apply_candidate_mask", "select_candidate_blocks"]


def __getattr__(name: str) -> Any:
    # The functions need torch; the report asks for operation.py alone, on machines that have none.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import api

    return getattr(api, name)
