"""MQA logits from a paged key cache: decode in the sparse-attention indexer of DeepSeek-V3.2 / V4."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import fp8_paged_mqa_logits, paged_mqa_schedule, paged_mqa_workers

__all__ = ["fp8_paged_mqa_logits", "paged_mqa_schedule", "paged_mqa_workers"]


def __getattr__(name: str) -> Any:
    # The functions need torch; the report asks for operation.py alone, on machines that have none.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import api

    return getattr(api, name)
