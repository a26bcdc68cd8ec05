"""The installed builds of Triton, triton_kernels and torch, found without importing them where that is possible.

A build is described by the text it reports and by the release inside that text. Vendor builds report texts that are not
valid versions (``3.4.0+gitX+rocm7.1.0.gitX``), so every text gives an answer here and none raises: at worst the release
is empty. Only releases are compared, so that ``3.6.0.dev20251120`` and ``3.6.0+git1a2b3c`` pass the same gates as 3.6.0.
"""

import re
import sys
from functools import cache
from typing import NamedTuple

# The same import package is distributed under several names: by PyTorch's own index, by vendors and on Windows.
DISTRIBUTIONS = {
    "triton": ("triton", "triton-rocm", "pytorch-triton", "pytorch-triton-rocm", "triton-windows", "amd-triton"),
    "triton_kernels": ("triton-kernels",),
    "torch": ("torch",),
}


class Build(NamedTuple):
    """One installed package.

    text : what it calls its version; None when it is not installed or does not import
    release : the release numbers in that text, () when it has none
    source : "loaded module", "metadata", "import", "absent", or "broken" for a package that does not import
    error : what a broken package raised
    """

    name: str
    text: str | None
    release: tuple[int, ...] = ()
    source: str = "absent"
    error: str = ""

    @property
    def found(self) -> str:
        """What to say after "found": ``3.5.1``, or ``no triton``."""
        if self.error:
            return f"a {self.name} that does not import: {self.error}"
        return self.text or f"no {self.name}"

    def at_least(self, *release: int) -> bool:
        """Whether the release is ``release`` or newer; missing parts count as zero, an unreadable version is never."""
        width = max(len(release), len(self.release))
        return bool(self.release) and _padded(self.release, width) >= _padded(release, width)


def _padded(release: tuple[int, ...], width: int) -> tuple[int, ...]:
    return release + (0,) * (width - len(release))


@cache
def parse_release(text: str) -> tuple[int, ...]:
    """The release numbers in a version text, ``()`` when there are none.

    >>> parse_release("3.4.0+gitX+rocm7.1.0.gitX"), parse_release("3.6.0.dev1"), parse_release("nonsense")
    ((3, 4, 0), (3, 6, 0), ())
    """
    from packaging.version import InvalidVersion, Version  # 8 ms: not worth paying at import

    public = text.strip().partition("+")[0]
    try:
        return Version(public).release
    except InvalidVersion:
        leading = re.match(r"v?(\d{1,9}(?:\.\d{1,9})*)", public)
        return tuple(int(part) for part in leading[1].split(".")) if leading else ()
    except ValueError:  # more digits than Python turns into a number
        return ()


def find(name: str) -> Build:
    """The build of import package ``name`` ("triton", "triton_kernels" or "torch") that an import would give.

    A module that is loaded already is asked first, because it is what runs; then the distributions' metadata; and only for
    a package without metadata (a source tree on the path) its ``__version__``, which imports it.
    """
    loaded = getattr(sys.modules.get(name), "__version__", None)
    if loaded is not None:
        return _build(name, str(loaded), "loaded module")
    if not importable(name):
        return Build(name, None)
    from importlib import import_module, metadata

    for distribution in DISTRIBUTIONS[name]:
        try:
            text = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
        if text:
            return _build(name, text, "metadata")
    try:
        module = import_module(name)
    except Exception as error:  # a broken build raises anything; it is reported, and no capability holds on it
        return Build(name, None, (), "broken", f"{type(error).__name__}: {error}")
    return _build(name, str(getattr(module, "__version__", "unknown")), "import")


def importable(name: str) -> bool:
    """Whether ``name`` is a package that an import would load; nothing is imported. A folder without code is none."""
    from importlib.util import find_spec

    if name in sys.modules:
        return sys.modules[name] is not None
    spec = find_spec(name)
    return spec is not None and spec.origin is not None


def _build(name: str, text: str, source: str) -> Build:
    return Build(name, text, parse_release(text), source)
