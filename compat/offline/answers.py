"""Jobs that processes of their own answer, since a compiler may abort, hang or print what it likes.

:class:`Answers` starts the process, in which :func:`serve` reads the request and prints lines of JSON. Their keys are added to
the job's row; the line with the key ``compiled`` is the job's last, and has ``heard``: where standard error ends by then.
"""

import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from .. import _switches
from .._errors import summary
from .children import Child

TIMEOUT = 120.0  # seconds for one compile, and for a process to start

Row = dict[str, Any]
Answer = Callable[[Any], Iterable[Row]]


def serve(begin: Callable[[Row], Answer]) -> None:
    """Answer the request on standard input.

    begin : gets the request; what it returns gives the parts of a job's row
    """
    request = json.load(sys.stdin)
    # Compilers print to standard output what they like: it becomes standard error, and the rows get a channel of their own.
    rows = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    answer = begin(request)
    for job in request["jobs"]:
        try:
            for row in answer(job):
                print(json.dumps(row | _heard() if "compiled" in row else row, default=str), file=rows)
        except Exception as error:  # a compiler may fail in any way; the next job may not
            print(json.dumps({"compiled": False, "error": summary(error)} | _heard()), file=rows)


def _heard() -> Row:
    """How many bytes of standard error belong to jobs up to this one: the next one writes before this one's row is read."""
    sys.stdout.flush()
    sys.stderr.flush()
    return {"heard": os.lseek(2, 0, os.SEEK_CUR)}


def environment() -> dict[str, str]:
    """This process's modules and switches, for one that compiles: Triton does not interpret there."""
    return {
        **{name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
        "PYTHONSAFEPATH": "1",
        "CAPGATE_DISABLE": ",".join(_switches.current().disabled),
        "CAPGATE_ENABLE": ",".join(_switches.current().enabled),
    }


class Answers:
    """A process that answers one job after the other; ``gone`` once it has died or was killed.

    module : what it runs, which calls :func:`serve`
    request : what it reads, of JSON types; its ``jobs`` are answered in order
    environment : see :func:`environment`
    called : what an error calls the process
    """

    def __init__(self, module: str, request: dict[str, Any], environment: Mapping[str, str], called: str = "compiler") -> None:
        self.gone = False
        self._called = called
        self._heard = 0  # bytes of its standard error that belong to earlier jobs
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - __exit__ closes it
        self._process = Child(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        try:
            assert self._process.stdin is not None
            with suppress(BrokenPipeError), self._process.stdin as stdin:  # it may have died at once; answer() says of what
                json.dump(request, stdin)
        except BaseException:  # such as Ctrl-C: nobody else will end it
            self._kill()
            raise

    def __enter__(self) -> "Answers":
        return self

    def __exit__(self, *error: object) -> None:
        self._kill()
        self._listener.join()
        self._errors.close()

    def answer(self, timeout: float) -> dict[str, Any]:
        """The keys that the next job's row gets. The first line may wait for the process to start; then the limit holds."""
        row: dict[str, Any] = {}
        while "compiled" not in row:
            try:
                line = self._lines.get(timeout=timeout if row else max(timeout, TIMEOUT))
            except queue.Empty:
                self._kill()
                row |= _broken_off(row, with_cause(f"no result within {timeout:g} s", self._said()))
                break
            if not line:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(10)
                self._kill()
                row |= _broken_off(row, with_cause(ending(self._called, self._process.returncode), self._said(), died=True))
                break
            row |= json.loads(line)
        if "heard" in row:
            said = self._said(row.pop("heard"))
            if row["compiled"] is False and row.get("accepted"):
                row["error"] = with_cause(row["error"], said)
        return row

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            for line in stdout:
                self._lines.put(line)
        self._lines.put("")

    def _said(self, end: int | None = None) -> str:
        """What it has written to standard error since the last time, up to a byte; read without moving the offset that it
        writes at."""
        file = self._errors.fileno()
        text = os.pread(file, (os.fstat(file).st_size if end is None else end) - self._heard, self._heard)
        self._heard += len(text)
        return text.decode(errors="replace")

    def _kill(self) -> None:
        self.gone = True
        self._process.kill()
        self._process.wait()


def _broken_off(row: dict[str, Any], error: str) -> dict[str, Any]:
    """What ends a row whose process gave no more: the compile has failed, unless only its figures were left to read."""
    if "seconds" in row:
        return {"compiled": True, "error": None, "unread": [f"figures: {error}"]}
    return {"compiled": False, "error": error}


def ending(called: str, status: int) -> str:
    return f"the {called} died of {signal.Signals(-status).name}" if status < 0 else f"the {called} exited with status {status}"


def with_cause(error: str, said: str, *, died: bool = False) -> str:
    """An error with the line that matters of what was written to standard error, where a failed pass may write 200 KB.

    died : whether the last line is worth repeating where none looks like a cause
    """
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    causes = [line for line in lines if re.search(r"\berror:|LLVM ERROR|Assertion .* failed|^\w*Error:", line)]
    cause = next(iter(causes), lines[-1] if died and lines else "")
    return f"{error}: {cause[:300]}" if cause else error
