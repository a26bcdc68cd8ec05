"""Compiles in forks of one process that has imported torch and Triton, which takes two seconds: for tests/conftest.py.

``python -m support.compile_server`` is that process. Each line that it reads is JSON, a module that answers a request on
standard input, the request, and a file for the answer; each line that it prints is the fork's status.
"""

import io
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryFile
from typing import IO, Any

from capgate.compat.offline.answers import ending, with_cause

from .processes import TESTS

COMMAND = (sys.executable, "-m", "support.compile_server")


class ServerDiedError(RuntimeError):
    """Such a process ended before it had answered."""


class Server:
    """One such process.

    environment : its variables
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._errors: IO[bytes] = TemporaryFile()  # noqa: SIM115 - lives as long as the process
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
        self._process = subprocess.Popen(command, **pipes, text=True, env=environment)

    def stop(self) -> None:
        """It ends with its input."""
        self._process.communicate()
        self._errors.close()

    def ask(self, line: list[Any]) -> tuple[int, str]:
        """The status with which the fork for a line ended, and what it said; raises ServerDiedError."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        heard = os.fstat(self._errors.fileno()).st_size
        with suppress(BrokenPipeError):  # it has died, and will not answer either
            print(json.dumps(line), file=process.stdin, flush=True)
        answered = process.stdout.readline()
        said = os.pread(self._errors.fileno(), os.fstat(self._errors.fileno()).st_size - heard, heard).decode(errors="replace")
        if answered:
            return int(answered), said
        death = ending(f"compile server, asked for {json.dumps(line)},", process.wait())
        raise ServerDiedError(with_cause(death, said, died=True))


class Servers:
    """Such processes, one for each environment, in which capgate's switches are, until all are stopped."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self._command = command
        self._running: dict[tuple[tuple[str, str], ...], Server] = {}

    def stop(self) -> None:
        """All of them end."""
        for server in self._running.values():
            server.stop()

    def answers(self, module: str, request: dict[str, Any], environment: Mapping[str, str]) -> "Forked":
        """In the place of capgate's Answers: the same jobs, in the same module, in a fork; without a limit of time.

        Raises ServerDiedError where not the fork dies, but the process that was to fork; the next request starts a new one.
        """
        variables = {name: value for name, value in environment.items() if not name.startswith("PYTEST")}  # not a test's name
        variables["PYTHONPATH"] = os.pathsep.join([str(TESTS), variables["PYTHONPATH"]])
        key = tuple(sorted(variables.items()))
        if key not in self._running:
            self._running[key] = Server(self._command, variables)
        with NamedTemporaryFile("r", suffix=".jsonl") as file:
            try:
                status, said = self._running[key].ask([module, request, file.name])
            except ServerDiedError:
                self._running.pop(key).stop()
                raise
            return Forked([json.loads(line) for line in file], status, said)


class Forked:
    """What a fork has answered: each job's row, until it ended."""

    def __init__(self, rows: list[dict[str, Any]], status: int, said: str) -> None:
        self.gone = False
        self._rows, self._status, self._said = rows, status, said

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
                return {
                    **row,
                    "compiled": False,
                    "error": with_cause(ending("compiler", self._status), self._said, died=True),
                }
            row |= self._rows.pop(0)
        row.pop("heard", None)
        return row

    def ending(self) -> str:
        return with_cause(ending("compiler", self._status), self._said, died=True)


def main() -> None:
    """Fork for each line of standard input."""
    import torch  # noqa: F401
    import triton.experimental.gluon  # noqa: F401 - of classic kernels, too, Triton asks whether they are written in it
    from triton.runtime.cache import triton_key

    import capgate.compat.offline.child  # noqa: F401
    from capgate import compat

    compat.operations()  # with the modules that define them
    # What each compile asks for, and a process remembers: versions, and a hash of Triton's files, a third of a second.
    compat.capabilities("cuda:90").why("torch")
    compat.capabilities("cuda:90").why("triton")
    triton_key()

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
    except BaseException:  # it must not go on as the server
        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
