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
    """A note for each other folder called capgate that Python's path leads to: its parts are taken for this package's."""
    loaded = os.path.realpath(location())
    others = [os.path.realpath(os.path.join(entry or os.curdir, "capgate")) for entry in sys.path]
    return [
        f"another folder called capgate lies at {other} and may hide parts of this one, which is loaded from {loaded}"
        for other in dict.fromkeys(others)
        if other != loaded and os.path.isdir(other)
    ]


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
