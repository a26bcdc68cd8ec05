"""MQA logits of queries and keys in MX formats, of DeepSeek-V4 and V4.1 in FP4: every query against every key in its window."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import mx_mqa_logits

__all__ = ["mx_mqa_logits"]


def __getattr__(name: str) -> Any:
    # The function needs torch; the report asks for operation.py alone, on machines that have none.
    if name != "mx_mqa_logits":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .api import mx_mqa_logits

    return mx_mqa_logits
