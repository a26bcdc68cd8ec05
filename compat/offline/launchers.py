"""What Triton has a C compiler build before it launches anything: its driver's module, and in releases up to 3.6 a launcher for
each signature of a kernel. They go to Triton's cache as kernels do.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from .._errors import summary
from ..targets import Target

CLASSES = {"cuda": ("nvidia", "CudaUtils", "CudaLauncher"), "hip": ("amd", "HIPUtils", "HIPLauncher")}


class Launchers:
    """Builds them for a target, whose runtime's library has to be there: the driver's libcuda, or ROCm's libamdhip64.

    built : how many were built, and were not in the cache before
    error : why one could not be built, in words; then no further one is tried
    """

    def __init__(self, target: Target) -> None:
        self.built = 0
        self.error: str | None = None
        self._backend, self._utils, self._launcher = CLASSES[target.backend]
        self._begun = False

    def build(self, compiled: Any) -> None:
        """Build what the first launch of a compiled kernel would."""
        if self.error is None and not self._begun:
            self._begun = True
            self._try(lambda driver: getattr(driver, self._utils)())
        if self.error is None:
            self._try(lambda driver: self._of(driver, compiled))

    def _of(self, driver: Any, compiled: Any) -> None:
        if hasattr(driver, "make_launcher"):  # in later releases one launcher serves every signature
            getattr(driver, self._launcher)(compiled.src, compiled.metadata)

    def _try(self, make: Callable[[Any], Any]) -> None:
        driver, before = import_module(f"triton.backends.{self._backend}.driver"), _folders()
        try:
            make(driver)
        except ImportError:  # of what was built against a stub of the library: it is in the cache, and does not load here
            pass
        except Exception as error:  # a missing library is an AssertionError, a missing compiler a RuntimeError, ...
            self.error = summary(error)
        self.built += _folders() - before


def _folders() -> int:
    from triton import knobs

    cache = Path(knobs.cache.dir)
    return sum(1 for _ in cache.iterdir()) if cache.is_dir() else 0
