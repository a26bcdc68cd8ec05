"""The report: versions, GPUs, every capability with its reason, and the branch that each operation takes."""

import argparse
import io
import json
import re
import sys
from collections.abc import Sequence
from typing import Any

from . import targets, versions
from .capabilities import TABLE, Capabilities
from .current import capabilities
from .operation import Operation, Trace, operations
from .switches import SwitchError
from .targets import Target

PACKAGES = ("triton", "triton_kernels", "torch")
PICTURE_COLUMNS = 100
KINDS = {"build": "This Triton", "target": "This target", "both": "This Triton on this target"}


def collect(target: Target | str | None = None) -> dict[str, Any]:
    """Everything the report says, as JSON types.

    target : as ``device`` of :func:`capgate.compat.capabilities`

    Keys: ``triton``, ``triton_kernels``, ``torch`` (version texts or None), ``target`` (the one asked about), ``targets`` (the
    GPUs found), ``notes`` (why a vendor has none, or one could not be read), ``capabilities.<name>.available|reason``,
    ``operations.<name>.variant|trace`` with ``variant|accepted|reason`` for each step of the trace.
    """
    caps, found = capabilities(target), targets.discover()
    return {
        **{name: versions.find(name).text for name in PACKAGES},
        "target": str(caps.target),
        "targets": [str(gpu) for gpu in found.targets],
        "notes": list(found.notes),
        "capabilities": {name: caps[name]._asdict() for name in caps},
        "operations": {name: _trace(operation, caps) for name, operation in sorted(operations().items())},
    }


def _trace(operation: Operation[Any], caps: Capabilities) -> dict[str, Any]:
    trace: Trace = operation.explain(operation.example(caps.target) if operation.example else None, device=caps.target)
    return {"variant": trace.variant, "trace": [step._asdict() for step in trace.steps]}


def show(report: dict[str, Any], console: Any = None, brief: bool = False) -> None:
    """Print what :func:`collect` found, for people; plain text when the output is not a terminal.

    console : rich's, one for standard output otherwise
    brief : leave out what only the build, or only the target, can do
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console(highlight=False)

    def table(title: str, *columns: str) -> Table:
        made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
        for column in columns[:-1]:
            made.add_column(column, no_wrap=True)
        made.add_column(columns[-1], ratio=1, overflow="fold")
        return made

    def mark(yes: bool) -> Text:
        return Text("yes", "green") if yes else Text("no", "red")

    builds = table("Builds", "package", "version")
    for name in PACKAGES:
        builds.add_row(name, Text(report[name] or "not installed"))
    console.print(builds)

    gpus = table("GPUs", "device", "target")
    for index, gpu in enumerate(report["targets"]):
        gpus.add_row(str(index), gpu)
    for note in report["notes"]:
        gpus.add_row("-", Text(note, "dim"))
    console.print(gpus)

    for kind, title in KINDS.items():
        if brief and kind != "both":
            continue
        suffix = "" if kind == "build" else f" ({report['target']})"
        flags = table(f"{title}{suffix}", "capability", "", "why")
        for name, row in TABLE.items():
            if row.kind == kind:
                verdict = report["capabilities"][name]
                flags.add_row(name, mark(verdict["available"]), Text(verdict["reason"]))
        console.print(flags)

    for name, choice in report["operations"].items():
        steps = table(f"{name} takes {choice['variant'] or 'no branch'} on {report['target']}", "branch", "", "why")
        for step in choice["trace"]:
            steps.add_row(step["variant"], mark(step["accepted"]), Text(step["reason"]))
        console.print(steps)


def draw(report: dict[str, Any], title: str, brief: bool = False) -> str:
    """What :func:`show` prints on a terminal of PICTURE_COLUMNS, as an SVG picture of it."""
    from rich.console import Console
    from rich.terminal_theme import MONOKAI

    console = Console(record=True, width=PICTURE_COLUMNS, file=io.StringIO(), force_terminal=True, highlight=False)
    show(report, console, brief)
    picture: str = console.export_svg(title=title, theme=MONOKAI)
    # Without the font that it would fetch from the network: a browser's own monospace serves.
    return re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The report's options, for a parser of its own or for a subcommand."""
    parser.add_argument("--target", help="ask about this target instead of this machine: hip:gfx950, cuda:90, cpu")
    parser.add_argument("--brief", action="store_true", help="leave out what only the build, or only the target, can do")
    parser.add_argument("--svg", metavar="FILE", help="draw the terminal's picture into FILE and print nothing")
    parser.add_argument("--json", action="store_true", help="print JSON with stable keys")


def run(arguments: argparse.Namespace) -> int:
    """Print the report that the parsed ``arguments`` ask for; returns the exit status."""
    try:
        report = collect(arguments.target)
    except (SwitchError, ValueError) as error:
        print(f"capgate: {error}", file=sys.stderr)
        return 2
    if arguments.svg:
        target, brief = f" --target {arguments.target}" if arguments.target else "", " --brief" if arguments.brief else ""
        with open(arguments.svg, "w") as file:
            file.write(draw(report, f"capgate report{target}{brief}", arguments.brief))
    elif arguments.json:
        print(json.dumps(report, indent=2))
    else:
        show(report, brief=arguments.brief)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m capgate.compat``: the report without the kernels."""
    parser = argparse.ArgumentParser(prog="python -m capgate.compat", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(argv))
