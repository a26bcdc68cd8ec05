"""Tunings of a file, which ``CAPGATE_TUNINGS`` and ``override(tunings=...)`` load: for one GPU, over the rows of the tables.

``capgate verify --tune`` writes such a file. A row has the operation, the variant, which problems are meant (``where``: fields
of the problem with their values) and which fields of their tuning become what (``fields``)::

    {"tunings": 1, "target": "cuda:90", "device": "NVIDIA H200",
     "rows": [{"operation": "fp8_mqa_logits", "variant": "classic", "where": {"heads": 64}, "fields": {"num_warps": 8}}]}
"""

import sys
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from . import _registry
from .foreign import TEXT, Document, Schema, list_of, map_of, or_none
from .spelling import nearest
from .targets import Target

_FIGURE: Schema = or_none({"type": "number", "minimum": 0, "maximum": 1e30})
_NAMES: Schema = dict.fromkeys(("operation", "variant"), TEXT)
_PLAIN = ["string", "number", "boolean", "null"]
_PAIR: Schema = {"type": [*_PLAIN, "array"], "items": {"type": _PLAIN}}  # of options: ["maxnreg", 128]
_FIELD: Schema = {"type": [*_PLAIN, "array"], "items": _PAIR}  # of a table's row, which can be hashed
_VALUES: Schema = {"where": map_of({"type": ["string", "integer", "boolean", "null"]}), "fields": map_of(_FIELD)}
_ROW: Schema = {
    "type": "object",
    "required": ["operation", "variant", "where", "fields"],
    "additionalProperties": False,
    "properties": {**_NAMES, **_VALUES, "before_ms": _FIGURE, "after_ms": _FIGURE, "call": TEXT},
}
DOCUMENT = Document(
    "CAPGATE_TUNINGS loads",
    {
        "type": "object",
        "required": ["tunings", "target", "device", "rows"],
        "additionalProperties": False,
        "properties": {
            "tunings": {"type": "integer", "minimum": 1, "maximum": 1},
            "target": TEXT,
            "device": TEXT,
            "triton": or_none(TEXT),
            "rows": list_of(_ROW),
        },
    },
)


class Loaded(NamedTuple):
    """What a file says of a problem's tuning.

    fields : of the tuning, with their values
    source : the file
    """

    fields: Mapping[str, Any]
    source: str

    def __str__(self) -> str:
        return f"tuned by {self.source}: {', '.join(f'{name} {value}' for name, value in self.fields.items())}"

    def over(self, row: Any) -> Any:
        """A row of a tuning table with these fields. Raises ValueError for one that it does not have."""
        for name in self.fields:
            if name not in row._fields:
                raise ValueError(f"{self.source}: no field {name!r} of a tuning; {nearest(name, row._fields)}")
        return row._replace(**self.fields)


class Tunings:
    """The rows of a file.

    source : the file, as errors and traces call it
    target, device : the GPU that they are of: "cuda:90", "NVIDIA H200"
    rows : as in a file
    """

    def __init__(self, source: str, target: str, device: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self.source, self.target, self.device = source, target, device
        self.rows = tuple(rows)
        self._found: dict[Any, Loaded | None] = {}
        self._checked: set[str] = set()

    @classmethod
    def read(cls, file: str) -> "Tunings":
        """Those of a file. Raises ValueError that says what is wrong in it, OSError for one that cannot be read."""
        found = DOCUMENT.read(file)
        return cls(file, found["target"], found["device"], found["rows"])

    def loaded(self, operation: Any, variant: str, problem: Hashable, target: Target) -> Loaded | None:
        """What the rows say of a problem of an operation's variant; None where they say nothing.

        Raises ValueError where the problem's device is another GPU than theirs, and for a row of an operation, variant or
        field of a problem that does not exist.
        """
        key = (operation.name, variant, problem, target)
        if key not in self._found:
            self._check(operation, problem)
            self._found[key] = self._find(operation, variant, problem) if self._is_theirs(problem, target) else None
        return self._found[key]

    def _is_theirs(self, problem: Any, target: Target) -> bool:
        device = getattr(problem, "device", None)
        here = getattr(device, "type", None) == "cuda"
        name = sys.modules["torch"].cuda.get_device_name(device) if here else self.device
        same = str(target) == self.target
        if here and not (same and name == self.device):
            raise ValueError(f"{self.source}: is of {self.device} ({self.target}), found {name} ({target})")
        return same

    def _find(self, operation: Any, variant: str, problem: Any) -> Loaded | None:
        for row in self.rows:
            names = (row["operation"], row["variant"])
            if names == (operation.name, variant) and all(getattr(problem, name) == is_ for name, is_ in row["where"].items()):
                return Loaded({name: _hashable(value) for name, value in row["fields"].items()}, self.source)
        return None

    def _check(self, operation: Any, problem: Any) -> None:
        if operation.name in self._checked:
            return
        for row in self.rows:
            name, known = row["operation"], _registry.REGISTERED
            if name not in known and name not in (known := _registry.operations()):
                raise ValueError(f"{self.source}: no operation {name!r}; {nearest(name, known)}")
            if name != operation.name:
                continue
            if row["variant"] not in operation.variants:
                words = nearest(row["variant"], operation.variants)
                raise ValueError(f"{self.source}: {name} has no variant {row['variant']!r}; {words}")
            for field in row["where"]:
                if not hasattr(problem, field):
                    known_fields = getattr(problem, "_fields", ())
                    raise ValueError(
                        f"{self.source}: {name} has no field {field!r} of a problem; {nearest(field, known_fields)}"
                    )
        self._checked.add(operation.name)


def _hashable(value: Any) -> Any:
    """A value of JSON as a row of a table has it: lists are tuples there."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
