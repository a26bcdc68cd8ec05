"""``capgate check``: recorded launches and operations, compiled for any Triton and any target."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import _installation
from ..command import CommandError, asking, prints_to_stderr
from ..offline.answers import TIMEOUT
from ..outputs import Outputs
from ..targets import Target, parse
from ..terminal import plain
from . import configuration, subjects, tables, tritons
from .cells import Check, Row
from .results import cache_folder

FAIL_ON = ("failures", "spills", "changes")
TARGETS = ("cuda:90", "hip:gfx942", "hip:gfx950")
RECORDING = "recording.json"
SILENCE = 10  # seconds between two lines of progress where there is no terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``capgate check``."""
    parser.add_argument("what", nargs="*", help=f"recordings, and names of operations ({RECORDING})")
    parser.add_argument(
        "--triton", help="versions, folders with a triton in them, or 'installed', with commas between (installed)"
    )
    parser.add_argument("--target", help=f"hip:gfx950, cuda:90, ..., with commas between ({','.join(TARGETS)})")
    parser.add_argument("--path", help="folders that recorded modules are imported from, with colons between")
    parser.add_argument("--timeout", type=float, help=f"seconds that one compile may take ({TIMEOUT:g})")
    parser.add_argument("--jobs", type=int, help="processes side by side (one for each core)")
    parser.add_argument(
        "--fail-on",
        choices=FAIL_ON,
        help="what ends with status 1: a kernel that does not compile; one that spills more than on the first Triton, too; or "
        f"any other change, too ({FAIL_ON[0]})",
    )
    parser.add_argument("--no-cache", action="store_true", help="compile what was compiled before, too")
    parser.add_argument("--no-config", action="store_true", help=f"do not read [tool.capgate.check] of {configuration.FILE}")
    parser.add_argument("--json", metavar="FILE", help="write everything there as JSON")
    parser.add_argument("--markdown", metavar="FILE", help="write the table there")
    parser.add_argument("--junit", metavar="FILE", help="write JUnit's XML there, as CI systems read it")


def run(arguments: argparse.Namespace) -> int:
    """Compile and print. Returns 1 where what ``--fail-on`` names was found, 2 where there was nothing to compile."""
    outputs: Outputs[tables.Result] = Outputs()
    with asking():
        configured = {} if arguments.no_config else configuration.load(Path.cwd())
        chosen = _chosen(arguments, configured)
        found = subjects.all_of(chosen["what"])
        if not found:
            raise ValueError(f"what: {', '.join(chosen['what'])}: holds no launch")
        targets = [_gpu(text) for text in chosen["target"]]
        for option, make in (("json", _json), ("markdown", tables.markdown), ("junit", tables.junit)):
            if (file := getattr(arguments, option)) is not None:
                outputs.add(f"--{option}", file, make)
    with prints_to_stderr(), _progress() as progress:
        with asking():
            overlays = [tritons.overlay(text, cache_folder(), progress) for text in chosen["triton"]]
            if twice := [one.name for one in overlays if [other.name for other in overlays].count(one.name) > 1]:
                raise ValueError(f"triton: got {twice[0]} twice, needs each once")
        check = Check(
            subjects=found,
            tritons=overlays,
            targets=targets,
            path=[str(Path(entry).resolve()) for entry in (*chosen["path"], os.curdir)],
            root=Path.cwd(),
            timeout=chosen["timeout"],
            results=None if arguments.no_cache else cache_folder() / "results",
        )
        whole, made = len(found) * len(overlays) * len(targets), 0

        def done(row: Row) -> None:
            nonlocal made
            made += 1
            progress(f"{made} of {whole}: {found[row['subject']].title}, {row['target']}, Triton {row['triton']}")

        progress(f"0 of {whole}: starting compilers")
        rows = check.rows(arguments.jobs or os.cpu_count() or 1, done)
    result = {
        "capgate": _installation.version(),
        "tritons": [overlay.name for overlay in overlays],
        "targets": [str(target) for target in targets],
        "subjects": [{"title": one.title, "told": list(one.told), "trial": one.trial} for one in found],
        "rows": rows,
    }
    with outputs.written(result):
        tables.show(result)
    if not any(row["applies"] for row in rows):
        reasons = dict.fromkeys(row["error"] for row in rows)
        raise CommandError("what: nothing to compile, because no variant is taken:", *map(plain, reasons))
    return 1 if _fails(result, chosen["fail-on"]) else 0


def _chosen(arguments: argparse.Namespace, configured: dict[str, Any]) -> dict[str, Any]:
    """What is asked for: by an option, or the user's pyproject, or nobody."""
    otherwise: dict[str, Any] = {
        "what": [RECORDING],
        "triton": [tritons.INSTALLED],
        "target": list(TARGETS),
        "path": [],
        "timeout": TIMEOUT,
        "fail-on": FAIL_ON[0],
    }
    asked = {
        "what": arguments.what or None,
        "triton": arguments.triton and arguments.triton.split(","),
        "target": arguments.target and arguments.target.split(","),
        "path": arguments.path and arguments.path.split(os.pathsep),
        "timeout": arguments.timeout,
        "fail-on": arguments.fail_on,
    }
    chosen = {**otherwise, **configured, **{key: value for key, value in asked.items() if value is not None}}
    if chosen["fail-on"] not in FAIL_ON:
        raise ValueError(f"fail-on: got {chosen['fail-on']!r}, needs one of {', '.join(FAIL_ON)}")
    if not chosen["timeout"] > 0:
        raise ValueError(f"timeout: got {chosen['timeout']}, needs more than 0 seconds")
    if arguments.jobs is not None and arguments.jobs < 1:
        raise ValueError(f"jobs: got {arguments.jobs}, needs 1 or more")
    return chosen


def _gpu(text: str) -> Target:
    target = parse(text)
    if not target.is_gpu:
        raise ValueError(f"target: got {text}, needs a GPU such as hip:gfx950 or cuda:90")
    return target


def _fails(result: tables.Result, on: str) -> bool:
    """Whether a result has what is asked to end with status 1."""
    if tables.failures(result):
        return True
    lines = [line for line in tables.lines(result) if not result["subjects"][line.subject]["trial"]]
    if on == "changes":
        return any(tables.changes(line.rows[0], row) for line in lines for row in line.rows)
    return on == "spills" and any(
        (row.get("spills") or 0) > (line.rows[0].get("spills") or 0) for line in lines for row in line.rows
    )


def _json(result: tables.Result) -> str:
    return json.dumps(result, indent=1) + "\n"


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A line on the terminal that says what is being done; elsewhere a line now and then. Gives what changes it."""
    from rich.console import Console

    if sys.stderr.isatty():
        with Console(stderr=True, markup=False).status("") as line:
            yield line.update
        return
    said = 0.0

    def tell(words: str) -> None:
        nonlocal said
        if time.monotonic() - said > SILENCE:
            said = time.monotonic()
            print(f"capgate: {words}", file=sys.stderr, flush=True)

    yield tell
