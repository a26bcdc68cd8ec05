"""The environment of a process that runs a module of this package: ``python -m support.sharing``."""

import os
from pathlib import Path

TESTS = Path(__file__).parents[1]


def environment(**variables: str) -> dict[str, str]:
    """This process's variables, and others; with tests/ on Python's path, and with Triton compiling as in production."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = filter(None, (str(TESTS), os.environ.get("PYTHONPATH")))
    return {**inherited, "PYTHONPATH": os.pathsep.join(path), **variables}
