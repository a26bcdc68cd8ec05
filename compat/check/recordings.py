"""The file that a recording is: what it holds, how it is read, and how it is written."""

import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..foreign import TEXT, Document, Schema, list_of, map_of, object_with, or_none
from .values import specialisation

FORMAT = "capgate recording 1"

_KINDS = ("tensor", "int", "float", "constant", "dtype", "enum", "tuple", "list", "object", "function")
_ARGUMENT: Schema = {"type": "object", "required": ["kind"], "properties": {"kind": {"enum": list(_KINDS)}}}

LAUNCH = object_with(
    kernel=object_with(module=TEXT, file=TEXT, name=TEXT, source=TEXT, gluon={"type": "boolean"}),
    arguments=map_of(_ARGUMENT),
    constants=list_of(TEXT),
    options=map_of(_ARGUMENT),
    grid=or_none(list_of({"type": "integer"})),
    launches={"type": "integer", "minimum": 0},
    trial={"type": "boolean"},
    unrecorded=or_none(TEXT),
)
DOCUMENT = Document(
    "capgate record writes",
    object_with(
        format={"const": FORMAT},
        stack=object_with(triton=or_none(TEXT), torch=or_none(TEXT), how=TEXT),
        launches=list_of(LAUNCH),
    ),
)

Launch = dict[str, Any]
Recording = dict[str, Any]


def write(file: str | Path, recording: Recording) -> None:
    """Whole or not at all, also where another process reads it meanwhile."""
    path = Path(file)
    beside = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        beside.write_text(text(recording))
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def text(recording: Recording) -> str:
    """A recording as its file has it."""
    return json.dumps(recording, indent=1) + "\n"


def merged(recordings: Iterable[Recording]) -> Recording:
    """One recording of what several processes noted: launches that are alike count together. None of none is a ValueError."""
    first, *others = list(recordings)
    launches = {identity(launch): dict(launch) for launch in first["launches"]}
    for recording in others:
        for launch in recording["launches"]:
            known = launches.setdefault(identity(launch), {**launch, "launches": 0})
            known["launches"] += launch["launches"]
            known["trial"] &= launch["trial"]
    return {**first, "launches": list(launches.values())}


def import_folder(module: str, file: Path) -> Path | None:
    """The folder that a module of this file is imported from; None where the path has none, or is not of the module's name."""
    whole = Path(*module.split("."))
    for tail in (whole.with_suffix(".py"), whole / "__init__.py"):
        length = len(tail.parts)
        if len(file.parts) > length and file.parts[-length:] == tail.parts:
            return file.parents[length - 1]
    return None


def identity(launch: Launch) -> str:
    """What Triton compiles a launch for, as text: of an integer its class, not how often it came, nor on what grid."""
    arguments = {
        name: specialisation(described, name in launch["constants"]) for name, described in launch["arguments"].items()
    }
    return repr((launch["kernel"], arguments, launch["options"], launch["unrecorded"]))


def title(launch: Launch) -> str:
    """A kernel's short name: ``fla.ops.utils.cumsum:chunk_local_cumsum_kernel``."""
    kernel = launch["kernel"]
    where = kernel["file"] if kernel["module"] == "__main__" else kernel["module"]
    return f"{where}:{kernel['name']}"
