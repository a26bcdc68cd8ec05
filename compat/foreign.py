"""JSON files that anybody may have written: checked against a schema, and their strings made plain text."""

import json
import math
import os
import stat
from functools import cached_property
from typing import Any

from .terminal import plain

Schema = dict[str, Any]

LARGEST = 64 * 2**20  # bytes; what capgate bench writes of every workload with every variant is not one MB
DEEPEST = 32  # objects and lists in one another; a result has six
LONGEST = 1000  # characters of a name
SHOWN = 60  # characters of a value in an error

TOO_DEEP = f"needs at most {DEEPEST} objects and lists in one another"

# Parts of schemas. Figures are far beyond any machine's, and their ratios still are numbers.
TEXT: Schema = {"type": "string", "maxLength": LONGEST}
POSITIVE: Schema = {"type": "number", "minimum": 1e-30, "maximum": 1e30}


def or_none(schema: Schema) -> Schema:
    """The same or null."""
    return {**schema, "type": [schema["type"], "null"]}


def list_of(items: Schema) -> Schema:
    """Lists, empty ones too."""
    return {"type": "array", "items": items}


def map_of(values: Schema) -> Schema:
    """Objects with any keys, and values that are all of a kind."""
    return {"type": "object", "additionalProperties": values}


def object_with(**properties: Schema) -> Schema:
    """Objects that have these keys, and any others."""
    return {"type": "object", "required": list(properties), "properties": properties}


class NoNumber(str):
    """What stands where a number is expected, and which JSON does not have or no float can hold: NaN, 1e999."""


class Document:
    """A kind of file.

    words : what writes it: "capgate bench --json writes"
    schema : JSON Schema, draft 7
    """

    def __init__(self, words: str, schema: Schema) -> None:
        self.words = words
        self.schema = schema

    def read(self, file: str) -> dict[str, Any]:
        """What a file of this kind holds, its strings plain.

        Raises ValueError that says which file does not hold such a document and where in it, OSError for one that cannot be
        read.
        """
        from fastjsonschema import JsonSchemaValueException

        text = _bytes(file)
        try:
            found = _plain(_parse(text))
            self._validate(found)
        except JsonSchemaValueException as error:
            raise ValueError(f"{file}: does not hold what {self.words}: {_where(error)}") from error
        except ValueError as error:
            raise ValueError(f"{file}: does not hold what {self.words}: {error}") from error
        document: dict[str, Any] = found
        return document

    @cached_property
    def _validate(self) -> Any:
        from fastjsonschema import compile as compile_schema

        return compile_schema(self.schema)


def shown(value: Any) -> str:
    """A value of a document in an error: short, and on one line."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, NoNumber):
        return clipped(value)
    return clipped(json.dumps(value, ensure_ascii=False))


def clipped(text: str) -> str:
    """As much of a text as an error has room for."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _bytes(file: str) -> bytes:
    mode = os.stat(file).st_mode
    if stat.S_ISDIR(mode):
        raise ValueError(f"{file}: is a folder, needs a file")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{file}: is a device or a pipe, needs a file")
    with open(file, "rb") as opened:
        text = opened.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise ValueError(f"{file}: is larger than {LARGEST >> 20} MiB")
    return text


def _parse(text: bytes) -> Any:
    """The JSON value, with a NoNumber for the schema to find where there is one."""
    if not text.strip():
        raise ValueError("it is empty")
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=NoNumber, parse_float=_float, parse_int=_int)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no text in UTF-8: {error.reason} at byte {error.start}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in made if keys.count(key) > 1)
        raise ValueError(f"the key {shown(twice)} stands twice in one object")
    return made


def _float(text: str) -> float | NoNumber:
    value = float(text)
    return value if math.isfinite(value) else NoNumber(text)


def _int(text: str) -> int | NoNumber:
    return int(text) if len(text) < 300 else NoNumber(text)  # a float has 309 digits before its point


def _plain(value: Any, depth: int = 0) -> Any:
    if depth > DEEPEST:
        raise ValueError(TOO_DEEP)
    if isinstance(value, str) and not isinstance(value, NoNumber):
        return plain(value)
    if isinstance(value, list):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, dict):
        if too_long := [key for key in value if len(key) > LONGEST]:
            raise ValueError(f"the key {shown(too_long[0])} has more than {LONGEST} characters")
        return {plain(key): _plain(item, depth + 1) for key, item in value.items()}
    return value


def _where(error: Any) -> str:
    """The place in the document, what it got and what it needs."""
    place = error.name.removeprefix("data").removeprefix(".")
    needs = error.message.removeprefix(error.name).strip().replace("must ", "needs to ", 1)
    return f"{place[:LONGEST]}: got {shown(error.value)}, {needs}" if place else f"got {shown(error.value)}, {needs}"
