"""The ``capgate`` command."""

import argparse
from collections.abc import Callable, Sequence

from capgate.compat import report, versions
from capgate.compat.check import command as check
from capgate.compat.check import record_command
from capgate.compat.command import CommandError, conclude

from . import dropin
from .tools import compile_command
from .tools.bench import command as bench
from .tools.compare import command as compare
from .tools.demo import command as demo
from .tools.verify import command as verify
from .tools.warm import command as warm

# Each: help line, what adds its options, what runs it and returns the exit status.
COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]] = {
    "report": (
        "versions, GPUs, capabilities with reasons, and the variant each operation takes",
        report.add_arguments,
        lambda arguments: report.run(arguments, dropin.states),
    ),
    "demo": ("prefill and decode of serving-shaped batches on whatever this machine has", demo.add_arguments, demo.run),
    "compile": (
        "compile the variants for a GPU that need not be here: registers, spills, LDS, the hot loop",
        compile_command.add_arguments,
        compile_command.run,
    ),
    "warm": ("compile what a deployment will launch into Triton's cache", warm.add_arguments, warm.run),
    "record": ("note what a command launches, for check", record_command.add_arguments, record_command.run),
    "check": ("compile a recording, or operations, for many Tritons and GPUs", check.add_arguments, check.run),
    "verify": ("hold every variant that this machine takes against float64, and time it", verify.add_arguments, verify.run),
    "bench": ("time the variants here", bench.add_arguments, bench.run),
    "compare": (
        "put runs of bench on several stacks beside each other, or formats",
        compare.add_arguments,
        compare.run,
    ),
}
WITHOUT_TORCH = ("report", "record", "check", "compare")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status: 2 for what cannot be done, 130 after Ctrl-C, 141 when nobody reads on."""
    return conclude(lambda: _run(argv), ends_process=argv is None)


def _run(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="capgate", description="Write a GPU kernel once; run it on the Triton you have.")
    report.add_version(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, (words, add_arguments, run) in COMMANDS.items():
        command = commands.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".")
        add_arguments(command)
        command.set_defaults(run=run)
    arguments = parser.parse_args(argv)
    if arguments.command not in WITHOUT_TORCH and versions.find("torch").text is None:
        raise CommandError(f"this command needs torch; {', '.join(WITHOUT_TORCH[:-1])} and {WITHOUT_TORCH[-1]} work without it")
    status: int = arguments.run(arguments)
    return status
