"""How long a process takes from its start to its first result, with Triton's cache empty and filled."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from capgate.compat.command import CommandError
from capgate.compat.offline.children import Child
from capgate.compat.terminal import console, print_whole

from . import first_steps
from .tables import empty, note

CACHES = ("cold", "warm")
WORDS = (
    "Seconds of each step: fp8_mqa_logits of 16 x 512 with 64 heads, variant {variant}. cold: Triton's cache is empty; warm: "
    "it has what that process compiled. One process each, no medians."
)


def measure() -> dict[str, Any]:
    """The steps of two processes, one after the other with a cache of Triton's that begins empty.

    Keys: ``steps``, each with ``step`` and ``seconds`` by cache ("cold", "warm"); ``variant``; ``device``, "cuda" or "cpu".
    Raises CommandError where one of them fails.
    """
    found: dict[str, dict[str, float]] = {}
    said: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="capgate-first-") as folder:
        for cache in CACHES:
            began = time.time()
            said = _run({**os.environ, "TRITON_CACHE_DIR": folder, "PYTHONPATH": _path()})
            for step, end in said["ends"]:
                found.setdefault(step, {})[cache] = end - began
                began = end
    steps = [{"step": step, "seconds": seconds} for step, seconds in found.items()]
    return {"steps": steps, "variant": said["variant"], "device": said["device"]}


def _path() -> str:
    return os.pathsep.join(entry or os.getcwd() for entry in sys.path)


def _run(environment: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, str(Path(first_steps.__file__))]
    with Child(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**environment, "PYTHONSAFEPATH": "1"}) as child:
        out, err = child.communicate()
    lines = out.splitlines()
    if child.returncode or not lines:
        cause = next((line for line in reversed(err.splitlines()) if line.strip()), "without a word")
        raise CommandError(f"--first: the process ended with status {child.returncode}: {cause}")
    said: dict[str, Any] = json.loads(lines[-1])
    return said


def show(results: dict[str, Any]) -> None:
    """Print the steps."""
    printer, steps = console(), results["steps"]
    table = empty("From a process's start to its first result", ("step", *CACHES))
    for row in steps:
        table.add_row(row["step"], *(f"{row['seconds'][cache]:.3f}" for cache in CACHES))
    totals = (sum(row["seconds"][cache] for row in steps if row["step"] != "second call") for cache in CACHES)
    table.add_row("to the first result", *(f"{total:.3f}" for total in totals))
    print_whole(printer, table)
    note(printer, WORDS.format(variant=results["variant"]))
    if results["device"] == "cpu":
        note(printer, "On the CPU: the reference compiles nothing, and this says nothing of a GPU.")
