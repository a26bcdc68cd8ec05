"""The installed builds of Triton, triton_kernels and torch, found without importing them where that is possible.

A build is described by the text it reports and by the release inside that text. Vendor builds report texts that are not
valid versions (``3.4.0+gitX+rocm7.1.0.gitX``), so every text gives an answer here and none raises: at worst the release
is empty. Only releases are compared, so that ``3.6.0.dev20251120`` and ``3.6.0+git1a2b3c`` pass the same gates as 3.6.0.
"""

import os
import sys
from types import ModuleType
from typing import Any, NamedTuple

from .releases import parse_release

PACKAGES = ("triton", "triton_kernels", "torch")


class Build(NamedTuple):
    """One installed package.

    text : its version, in the words of the distribution that owns its files; a second one that claims them is said behind it;
        None when it is not installed, does not import, or something else stands in its place
    release : the release numbers in that text, () when it has none
    source : where the text is from: "metadata", "loaded module", "source" (its files, not imported) or "import"; or "absent",
        "broken" for a package that does not import, "another" for what stands in its place
    error : what a broken package raised, or what stands in its place and where that lies
    """

    name: str
    text: str | None
    release: tuple[int, ...] = ()
    source: str = "absent"
    error: str = ""

    @property
    def found(self) -> str:
        """What to say after "found": ``3.5.1``, or ``no triton``."""
        if self.source == "broken":
            return f"a {self.name} that does not import: {self.error}"
        if self.error:
            return f"no {self.name}: {self.error}"
        return self.text or f"no {self.name}"

    def at_least(self, *release: int) -> bool:
        """Whether the release is ``release`` or newer; missing parts count as zero, an unreadable version is never."""
        width = max(len(release), len(self.release))
        return bool(self.release) and _padded(self.release, width) >= _padded(release, width)


def _padded(release: tuple[int, ...], width: int) -> tuple[int, ...]:
    return release + (0,) * (width - len(release))


def find(name: str) -> Build:
    """The build of import package ``name``, one of PACKAGES, that an import gives or has given.

    The distributions that own the imported files are asked, and the version that those files themselves name decides between
    them and against one that is left from another time; the words are the same before the import and after it. Only a package
    of which neither says anything is imported.
    """
    if name in sys.modules:
        module = sys.modules[name]
        return Build(name, None) if module is None else _loaded(name, module)
    from importlib.util import find_spec

    try:
        spec = find_spec(name)
    except Exception as error:  # of a finder that somebody has put on sys.meta_path
        return Build(name, None, (), "broken", f"{type(error).__name__}: {error}")
    if spec is None:
        return Build(name, None)
    if spec.origin is None:
        return _another(name, f"{_places(spec.submodule_search_locations)} is a folder of that name without code")
    if spec.submodule_search_locations is None:
        return _another(name, f"{spec.origin} is a single file of that name")
    return _of_files(name, spec.origin, None) or _imported(name)


def _loaded(name: str, module: ModuleType) -> Build:
    """The build of a module in ``sys.modules``, which is what runs, whatever lies on the path."""
    file, own = _attribute(module, "__file__"), _attribute(module, "__version__")
    if file is None:
        if folders := _attribute(module, "__path__"):
            return _another(name, f"{_places(folders)} is a folder of that name without code")
        return _another(name, _placeholder(module) + (f", which calls itself {_text(own)}" if own is not None else ""))
    if _attribute(module, "__path__") is None:
        return _another(name, f"{file} is a single file of that name")
    return _of_files(name, str(file), None if own is None else _text(own)) or _build(name, "unknown", "import")


def _of_files(name: str, origin: str, own: str | None) -> Build | None:
    """The build whose ``__init__`` is ``origin``; None where neither its files nor a distribution name a version.

    own : the version that the loaded module names
    """
    from . import _distributions

    source = "loaded module" if own is not None else "source"
    own = own or _distributions.version_in_source(origin)
    claims = _distributions.claims(name, origin)
    owner = _distributions.owner(claims, own)
    if owner is None and own is None:
        return None
    text = own if owner is None else owner.version
    rivals = [claim for claim in claims if claim is not owner and claim.lists_files]
    if rivals:
        others = " and ".join(f"{claim.distribution} {claim.version}" for claim in rivals)
        text = (
            f"{text} (of {owner.distribution}; {others} lists the same files)"
            if owner
            else f"{text} ({others} lists its files)"
        )
    return _build(name, str(text), source if owner is None else "metadata")


def _imported(name: str) -> Build:
    from importlib import import_module

    try:
        module = import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, a Rust panic: a broken build raises anything
        return Build(name, None, (), "broken", f"{type(error).__name__}: {error}")
    own = _attribute(module, "__version__")
    return _build(name, "unknown" if own is None else _text(own), "import")


_failures: dict[tuple[str | None, ...], str] = {}

# In a process of its own: importing torch takes seconds, loads drivers' libraries, and a broken build may end the process. The
# last line tells a success from an import that ends the process without an error.
_IMPORT = """
import sys
name, *sys.path[:] = sys.argv[1:]
try:
    __import__(name)
except BaseException as error:
    sys.exit("\\n" + " ".join(f"{type(error).__name__}: {error}".split()))
print("\\nimported")
"""
_IMPORT_SECONDS = 300  # torch from a cold network file system takes minutes


def import_failure(name: str) -> str:
    """What importing the package ``name`` raises, ``""`` where it imports; asked in another process, once per build.

    Raises OSError or SubprocessError where that cannot be asked now.
    """
    import signal
    import subprocess

    if name in sys.modules:
        return ""
    key = (name, *sys.path, *(find(package).text for package in PACKAGES))
    if key not in _failures:
        command = [sys.executable, "-c", _IMPORT, name, *sys.path]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_IMPORT_SECONDS)
        if done.returncode == -signal.SIGKILL:  # the kernel's, for want of memory, as a rule: it may import next time
            done.check_returncode()
        said = done.stderr.strip().splitlines()
        died = f"the import ended its process with status {done.returncode}"
        imported = done.returncode == 0 and done.stdout.endswith("\nimported\n")
        _failures[key] = "" if imported else said[-1] if done.returncode == 1 and said else died
    return _failures[key]


def _build(name: str, text: str, source: str) -> Build:
    return Build(name, text, parse_release(text), source)


def _another(name: str, words: str) -> Build:
    return Build(name, None, (), "another", words)


def _placeholder(module: object) -> str:
    kind = type(module)
    if kind is ModuleType:
        return "a module without a file, made by hand, is in sys.modules"
    place = _attribute(sys.modules.get(kind.__module__), "__file__")
    return f"a placeholder is in sys.modules, a {kind.__module__}.{kind.__qualname__}" + (f" of {place}" if place else "")


def _attribute(module: object, name: str) -> Any:
    """A module's attribute, None where it has none: a lazy module's ``__getattr__`` may raise anything."""
    try:
        return getattr(module, name, None)
    except Exception:
        return None


def _text(version: object) -> str:
    try:
        return str(version)
    except Exception:  # a mock's
        return "unknown"


def _places(folders: Any) -> str:
    return os.pathsep.join(map(str, folders or ()))
