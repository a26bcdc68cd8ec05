"""The files that a command writes: looked at before its work, written after it."""

import errno
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Generic, TypeVar

from .command import CommandError, in_words, printing

R = TypeVar("R")


@dataclass(frozen=True)
class _Output(Generic[R]):
    option: str
    file: str
    make: Callable[[R], str | bytes]


class Outputs(Generic[R]):
    """The files that a command was asked for.

    outputs.add("--json", arguments.json, json.dumps)
    results = measure()  # hours
    with outputs.written(results):
        show(results)
    """

    def __init__(self) -> None:
        self._outputs: list[_Output[R]] = []

    def add(self, option: str, file: str | Path, make: Callable[[R], str | bytes]) -> None:
        """Have ``file`` written with what ``make`` gives for the results. CommandError when it could not be written now."""
        try:
            _look_at(Path(os.path.realpath(file)))
        except OSError as error:
            raise CommandError(f"{option}: {file}: {in_words(error)}") from error
        self._outputs.append(_Output(option, str(file), make))

    @contextmanager
    def written(self, results: R) -> Iterator[None]:
        """Print the results meanwhile. The files are written whatever becomes of that and of each other.

        Raises CommandError with a line for each that could not be.
        """
        try:
            with printing():
                yield
        finally:
            error = sys.exc_info()[1]
            failed = [words for output in self._outputs if (words := _try_to_write(output, results))]
            if failed:
                raise CommandError(*(error.args if isinstance(error, CommandError) else ()), *failed)


def look_at_folder(option: str, folder: str) -> None:
    """Make ``folder`` where it does not exist. CommandError when no file could be written there."""
    try:
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        _look_at(path / "file")
    except OSError as error:
        raise CommandError(f"{option}: {folder}: {in_words(error)}") from error


def _look_at(path: Path) -> None:
    """OSError for a file that could not be written; leaves nothing behind."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if mode is not None and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    if not _takes_in_place(path):
        beside = _beside(path)
        with open(beside, "xb"):
            beside.unlink()


def _try_to_write(output: _Output[R], results: R) -> str | None:
    """Write one file; returns why not."""
    try:
        content = output.make(results)
        write_whole(Path(os.path.realpath(output.file)), content.encode() if isinstance(content, str) else content)
    except (
        Exception
    ) as error:  # drawing may fail in many ways, and the other files and the tables are worth more than a traceback
        return f"{output.option}: {output.file}: {in_words(error)}"
    return None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all: what an earlier run wrote stays until all of this one's is on the disk."""
    if _takes_in_place(path):
        path.write_bytes(content)
        return
    beside = _beside(path)
    try:
        with open(beside, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # where quotas and network disks say that they are full
        if path.exists():
            shutil.copymode(path, beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _takes_in_place(path: Path) -> bool:
    """Whether a file cannot be replaced by another: a device, a pipe, or one in a folder that takes no new files."""
    return path.exists() and (not S_ISREG(path.stat().st_mode) or not os.access(path.parent, os.W_OK))


def _beside(path: Path) -> Path:
    return path.with_name(f".capgate-{secrets.token_hex(8)}")
