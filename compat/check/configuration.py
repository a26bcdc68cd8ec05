"""``[tool.capgate.check]`` of somebody's pyproject.toml: what ``capgate check`` takes where its options say nothing."""

from importlib import import_module
from pathlib import Path
from typing import Any

from ..spelling import nearest

KINDS: dict[str, type] = {"what": list, "triton": list, "target": list, "path": list, "timeout": float, "fail-on": str}
FILE = "pyproject.toml"


def load(folder: Path) -> dict[str, Any]:
    """The table of the folder's pyproject.toml; empty where there is none.

    Raises ValueError for a key or a value that the command does not have.
    """
    file = folder / FILE
    if not file.is_file():
        return {}
    try:
        tomllib = import_module("tomllib")
    except ModuleNotFoundError as error:
        if b"capgate" not in file.read_bytes():
            return {}
        raise ValueError(f"{FILE}: needs Python 3.11 or newer to be read; --no-config leaves it") from error

    try:
        document = tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{FILE}: {error}") from error
    table: dict[str, Any] = document
    for key in ("tool", "capgate", "check"):
        table = table.get(key, {})
        if not isinstance(table, dict):
            raise ValueError(f"{FILE}: tool.capgate.check: got {table!r}, needs a table")
    for key, value in table.items():
        if key not in KINDS:
            raise ValueError(f"{FILE}: tool.capgate.check has no key {key!r}; {nearest(key, KINDS)}")
        kind = KINDS[key]
        wanted = (int, float) if kind is float else kind
        if not isinstance(value, wanted) or (isinstance(value, list) and not all(isinstance(item, str) for item in value)):
            needs = {list: "a list of texts", float: "a number", str: "a text"}[kind]
            raise ValueError(f"{FILE}: tool.capgate.check.{key}: got {value!r}, needs {needs}")
    return table
