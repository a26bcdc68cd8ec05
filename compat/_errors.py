"""What other people's errors say, in one line, and whether the machine and not the kernel is to blame.

Compilers put source, commands and notes around the one line that names the reason; a machine without memory or disk speaks
through whatever was running at that time.
"""

import errno
import os
import re
import signal
from collections.abc import Iterator

LONGEST = 400  # characters of a reason in a warning or a table's cell

# ptxas, LLVM, MLIR, lld and C compilers: "ptxas fatal   : ...", "kernel.py:8:0: error: ...", "LLVM ERROR: ...".
_DIAGNOSTIC = re.compile(r"(?:^|[^\w])(?:fatal(?: error)?|error)\s*:", re.IGNORECASE)
_COMMAND = re.compile(r"\s*(?:\w+ )?command\s*:", re.IGNORECASE)
_SOURCE = re.compile(r"\s*at \d+:\d+:\s*$")  # Triton shows a kernel's source up to a caret, and behind it what is wrong
_CARET = re.compile(r"\s*(?:\^|<source (?:unavailable|empty)>)\s*$")

# What the operating system, allocators and tools that cannot write say, whatever error carries it.
_ERRNOS = ("ENOMEM", "ENOSPC", "EDQUOT", "EMFILE", "ENFILE", "EAGAIN", "EIO", "EROFS", "EACCES", "ESTALE", "EFBIG")
_TROUBLE = re.compile(
    "|".join(
        [
            r"out[ _]?of[ _]?memory",
            r"memory allocation fail",
            r"bad_alloc",
            r"could not (?:open|write|create)\b",
            r"(?:cannot|can't|failed to) (?:open|write|create) (?:the )?(?:in|out)put",
            *(re.escape(os.strerror(getattr(errno, name))) for name in _ERRNOS),
        ]
    ),
    re.IGNORECASE,
)

# How a program dies of its own faults; any other signal (the kernel's OOM killer, an operator) came from outside.
_OWN_FAULTS = {signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGBUS, signal.SIGTRAP, signal.SIGSYS}


def summary(error: BaseException) -> str:
    """An error in one line: its type, the line that names the reason, and behind it the command that failed."""
    reason, command = _reason(error)
    return f"{type(error).__name__}: {_shortened(reason)}" + (f" ({_shortened(command)})" if command else "")


def of_the_machine(error: BaseException, handled: BaseException | None = None) -> bool:
    """Whether ``error`` came of memory, disk, files, permissions or a signal, so that trying again may well succeed.

    handled : what was being handled when the failing call began, and so is no part of its failure
    """
    return any(_is_trouble(link) for link in _chain(error, handled))


def _is_trouble(error: BaseException) -> bool:
    from subprocess import CalledProcessError, SubprocessError  # 5 ms that importing this package need not take

    if isinstance(error, CalledProcessError):
        code = -error.returncode if error.returncode < 0 else error.returncode - 128  # a shell adds 128
        if code in signal.valid_signals() and code not in _OWN_FAULTS:
            return True
        return bool(_TROUBLE.search(_reason(error)[0]))
    if isinstance(error, OSError):
        return error.errno is not None or bool(_TROUBLE.search(str(error)))  # a library that does not load has no number
    if isinstance(error, MemoryError | SubprocessError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return bool(_TROUBLE.search(_reason(error)[0]))


def _chain(error: BaseException, handled: BaseException | None) -> Iterator[BaseException]:
    """``error`` and what it was raised from; behind Triton's own errors also what they replaced without naming it."""
    link: BaseException | None = error
    seen: list[BaseException] = []
    while link is not None and link is not handled and link not in seen:
        yield link
        seen.append(link)
        replaced = link.__context__ if type(link).__module__.startswith("triton.") else None
        link = link.__cause__ or replaced


def _reason(error: BaseException) -> tuple[str, str]:
    """The words that name the reason, and the command that failed, each ``""`` where there are none."""
    lines = _lines(error)
    commands = [line for line in lines if _COMMAND.match(line)]
    lines = [line for line in lines if line not in commands]
    command = commands[0].strip() if commands else ""
    if type(error).__name__ == "CalledProcessError":
        texts = getattr(error, "stderr", None), getattr(error, "output", None)
        said = [line for text in texts for line in _decoded(text).splitlines() if line.strip()]
        lines, command = (said, " ".join(lines)) if said else (lines, "")
    if lines and _SOURCE.match(lines[0]):
        return _of_source(lines, error.__cause__), command
    diagnostics = [line for line in lines if _DIAGNOSTIC.search(line)]
    if diagnostics and len(lines) > 1:
        return diagnostics[0], command
    whole = " ".join(lines)
    if len(whole) > LONGEST and len(lines) > 1:
        whole = f"{lines[0]} ... {lines[-1]}"
    return whole or "no message", command


def _of_source(lines: list[str], cause: BaseException | None) -> str:
    """What Triton says behind a kernel's source; where it says nothing, the error's cause, or else the line it points at."""
    caret = next((number for number, line in enumerate(lines) if _CARET.match(line)), len(lines))
    message = lines[caret + 1 :]
    if message and _SOURCE.match(message[0]):  # of a function that the kernel calls
        return _of_source(message, cause)
    if message:
        return next((line for line in message if _DIAGNOSTIC.search(line)), " ".join(message))
    if cause is not None:
        return summary(cause)
    return f"{lines[0].strip()} {lines[caret - 1].strip()}"


def _lines(error: BaseException) -> list[str]:
    try:
        text = getattr(error, "error_message", None) or str(error)  # Triton's errors: without the headline
        text = text if isinstance(text, str) else str(error)
    except Exception:  # somebody else's __str__ may fail in any way; the type is still worth saying
        return []
    return [line for line in text.splitlines() if line.strip()]


def _decoded(text: str | bytes | None) -> str:
    return text.decode(errors="replace") if isinstance(text, bytes) else text or ""


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
