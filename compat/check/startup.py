"""Recording in the Python processes of a command: a ``sitecustomize`` ahead of theirs begins it as they start."""

import atexit
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VARIABLE = "CAPGATE_RECORD"

SITECUSTOMIZE = """
import sys
sys.path[:] = [entry for entry in sys.path if entry != {folder!r}]
try:
    from capgate.compat.check.startup import begin
    begin()
except ImportError as error:
    print(f"capgate record: {{sys.executable}} notes nothing, since capgate does not import there: {{error}}", file=sys.stderr)
from importlib.machinery import PathFinder
theirs = PathFinder.find_spec("sitecustomize")
if theirs and theirs.loader:
    theirs.loader.exec_module(sys.modules["sitecustomize"])
"""


def environment(folder: Path, options: Mapping[str, Any]) -> dict[str, str]:
    """The environment of a command whose processes record into files of ``folder``.

    options : of a Recorder
    """
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE.format(folder=str(folder)))
    entries = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    request = json.dumps({"folder": str(folder), "options": dict(options)})
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entries), VARIABLE: request}


def begin() -> None:
    """Record from now to this process's end, as the environment says."""
    if VARIABLE not in os.environ:
        return
    request = json.loads(os.environ[VARIABLE])
    from .recorder import Recorder

    recorder = Recorder(Path(request["folder"]) / f"{os.getpid()}.json", **request["options"])
    recorder.__enter__()
    atexit.register(recorder.finish)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: recorder.go_on_in(Path(request["folder"]) / f"{os.getpid()}.json"))


def recorded(folder: Path) -> list[Path]:
    """The files that the command's processes left."""
    return sorted(folder.glob("*.json"))
