"""Compiles in forks of one process that has imported torch and Triton, which takes two seconds: for tests/conftest.py.

``python -m support.compile_server`` is that process. Each line that it reads is JSON, a module of capgate's that answers a
request on standard input, the request, and a file for the answer; each line that it prints is the fork's status.
"""

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from .processes import TESTS


class Servers:
    """Such processes, one for each environment, in which capgate's switches are, until all are stopped."""

    def __init__(self) -> None:
        self._running: dict[tuple[tuple[str, str], ...], subprocess.Popen[str]] = {}

    def stop(self) -> None:
        """They end with their input."""
        for process in self._running.values():
            process.communicate()

    def answers(self, module: str, request: dict[str, Any], environment: Mapping[str, str]) -> "Forked":
        """In the place of capgate's Answers: the same jobs, in the same module, in a fork; without a limit of time."""
        with NamedTemporaryFile("r", suffix=".jsonl") as file:
            status = self._ask(environment, [module, request, file.name])
            return Forked([json.loads(line) for line in file], status)

    def _ask(self, environment: Mapping[str, str], line: list[Any]) -> int:
        """The status with which the fork ended."""
        variables = {name: value for name, value in environment.items() if not name.startswith("PYTEST")}  # not a test's name
        variables["PYTHONPATH"] = os.pathsep.join([str(TESTS), variables["PYTHONPATH"]])
        key = tuple(sorted(variables.items()))
        if key not in self._running:
            command = [sys.executable, "-m", __name__]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self._running[key] = subprocess.Popen(command, **pipes, text=True, env=variables)
        process = self._running[key]
        assert process.stdin is not None
        assert process.stdout is not None
        print(json.dumps(line), file=process.stdin, flush=True)
        return int(process.stdout.readline())


class Forked:
    """What a fork has answered: each job's row, until it ended."""

    def __init__(self, rows: list[dict[str, Any]], status: int) -> None:
        self.gone = False
        self._rows, self._status = rows, status

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, *error: object) -> None:
        """It has ended."""

    def answer(self, timeout: float) -> dict[str, Any]:
        """The keys that the next job's row gets."""
        row: dict[str, Any] = {}
        while "compiled" not in row:
            if not self._rows:
                self.gone = True
                return {**row, "compiled": False, "error": f"the compiler ended with status {self._status}"}
            row |= self._rows.pop(0)
        return row


def main() -> None:
    """Fork for each line of standard input."""
    import torch  # noqa: F401
    import triton  # noqa: F401

    import capgate.compat.offline.child  # noqa: F401
    from capgate import compat

    compat.operations()  # with the modules that define them

    for line in sys.stdin:
        module, request, file = json.loads(line)
        if not (process := os.fork()):
            answer(module, request, Path(file))
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


def answer(module: str, request: dict[str, Any], file: Path) -> None:
    """Run the module as a process of its own would, its standard input and output replaced; does not return."""
    status = 1
    try:
        sys.stdin = io.StringIO(json.dumps(request))
        os.dup2(os.open(file, os.O_WRONLY), 1)
        import_module(module).main()
        status = 0
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
