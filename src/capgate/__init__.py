"""Write a GPU kernel once; run it on the Triton you have.

    import capgate

    capgate.compat.capabilities().gluon_cdna4  # what this Triton can do on this GPU, and why not
    capgate.kernels.fp8_mqa_logits             # operations, with a variant for each case

Both packages are imported when they are first asked for.
"""

from typing import TYPE_CHECKING, Any

__all__ = ["compat", "kernels"]

if TYPE_CHECKING:  # editors and type checkers see the packages, and no name that is not there
    from . import compat as compat
    from . import kernels as kernels

    __version__: str
else:

    def __getattr__(name: str) -> Any:
        if name in __all__:
            from importlib import import_module

            return import_module(f"{__name__}.{name}")
        if name == "__version__":
            from .compat._installation import version

            return globals().setdefault(name, version())
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({"__version__", *__all__, *(name for name in globals() if name.startswith("__"))})
