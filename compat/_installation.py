"""This package as it is installed, and the drivers below it: what a report says first."""

import os
import platform
import sys
from functools import partial
from importlib import metadata
from pathlib import Path

from .thirdparty import Raised, ask

AMDGPU = "/sys/module/amdgpu"  # the kernel's module; its file "version" is there where AMD's own package built it


def version() -> str:
    """capgate's version, in the words of its distribution."""
    found = ask(partial(metadata.version, "capgate"))
    return "unknown" if isinstance(found, Raised) else found


def location() -> str:
    """The folder that capgate is loaded from."""
    return str(Path(__file__).parents[1])


def python() -> str:
    """The version of Python."""
    return platform.python_version()


def shadows() -> list[str]:
    """A note for each other capgate on Python's path or in the current folder, where ``python`` looks first."""
    loaded = os.path.realpath(location())
    # A package with a module of its own on the path: what has none is passed over. Otherwise Python takes any folder first.
    whole = os.path.exists(os.path.join(loaded, "__init__.py")) and os.path.dirname(loaded) in map(os.path.realpath, sys.path)
    notes = []
    for place in dict.fromkeys(os.path.realpath(os.path.join(entry, "capgate")) for entry in [os.curdir, *sys.path]):
        here = f"this one, which is loaded from {loaded}"
        if place == loaded:
            continue
        if modules := [name for name in (os.path.join(place, "__init__.py"), f"{place}.py") if os.path.isfile(name)]:
            notes.append(f"another module called capgate lies at {modules[0]}: where Python comes to it first, it hides {here}")
        elif os.path.isdir(place):
            harm = "be what is meant, but Python takes" if whole else "hide parts of"
            notes.append(f"another folder called capgate lies at {place} and may {harm} {here}")
    return notes


def drivers() -> dict[str, str | None]:
    """The drivers' versions by vendor, None where there is none; nothing is started."""
    return {"nvidia": _nvidia(), "amd": _amd()}


def _nvidia() -> str | None:
    import pynvml

    def asked() -> str:
        pynvml.nvmlInit()
        try:
            text = pynvml.nvmlSystemGetDriverVersion()
            return text.decode() if isinstance(text, bytes) else str(text)
        finally:
            pynvml.nvmlShutdown()

    found = ask(asked)
    return None if isinstance(found, Raised) else found


def _amd() -> str | None:
    if not Path(AMDGPU).exists():
        return None
    found = ask(partial(Path(AMDGPU, "version").read_text))
    return f"of Linux {platform.release()}" if isinstance(found, Raised) else found.strip()
