"""MQA logits of listed blocks of keys alone: the second level of DeepSeek-V4.1's indexer."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import paged_sparse_mqa_logits, sparse_mqa_logits
    from .api_mx import mx_paged_sparse_mqa_logits, mx_sparse_mqa_logits
    from .sharing import mx_sparse_mqa_workers, sparse_mqa_schedule, sparse_mqa_workers

__all__ = [
    "mx_paged_sparse_mqa_logits",
    "mx_sparse_mqa_logits",
    "mx_sparse_mqa_workers",
    "paged_sparse_mqa_logits",
    "sparse_mqa_logits",
    "sparse_mqa_schedule",
    "sparse_mqa_workers",
]


def __getattr__(name: str) -> Any:
    # The functions need torch; the report asks for operation.py alone, on machines that have none.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "sharing" if not name.endswith("logits") else "api_mx" if name.startswith("mx_") else "api"
    return getattr(import_module(f".{home}", __name__), name)
