"""What a drop-in has replaced and what not, in words and as JSON types."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class Taken(NamedTuple):
    """A family that is in force.

    functions : their names
    places : where they stand: module and attribute, or what will put them there
    """

    functions: tuple[str, ...]
    places: tuple[str, ...]

    def __str__(self) -> str:
        return f"{', '.join(self.functions)} at {', '.join(self.places)}"


class Left(NamedTuple):
    """A family that stays the library's somewhere, and why."""

    functions: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        return f"{', '.join(self.functions)} ({self.reason})"


class Report(NamedTuple):
    """What :func:`capgate.kernels.dropin.install` did, or how things stand.

    name : the drop-in
    taken : the families that are in force
    left : those that are not, anywhere or at one of several places
    """

    name: str
    taken: tuple[Taken, ...]
    left: tuple[Left, ...]

    def __str__(self) -> str:
        lines = [f"drop-in {self.name}"]
        lines += [f"  taken: {one}" for one in self.taken]
        lines += [f"  left:  {one}" for one in self.left]
        return "\n".join(lines)

    def as_json(self) -> dict[str, list[dict[str, Any]]]:
        """ "taken" and "left", as JSON types."""
        return {"taken": _rows(self.taken), "left": _rows(self.left)}


def _rows(entries: Sequence[Taken | Left]) -> list[dict[str, Any]]:
    found = [entry._asdict() for entry in entries]
    return [{key: list(value) if isinstance(value, tuple) else value for key, value in row.items()} for row in found]
