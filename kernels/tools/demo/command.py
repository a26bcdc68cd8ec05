"""``capgate demo``: prefill and decode through every variant that runs here, and which variant would run on which stack."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from capgate.compat.command import CommandError, asking
from capgate.compat.outputs import Outputs
from capgate.compat.terminal import console as plain_console

from . import stacks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``capgate demo``."""
    parser.add_argument(
        "--stack",
        action="append",
        default=[],
        metavar="FOLDER",
        help="a folder with another Triton (pip install --no-deps --target FOLDER triton==3.5.1) for the table of stacks",
    )
    parser.add_argument("--json", metavar="FILE", help="also write the outcomes and the table of stacks")


def run(arguments: argparse.Namespace) -> int:
    """Score both batches and print what happened; returns 1 when a variant disagrees with float64."""
    import torch

    outputs: Outputs[dict[str, Any]] = Outputs()
    with asking():
        if arguments.json is not None:
            outputs.add("--json", arguments.json, lambda results: json.dumps(results, indent=2))
        for folder in arguments.stack:
            if not Path(folder).is_dir():
                raise ValueError(f"--stack: {folder}: is no folder")
    if not torch.cuda.is_available() and "triton" not in sys.modules:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it when imported: the classic variant runs on the CPU
    console = plain_console()
    outcomes = _score(console)
    results: dict[str, Any] = {"outcomes": [outcome._asdict() for outcome in outcomes], "stacks": []}
    with outputs.written(results):
        try:
            results["stacks"] = stacks.collect(arguments.stack)
        except subprocess.CalledProcessError as error:  # it has said why on standard error
            raise CommandError(f"--stack: a report ended with status {error.returncode}") from error
        stacks.show(console, results["stacks"])
    failed = [f"{outcome.variant} of {outcome.operation}" for outcome in outcomes if outcome.failed]
    if not failed:
        names = ", ".join(dict.fromkeys(outcome.variant for outcome in outcomes))
        console.print(f"Every variant that runs here ({names}) agrees with float64.", style="bold")
    if failed:
        print(f"capgate: disagreement in {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _score(console: Any) -> list[Any]:
    import torch

    from capgate import compat
    from capgate.compat import versions

    from ..bench.timing import this_device
    from . import decode, prefill

    device = this_device()
    name = "the CPU" if device.type == "cpu" else f"{torch.cuda.get_device_name(device)} ({compat.capabilities(device).target})"
    console.print(f"On {name} with Triton {versions.find('triton').found} and torch {torch.__version__}:\n")
    outcomes = prefill.score(console, device) + decode.score(console, device)
    console.print(
        "diff: DeepGEMM's calc_diff to float64 on the same fp8 operands; from bf16: to float64 on the activations before "
        "they were quantised; disturbed: cells that a row does not see and that are neither -inf nor, unclean, as they were.",
        style="dim",
    )
    if device.type == "cpu":
        words = "On the CPU the classic variant runs in Triton's interpreter: its time says nothing of a GPU."
        console.print(words, style="dim")
    console.print()
    return outcomes
