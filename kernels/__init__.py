"""Operations written once, with variants for what each Triton and GPU can do.

    from capgate.kernels import fp8_mqa_logits, fp8_paged_mqa_logits, select_keys

Each folder of an operation says in its ``__all__`` which functions it has; they are imported when they are first used, because
they need torch and this package does not.
"""

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors, which look into no folder
    from .candidate_blocks import *
    from .key_cache import *
    from .key_selection import *
    from .mqa_logits import *
    from .mx_logits import *
    from .mx_paged_logits import *
    from .mx_quantization import *
    from .paged_mqa_logits import *
    from .quantize import quantize_keys as quantize_keys
    from .quantize import quantize_queries as quantize_queries
    from .sparse_logits import *

_NO_OPERATIONS = ("common", "dropin", "tools")


@cache
def _homes() -> dict[str, str]:
    """The module of each function. Asked for late: every process of an engine imports this package, most for the drop-ins."""
    from pkgutil import iter_modules

    homes = {"quantize_keys": "quantize", "quantize_queries": "quantize"}
    for module in iter_modules(__path__):
        if module.ispkg and module.name not in _NO_OPERATIONS:
            homes |= dict.fromkeys(import_module(f"{__name__}.{module.name}").__all__, module.name)
    return homes


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted(_homes())
    if name not in _homes():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, getattr(import_module(f"{__name__}.{_homes()[name]}"), name))


def __dir__() -> list[str]:
    return sorted({*globals(), *_homes()})
