"""The report: versions, GPUs, every capability with its reason, and the variant that each operation takes."""

import argparse
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import partial
from typing import Any

from . import _conflicts, _installation, targets, versions
from ._capabilities import Capabilities
from ._lookup import capabilities
from ._operation import Operation, Trace
from ._registry import find_operations
from ._variant import Variant, checked_reason
from .command import asking, conclude, prints_to_stderr
from .outputs import Outputs
from .table import TABLE
from .targets import Target
from .terminal import console as plain_console
from .terminal import plain, plain_lines
from .thirdparty import Raised, ask

PACKAGES = ("triton", "triton_kernels", "torch")
PICTURE_COLUMNS = 100
KINDS = {"build": "This Triton", "target": "This target", "both": "This Triton on this target"}


# What else a report is to say: drop-in to "asked" (named by CAPGATE_DROPIN), "library" (it is there), "installed" (in force),
# and perhaps "taken" and "left": lists of families, each with "functions", and "places" or the "reason".
Dropins = Callable[[], Mapping[str, Mapping[str, Any]]]


def collect(target: Target | str | None = None, dropins: Dropins | None = None) -> dict[str, Any]:
    """Everything the report says, as JSON types.

    target : as ``device`` of :func:`capgate.compat.capabilities`
    dropins : gives the state of each drop-in; without it there is no key for them

    Keys: ``capgate``, ``location`` (the folder that it is loaded from), ``python``, ``drivers.nvidia|amd`` (version texts or
    None), ``dropins.<name>.asked|library|installed|taken|left``, ``triton``, ``triton_kernels``, ``torch`` (version texts or
    None),
    ``target`` (the one asked about), ``targets`` (the GPUs found), ``notes`` (why a vendor has none, or one could not be read;
    what is not served; which packages are not what one would expect; what may hide this package),
    ``capabilities.<name>.available|reason|kind|meaning|source``,
    ``operations.<name>.variant|trace`` with ``variant|accepted|reason`` for each step of the trace (and ``added_by``, the
    distribution, where one adds the variant), and with ``error`` for an
    operation that does not load or that could be asked for its capabilities only.
    """
    asked = {} if dropins is None else {"dropins": {name: dict(state) for name, state in dropins().items()}}
    caps, found = capabilities(target), targets.discover()
    known, failed = find_operations()
    choices = {name: _choice(operation, caps) for name, operation in known.items()}
    choices |= {name: {"variant": None, "trace": [], "error": words} for name, words in failed.items()}
    return {
        "capgate": _installation.version(),
        "location": _installation.location(),
        "python": _installation.python(),
        "drivers": _installation.drivers(),
        **asked,
        **{name: versions.find(name).text for name in PACKAGES},
        "target": str(caps.target),
        "targets": [str(gpu) for gpu in found.targets],
        "notes": [
            *found.notes,
            *_conflicts.notes(),
            *_installation.shadows(),
            *(words for one in known.values() for words in one.not_added),
        ],
        "capabilities": {name: {**caps[name]._asdict(), **_of_the_table(name)} for name in caps},
        "operations": dict(sorted(choices.items())),
    }


def _of_the_table(name: str) -> dict[str, str]:
    row = TABLE[name]
    return {"kind": row.kind, "meaning": row.meaning, "source": row.source}


def _choice(operation: Operation[Any], caps: Capabilities) -> dict[str, Any]:
    """The trace of an operation's example, and where that cannot be had the trace without a problem and why."""
    target = caps.target
    trace: Trace = operation.explain(device=target)  # asks no code but ours: a wrong switch is an error
    error = {}
    if operation.example:
        example = ask(partial(operation.example, target))
        asked = example if isinstance(example, Raised) else ask(partial(_guarded(operation).explain, example, device=target))
        if isinstance(asked, Raised):
            what = "its example" if asked is example else "the choice for its example"
            error = {"error": f"{what} raised {asked.words}; without it capabilities alone were asked"}
        else:
            trace = asked
    added = {name: {"added_by": variant.added_by} for name, variant in operation.variants.items() if variant.added_by}
    steps = [{**step._asdict(), **added.get(step.variant, {})} for step in trace.steps]
    return {"variant": trace.variant, "trace": steps, **error}


def _guarded(operation: Operation[Any]) -> Operation[Any]:
    """The operation with rules that raise nothing: a variant whose rule does is one that cannot be taken, which says so."""
    guarded = copy(operation)
    guarded._variants = {}
    for name, variant in operation.variants.items():
        guarded._variants[name] = own = copy(variant)
        own.accepts, own.unless_named = (_guarded_rule(variant, rule) for rule in ("accepts", "unless_named"))
    return guarded


def _guarded_rule(variant: Variant[Any], name: str) -> Callable[[Any], str | None] | None:
    rule: Callable[[Any], str | None] | None = getattr(variant, name)
    if rule is None:
        return None

    def ask_rule(problem: Any) -> str | None:
        reason = ask(lambda: checked_reason(rule(problem), f"{name} of variant {variant.name!r}"))
        return f"its rule {name} raised {reason.words}" if isinstance(reason, Raised) else reason

    return ask_rule


