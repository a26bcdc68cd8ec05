"""Operations written once, with variants for what each Triton and GPU can do.

    from capgate.kernels import fp8_mqa_logits, fp8_paged_mqa_logits, select_keys

An operation's module is imported when it is first used, because it needs torch and this package does not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .key_cache import gather_keys, quantize_keys_to_cache
    from .key_selection import select_from_logits, select_keys, select_paged_keys
    from .mqa_logits import fp8_mqa_logits
    from .paged_mqa_logits import fp8_paged_mqa_logits, paged_mqa_schedule, paged_mqa_workers
    from .quantize import quantize_keys, quantize_queries

__all__ = [
    "fp8_mqa_logits",
    "fp8_paged_mqa_logits",
    "gather_keys",
    "paged_mqa_schedule",
    "paged_mqa_workers",
    "quantize_keys",
    "quantize_keys_to_cache",
    "quantize_queries",
    "select_from_logits",
    "select_keys",
    "select_paged_keys",
]

_FUNCTIONS = {
    "fp8_mqa_logits": ".mqa_logits",
    "fp8_paged_mqa_logits": ".paged_mqa_logits",
    "select_keys": ".key_selection",
    "gather_keys": ".key_cache",
    "paged_mqa_schedule": ".paged_mqa_logits",
    "paged_mqa_workers": ".paged_mqa_logits",
    "quantize_keys": ".quantize",
    "quantize_keys_to_cache": ".key_cache",
    "quantize_queries": ".quantize",
    "select_from_logits": ".key_selection",
    "select_paged_keys": ".key_selection",
}


def __getattr__(name: str) -> Any:
    if name not in _FUNCTIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_FUNCTIONS[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
