"""``capgate record``: what a command launches, noted for ``capgate check``."""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from ..command import CommandError, asking, in_words
from ..outputs import Outputs
from ..targets import parse
from . import recordings, startup
from .recorder import CONFIGS

OTHERWISE = "recording.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``capgate record``."""
    parser.add_argument("-o", "--output", default=OTHERWISE, metavar="FILE", help=f"the recording ({OTHERWISE})")
    parser.add_argument(
        "--no-run", action="store_true", help="note launches and do not run them: tensors may be on the CPU or the meta device"
    )
    parser.add_argument(
        "--fake", action="store_true", help="as --no-run, with torch's fake tensors: cuda ones too, and none takes memory"
    )
    parser.add_argument("--target", default="cuda:90", help="with these: what launchers are told that the GPU is (cuda:90)")
    parser.add_argument(
        "--configs", choices=CONFIGS, default=CONFIGS[0], help="of an autotuned kernel: the chosen configuration, or all"
    )
    parser.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="command", help="-- and the command, such as: -- python script.py"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status; 1 where it succeeds and launches nothing."""
    command = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
    if not command:
        raise CommandError("record: no command given, needs one such as: capgate record -- python script.py")
    with asking():
        target = parse(arguments.target)
        if not target.is_gpu:
            raise ValueError(f"target: got {target}, needs a GPU such as hip:gfx950 or cuda:90")
    outputs: Outputs[recordings.Recording] = Outputs()
    outputs.add("--output", arguments.output, recordings.text)
    runs = not (arguments.no_run or arguments.fake)
    options = {"run": runs, "fake": arguments.fake, "configs": arguments.configs, "target": str(target), "root": os.getcwd()}
    with TemporaryDirectory(prefix="capgate-record-") as name:
        folder = Path(name)
        status = _run(command, folder, options)
        found = [recordings.DOCUMENT.read(str(file)) for file in startup.recorded(folder)]
    if not found:
        print("capgate: no launch of a Triton kernel was noted, and no file written", file=sys.stderr)
        return status or 1
    recording = recordings.merged(found)
    with outputs.written(recording):
        launches = recording["launches"]
        kernels = len({recordings.title(launch) for launch in launches})
        print(f"capgate: kernels: {kernels}, unlike launches: {len(launches)}, in {arguments.output}", file=sys.stderr)
        for launch in launches:
            if launch["unrecorded"]:
                print(f"capgate: {recordings.title(launch)}: cannot be recorded: {launch['unrecorded']}", file=sys.stderr)
    return status


def _run(command: list[str], folder: Path, options: dict[str, object]) -> int:
    """The command's exit status, as a shell gives it; its output is its own."""
    try:
        process = subprocess.Popen(command, env=startup.environment(folder, options))
    except OSError as error:
        raise CommandError(f"{command[0]}: {in_words(error)}") from error
    while True:
        try:
            status = process.wait()
        except KeyboardInterrupt:  # it has heard of it as well, and may have something to end
            continue
        return 128 - status if status < 0 else status
