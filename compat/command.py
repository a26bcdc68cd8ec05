"""How a command ends: its status, its last words on standard error, and what its standard output is for."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress

from ._capabilities import CapabilityError
from ._errors import summary
from .terminal import plain

# As a shell gives them for a process that died of the signal.
INTERRUPTED = 128 + signal.SIGINT
PIPE_CLOSED = 128 + signal.SIGPIPE
REFUSED = 2  # as argparse ends, too

# What pip brings along, by the names that are imported.
DEPENDENCIES = {
    "fastjsonschema": "fastjsonschema",
    "packaging": "packaging",
    "pynvml": "nvidia-ml-py",
    "rich": "rich",
    "rocm_bootstrap": "rocm-bootstrap",
}


class CommandError(Exception):
    """What a command says, a line for each argument, before it ends with status 2."""


@contextmanager
def asking() -> Iterator[None]:
    """While a command finds out what it was asked for: wrong values, files and capabilities become CommandErrors."""
    try:
        yield
    except (ValueError, OSError, CapabilityError) as error:
        raise CommandError(str(error)) from error


@contextmanager
def printing() -> Iterator[None]:
    """While a command prints: an OSError is standard output's, and a CommandError; a closed pipe is none."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CommandError(f"standard output: {in_words(error)}") from error


def conclude(command: Callable[[], int], *, ends_process: bool) -> int:
    """Run a command and return its status; what cannot be done is said in a line, without a traceback.

    ends_process : whether nothing but the interpreter's end follows: what libraries print there goes to standard error
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # an ASCII terminal has no ±, and a table must not fail for it
    try:
        try:
            return command()
        finally:
            with printing():
                if sys.stdout is not None:
                    sys.stdout.flush()  # here, where a full disk can still be reported
    except KeyboardInterrupt:
        return _refuse("interrupted", status=INTERRUPTED)
    except BrokenPipeError:  # of standard output: whoever reads it has seen enough
        return PIPE_CLOSED
    except CommandError as error:
        return _refuse(*error.args)
    except OSError as error:
        return _refuse(f"{error.filename}: {in_words(error)}" if error.filename else in_words(error))
    except ModuleNotFoundError as error:
        if _distribution(error) is None:
            raise
        return _refuse(in_words(error))
    finally:
        if not _give_up_output() and ends_process:
            with suppress(OSError):
                os.dup2(2, 1)


@contextmanager
def prints_to_stderr() -> Iterator[None]:
    """Whatever is printed meanwhile, by Python or by C, goes to standard error: standard output has the command's own words."""
    ours = sys.stdout
    _flush(ours)
    try:
        kept = os.dup(1)
    except OSError:  # closed: nothing has to be kept clean
        kept = None
    if kept is not None:
        _point(1, at=2)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _flush(ours)
        if kept is not None:
            os.dup2(kept, 1)
            os.close(kept)


def in_words(error: BaseException) -> str:
    """An error in the words of a command's last line."""
    if isinstance(error, CommandError | ValueError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if distribution := _distribution(error):
        return f"needs {distribution}, which is not installed: pip install {distribution} brings it"
    return summary(error)


def _distribution(error: BaseException) -> str | None:
    """What has to be installed where that is what an error is about."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    return DEPENDENCIES.get((missing or "").partition(".")[0])


def _refuse(*lines: str, status: int = REFUSED) -> int:
    if sys.stderr is not None:
        with suppress(OSError):  # nobody can be told that nobody can be told
            for line in lines:
                print(f"capgate: {plain(line)}", file=sys.stderr)
    return status


def _give_up_output() -> bool:
    """Throw away what standard output does not take, or the interpreter would fail on it again; whether there is any."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        _point(sys.stdout.fileno(), at=None)
        return True
    return False


def _point(descriptor: int, *, at: int | None) -> None:
    """Let a descriptor mean what another one does, or nothing where there is none."""
    if at is not None:
        with suppress(OSError):
            os.dup2(at, descriptor)
            return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _flush(ours: object) -> None:
    """Send what Python and C have buffered to where it was written to."""
    for stream in (ours, sys.__stdout__):
        if hasattr(stream, "flush"):
            with suppress(OSError, ValueError):  # full or closed: the command's own words will say so
                stream.flush()
    ctypes.CDLL(None).fflush(None)
