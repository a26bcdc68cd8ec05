"""MQA logits of the DeepSeek-V3.2 / V4 sparse-attention indexer: every query scored against every key in its window."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import fp8_mqa_logits

__all__ = ["fp8_mqa_logits"]


def __getattr__(name: str) -> Any:
    # The function needs torch; the report asks for operation.py alone, on machines that have none.
    if name != "fp8_mqa_logits":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .api import fp8_mqa_logits

    return fp8_mqa_logits
