"""Child processes that no parent leaves behind, whatever ends it: SIGKILL runs no handler."""

import fcntl
import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any


class Child(subprocess.Popen[str]):
    """A command in a process group of its own, which ends with this process, with what it starts.

    The kernel sees to it: only this process holds the writing end of a pipe, and when that closes, for which the kernel needs
    nobody's help, SIGKILL goes to the group. A compiler that holds Python's lock hears of it too, and so does ptxas.
    """

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        """As ``subprocess.Popen``, in text."""
        self._watched, self._held = os.pipe()
        try:
            super().__init__(command, text=True, start_new_session=True, pass_fds=(self._watched,), **options)
        except BaseException:
            self._let_go()
            raise
        with suppress(ProcessLookupError):  # it may have ended already
            fcntl.fcntl(self._watched, fcntl.F_SETOWN, -self.pid)
            fcntl.fcntl(self._watched, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(self._watched, fcntl.F_SETFL, fcntl.fcntl(self._watched, fcntl.F_GETFL) | os.O_ASYNC)

    def kill(self) -> None:
        """End the group: also what a child that has ended left behind."""
        self._let_go()
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def __exit__(self, *error: Any) -> None:
        self.kill()
        super().__exit__(*error)

    def _let_go(self) -> None:
        for end in (self._held, self._watched):
            if end >= 0:
                os.close(end)
        self._held = self._watched = -1