def show(report: dict[str, Any], console: Any = None, brief: bool = False) -> None:
    """Print what :func:`collect` found, for people; plain text when the output is not a terminal.

    console : rich's, one for standard output otherwise
    brief : leave out what only the build, or only the target, can do, and say in a line what an operation takes
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = console or plain_console()

    def table(title: str, *columns: str) -> Table:
        head = Text(plain(title), "bold")
        made = Table(title=head, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
        for column in columns[:-1]:
            made.add_column(column, no_wrap=True)
        made.add_column(columns[-1], ratio=1, overflow="fold")
        return made

    def words(text: str, style: str = "") -> Text:
        return Text(plain_lines(text), style)

    def mark(yes: bool) -> Text:
        return Text("yes", "green") if yes else Text("no", "red")

    builds = table("Builds", "package", "version")
    builds.add_row("capgate", words(report["capgate"] if brief else f"{report['capgate']} at {report['location']}"))
    builds.add_row("python", words(report["python"]))
    for name in PACKAGES:
        builds.add_row(name, words(report[name] or "not installed"))
    for vendor, driver in report["drivers"].items():
        builds.add_row(f"{vendor} driver", words(driver or "none"))
    console.print(builds)

    if "dropins" in report:
        replaced = table("Drop-ins", "name", "state")
        for name, state in report["dropins"].items():
            replaced.add_row(name, words(_state(state)))
        console.print(replaced)

    gpus = table("GPUs", "device", "target")
    for index, gpu in enumerate(report["targets"]):
        gpus.add_row(str(index), words(gpu))
    for note in report["notes"]:
        gpus.add_row("-", words(note, "dim"))
    console.print(gpus)

    for kind, title in KINDS.items():
        if brief and kind != "both":
            continue
        suffix = "" if kind == "build" else f" ({report['target']})"
        flags = table(f"{title}{suffix}", "capability", "", "what it gives, and why")
        for name, row in TABLE.items():
            if row.kind == kind:
                verdict = report["capabilities"][name]
                said = words(verdict["meaning"]).append(Text(f"\n{plain_lines(verdict['reason'])}", "dim"))
                flags.add_row(name, mark(verdict["available"]), said)
        console.print(flags)

    if brief:
        chosen = table(f"Operations on {report['target']}", "operation", "takes", "refused, and why")
        for name, choice in report["operations"].items():
            refused = [f"{step['variant']}: {step['reason']}" for step in choice["trace"] if not step["accepted"]]
            refused += [f"error: {choice['error']}"] if choice.get("error") else []
            chosen.add_row(words(name), words(choice["variant"] or "no variant"), words("\n".join(refused), "dim"))
        console.print(chosen)
        return
    for name, choice in report["operations"].items():
        steps = table(f"{name} takes {choice['variant'] or 'no variant'} on {report['target']}", "variant", "", "why")
        for step in choice["trace"]:
            whose = f"\n(of {step['added_by']})" if "added_by" in step else ""
            steps.add_row(words(step["variant"] + whose), mark(step["accepted"]), words(step["reason"]))
        if error := choice.get("error"):
            steps.add_row("-", Text("error", "red"), words(error))
        console.print(steps)


def _state(state: Mapping[str, Any]) -> str:
    """The state of a drop-in, in words."""
    asked = "asked for by CAPGATE_DROPIN" if state["asked"] else "not asked for"
    library = "" if state["library"] else ", its library is not there"
    lines = [f"{asked}{', installed in this process' if state['installed'] else ''}{library}"]
    lines += [f"taken: {', '.join(one['functions'])} at {', '.join(one['places'])}" for one in state.get("taken", ())]
    lines += [f"left: {', '.join(one['functions'])} ({one['reason']})" for one in state.get("left", ())]
    return "\n".join(lines)


def draw(report: dict[str, Any], title: str, brief: bool = False) -> str:
    """What :func:`show` prints on a terminal of PICTURE_COLUMNS, as an SVG picture of it."""
    from rich.terminal_theme import MONOKAI

    console = plain_console(record=True, width=PICTURE_COLUMNS, file=io.StringIO(), force_terminal=True)
    show(report, console, brief)
    picture: str = console.export_svg(title=title, theme=MONOKAI)
    # Without the font that it would fetch from the network: a browser's own monospace serves.
    return re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The report's options, for a parser of its own or for a subcommand."""
    parser.add_argument("--target", help="ask about this target instead of this machine: hip:gfx950, cuda:90, cpu")
    parser.add_argument(
        "--brief",
        action="store_true",
        help="leave out what only the build, or only the target, can do; operations in one table",
    )
    parser.add_argument("--svg", metavar="FILE", help="draw the terminal's picture into FILE and print nothing")
    parser.add_argument("--json", action="store_true", help="print JSON with stable keys")


def add_version(parser: argparse.ArgumentParser) -> None:
    """The option that says capgate's version and ends."""
    parser.add_argument("--version", action="version", version=f"capgate {_installation.version()}")


def run(arguments: argparse.Namespace, dropins: Dropins | None = None) -> int:
    """Print the report that the parsed ``arguments`` ask for; returns the exit status.

    dropins : as in :func:`collect`
    """
    outputs: Outputs[dict[str, Any]] = Outputs()
    if arguments.svg is not None:
        target, brief = f" --target {arguments.target}" if arguments.target else "", " --brief" if arguments.brief else ""
        title = f"capgate report{target}{brief}"
        outputs.add("--svg", arguments.svg, lambda report: draw(report, title, arguments.brief))
    with asking(), prints_to_stderr():
        report = collect(arguments.target, dropins)
    with outputs.written(report):
        if arguments.json and arguments.svg is None:
            print(json.dumps(report, indent=2))
        elif arguments.svg is None:
            show(report, brief=arguments.brief)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m capgate.compat``: the report without the kernels."""

    def command() -> int:
        parser = argparse.ArgumentParser(prog="python -m capgate.compat", description=__doc__)
        add_arguments(parser)
        add_version(parser)
        return run(parser.parse_args(argv))

    return conclude(command, ends_process=argv is None)
