"""MQA logits of listed blocks of keys alone: the second level of DeepSeek-V4.1's indexer."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import paged_sparse_mqa_logits, sparse_mqa_logits
    from .sharing import sparse_mqa_schedule, sparse_mqa_workers

__all__ = ["paged_sparse_mqa_logits", "sparse_mqa_logits", "sparse_mqa_schedule", "sparse_mqa_workers"]


def __getattr__(name: str) -> Any:
    # The functions need torch; the report asks for operation.py alone, on machines that have none.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import api, sharing

    return getattr(api if name.endswith("logits") else sharing, name)
