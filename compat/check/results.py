"""Results of compiles that were made before, by a hash of all that they depend on."""

import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """Where Tritons and results are kept: CAPGATE_CACHE, or the user's cache."""
    named = os.environ.get("CAPGATE_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "capgate"


class Results:
    """A folder of results; one that is damaged, or cannot be written, is as none.

    folder : None for no memory at all
    """

    def __init__(self, folder: str | Path | None) -> None:
        self._folder = Path(folder) if folder else None

    def get(self, key: str) -> dict[str, Any] | None:
        """What was put there."""
        if self._folder is None:
            return None
        try:
            found = json.loads((self._folder / f"{key}.json").read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and "compiled" in found else None

    def put(self, key: str, row: dict[str, Any]) -> None:
        """Keep a row, whole or not at all."""
        if self._folder is None:
            return
        file = self._folder / f"{key}.json"
        beside = file.with_name(f"{key}.{secrets.token_hex(4)}")
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(row))
            os.replace(beside, file)
