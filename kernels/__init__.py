"""Operations written once, with branches for what each Triton and GPU can do.

    from capgate.kernels import fp8_mqa_logits

An operation's module is imported when it is first used, because it needs torch and this package does not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .mqa_logits import fp8_mqa_logits

__all__ = ["fp8_mqa_logits"]

_HOMES = {"fp8_mqa_logits": ".mqa_logits"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
