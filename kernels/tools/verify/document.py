"""What a run of ``capgate verify`` found, as the file that it writes: of JSON types, and without names of hosts or users."""

import getpass
import os
import re
import shlex
import socket
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from capgate.compat.foreign import TEXT, Document, Schema, list_of, map_of, object_with, or_none

from . import verdicts
from .verdicts import Row

Run = dict[str, Any]

GPU, INTERPRETER, CPU, EMULATOR = "on the GPU", "in Triton's interpreter", "on the CPU", "in the emulator"
WORDS = 900  # characters of a reason

_FLAG: Schema = {"type": "boolean"}
_LONG: Schema = {"type": "string"}
_FIGURE: Schema = {"type": "number", "minimum": 0, "maximum": 1e30}
_CASE = object_with(**dict.fromkeys(("operation", "variant", "case", "verdict", "words"), TEXT), seconds=or_none(_FIGURE))
DOCUMENT = Document(
    "capgate verify --json writes",
    object_with(
        verify={"type": "integer", "minimum": 1, "maximum": 1},
        **dict.fromkeys(("date", "executed"), TEXT),
        quick=_FLAG,
        complete=_FLAG,
        seconds=_FIGURE,
        stack=object_with(
            **dict.fromkeys(("device", "target", "python"), TEXT),
            **dict.fromkeys(("capgate", "triton", "torch", "runtime", "driver"), or_none(TEXT)),
        ),
        variants=list_of(object_with(**dict.fromkeys(("operation", "variant", "reason"), TEXT), taken=_FLAG)),
        cases=list_of(_CASE),
        asked=list_of(object_with(capability=TEXT, holds=or_none(_FLAG), words=TEXT)),
        ceilings=or_none(object_with(flops=_FIGURE, copy=_FIGURE, read=_FIGURE)),
        times=list_of(
            object_with(
                **dict.fromkeys(("operation", "variant", "call", "words"), TEXT),
                **dict.fromkeys(("median_ms", "low_ms", "high_ms", "floor_ms"), or_none(_FIGURE)),
            )
        ),
        first_failure=or_none(
            object_with(
                **dict.fromkeys(("operation", "variant", "case", "verdict", "words", "reproducer"), TEXT), traceback=_LONG
            )
        ),
    ),
)
DOCUMENT.schema["properties"]["tuned"] = list_of(  # which not every run has
    object_with(
        **dict.fromkeys(("operation", "variant", "call"), TEXT),
        **dict.fromkeys(("where", "fields"), map_of({})),
        **dict.fromkeys(("before_ms", "after_ms"), _FIGURE),
    )
)


def without_names(text: str) -> str:
    """A text without this machine's and this user's name, and with a folder of the user's or of Python's packages as a mark."""
    folders = {str(Path.home()): "~", os.getcwd(): ".", **dict.fromkeys(filter(None, sys.path), "PACKAGES")}
    for folder in sorted(folders, key=len, reverse=True):
        if len(folder) > 1:
            text = text.replace(folder, folders[folder])
    names = {"HOST": {socket.gethostname(), socket.gethostname().partition(".")[0]}, "USER": _users()}
    for mark, those in names.items():
        for name in sorted(filter(None, those), key=len, reverse=True):
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", mark, text)
    return text


def _users() -> set[str]:
    users = {Path.home().name}
    with suppress(OSError, KeyError, ImportError):  # a user that no database knows
        users.add(getpass.getuser())
    return users - {"root"}


def reproducer(operation: str, variant: str, case: str) -> str:
    """The command that runs one case alone."""
    return f"capgate verify --case {shlex.join((operation, variant, case))}"


def first_failure(cases: list[Row], tracebacks: Mapping[tuple[str, ...], str]) -> Row | None:
    """The first case that fails, with what runs it again; None where none does.

    tracebacks : by operation, variant and case
    """
    for case in cases:
        if case["verdict"] in verdicts.FAILURES:
            names = {name: case[name] for name in ("operation", "variant", "case")}
            said = {"verdict": case["verdict"], "words": case["words"], "traceback": tracebacks[tuple(names.values())]}
            return {**names, **said, "reproducer": reproducer(**names)}
    return None


def answers(cases: list[Row], asks: Mapping[tuple[str, str], str], executed: str) -> list[Row]:
    """Of each capability that no hardware has shown, whether what was found here says that it may be turned on.

    asks : (operation, case) to the capability that it asks about
    executed : how cases were; only a GPU says yes
    """
    found = []
    for capability in dict.fromkeys(asks.values()):
        rows = [case for case in cases if asks.get((case["operation"], case["case"])) == capability]
        said = Counter(row["verdict"] for row in rows if row["verdict"] != verdicts.NOT_TAKEN)
        failed = [row for row in rows if row["verdict"] in verdicts.FAILURES]
        if failed:
            words = f"no: {failed[0]['operation']}, {failed[0]['case']}: {failed[0]['words']}"
            found.append({"capability": capability, "holds": False, "words": words[:WORDS]})
        elif said and set(said) == {verdicts.AGREES} and executed == GPU:
            words = f"yes: {said[verdicts.AGREES]} calls have the bits that they have without it; CAPGATE_ENABLE={capability}"
            found.append({"capability": capability, "holds": True, "words": words})
        else:
            refused = rows[0]["words"] if rows else "no variant that runs here uses it"
            why = f"executed {executed}, which is no hardware" if said else refused
            found.append({"capability": capability, "holds": None, "words": f"not answered here: {why}"[:WORDS]})
    return found


def status(run: Run) -> int:
    """The exit status: 0 where every case agrees on a GPU, 1 where one fails or was not judged, 3 where there was no GPU."""
    said = {case["verdict"] for case in run["cases"]}
    if not run["complete"] or said & {*verdicts.FAILURES, verdicts.NOT_JUDGED} or verdicts.AGREES not in said:
        return 1
    return 0 if run["executed"] == GPU else 3
