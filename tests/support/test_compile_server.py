"""What the process that forks for a compile says when it, or one of its forks, dies."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from support.compile_server import ServerDiedError, Servers

READS = "import os, signal, sys; line = sys.stdin.readline(); "
ENVIRONMENT = {**os.environ, "PYTHONPATH": ""}


def ask(code: str, times: int = 1) -> list[Any]:
    """The first row of each request to a server that is this program; of one that died its words."""
    servers, rows = Servers([sys.executable, "-c", code]), []
    for _ in range(times):
        try:
            rows.append(servers.answers("a.module", {"jobs": ["a job"]}, ENVIRONMENT).answer(0))
        except ServerDiedError as died:
            rows.append(str(died))
    servers.stop()
    return rows


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (READS + "os.kill(os.getpid(), signal.SIGKILL)", "died of SIGKILL"),
        (READS + "sys.exit('LLVM ERROR: out of memory')", "exited with status 1: LLVM ERROR: out of memory"),
        ("import a_module_that_is_missing", "exited with status 1: ModuleNotFoundError: No module named"),
    ],
    ids=["killed", "aborted", "never started"],
)
def test_a_server_that_dies_says_of_what(code: str, words: str) -> None:
    (died,) = ask(code)
    assert died.startswith("the compile server, asked for ")
    assert "a job" in died
    assert words in died


def test_the_next_request_gets_a_new_server(tmp_path: Path) -> None:
    mark = str(tmp_path / "died once")
    dies_once = f"{READS} found = os.path.exists({mark!r}); open({mark!r}, 'w').close(); found or sys.exit(3); print(0)"
    died, answered = ask(dies_once, times=2)
    assert "exited with status 3" in died
    assert answered["compiled"] is False


def test_a_fork_that_dies_says_of_what() -> None:
    """Without a row of its own; what it wrote to standard error has the cause."""
    code = READS + f"print('Assertion `x` failed', file=sys.stderr, flush=True); print({-signal.SIGABRT}, flush=True)"
    (row,) = ask(code)
    assert row == {"compiled": False, "error": "the compiler died of SIGABRT: Assertion `x` failed"}
