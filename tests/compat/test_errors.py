"""errors: one line keeps the reason and the command; what the machine did is not taken for what a compiler says."""

import errno
import subprocess
from typing import Any

import pytest

from capgate.compat._errors import LONGEST, of_the_machine, summary


def made(kind: str, text: str, module: str = "triton.compiler.errors", **attributes: Any) -> Exception:
    """An error of a class with this name, as a module of Triton defines it."""
    error: Exception = type(kind, (RuntimeError,), {"__module__": module})(text)
    vars(error).update(attributes)
    return error


PTXAS = """Internal Triton PTX codegen error
`ptxas` stderr:
ptxas /tmp/k.ptx, line 27; error   : Feature 'wgmma' not supported on .target 'sm_120a'
ptxas fatal   : Ptx assembly aborted due to errors

Repro command: /opt/ptxas -v --gpu-name=sm_120a /tmp/k.ptx -o /tmp/k.o
"""
SOURCE = "at 3:4:\ndef kernel(x):\n    # loads\n    tl.load(x + 1)\n    ^"
MLIR = """kernel.py:14:12: error: 'tt.dot' op expected operands of one type
%5 = tt.dot %3, %4
kernel.py:14:12: note: see current operation
error: Failures have been detected while processing an MLIR pass pipeline
"""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            made("PTXASError", f"PTXAS error: {PTXAS}", error_message=PTXAS),
            "PTXASError: ptxas /tmp/k.ptx, line 27; error : Feature 'wgmma' not supported on .target 'sm_120a'"
            " (Repro command: /opt/ptxas -v --gpu-name=sm_120a /tmp/k.ptx -o /tmp/k.o)",
        ),
        (made("CompilationError", f"{SOURCE}\nno such overload"), "CompilationError: no such overload"),
        (made("CompilationError", f"{SOURCE}\ntwo\nlines"), "CompilationError: two lines"),
        (made("CompilationError", SOURCE), "CompilationError: at 3:4: tl.load(x + 1)"),
        (made("CompilationError", f"{SOURCE}\n{SOURCE}\nof a callee"), "CompilationError: of a callee"),
        (made("CompilationError", "at 3:4:\n <source unavailable>\nno such overload"), "CompilationError: no such overload"),
        (made("CompilationError", f"{SOURCE}\n{MLIR}"), "CompilationError: " + MLIR.splitlines()[0]),
        (RuntimeError(MLIR), "RuntimeError: " + MLIR.splitlines()[0]),
        (RuntimeError("LLVM ERROR: Cannot select: t1\nIn function: kernel"), "RuntimeError: LLVM ERROR: Cannot select: t1"),
        (
            RuntimeError("CUDA error: invalid device function\nFor debugging consider CUDA_LAUNCH_BLOCKING=1\n"),
            "RuntimeError: CUDA error: invalid device function",
        ),
        (
            made("OutOfResources", "out of resource: shared memory, Required: 300000, Hardware limit: 232448."),
            "OutOfResources: out of resource: shared memory, Required: 300000, Hardware limit: 232448.",
        ),
        (
            TypeError("incompatible arguments:\n  1. (int)\n\nInvoked with: 'x'"),
            "TypeError: incompatible arguments: 1. (int) Invoked with: 'x'",
        ),
        (AssertionError(), "AssertionError: no message"),
        (RuntimeError(f"first\n{'x' * LONGEST}\nlast"), "RuntimeError: first ... last"),
        (
            subprocess.CalledProcessError(1, ["ld.lld", "k.o"], stderr=b"ld.lld: error: undefined symbol: f\n>>> k.o\n"),
            "CalledProcessError: ld.lld: error: undefined symbol: f"
            " (Command '['ld.lld', 'k.o']' returned non-zero exit status 1.)",
        ),
        (subprocess.CalledProcessError(1, "cc"), "CalledProcessError: Command 'cc' returned non-zero exit status 1."),
    ],
    ids=lambda value: value.split(":")[0] if isinstance(value, str) else "",
)  # fmt: skip
def test_a_line_keeps_what_names_the_reason(error: Exception, line: str) -> None:
    assert summary(error) == line


def test_an_error_without_words_has_those_of_its_cause() -> None:
    error = made("CompilationError", SOURCE)
    error.__cause__ = made("CompileTimeAssertionFailure", f"{SOURCE}\ntakes no such SIZE")
    assert summary(error) == "CompilationError: CompileTimeAssertionFailure: takes no such SIZE"


def test_an_error_that_cannot_be_printed_has_its_type() -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert summary(MuteError()) == "MuteError: no message"


def test_a_line_is_one_line_of_a_bounded_length() -> None:
    line = summary(RuntimeError("x" * 10 * LONGEST))
    assert len(line) < 2 * LONGEST


def _raised_from(outer: Exception, inner: BaseException, named: bool) -> Exception:
    try:
        try:
            raise inner
        except BaseException as error:
            raise outer from (error if named else None)
    except Exception as error:
        return error


KILLED, CRASHED = subprocess.CalledProcessError(-9, "ptxas"), subprocess.CalledProcessError(-11, "ptxas")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        PermissionError(errno.EACCES, "Permission denied", "/root/.triton"),
        FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"),
        NotADirectoryError(errno.ENOTDIR, "Not a directory"),
        subprocess.TimeoutExpired("ptxas", 60),
        KILLED,
        subprocess.CalledProcessError(137, "ptxas"),
        subprocess.CalledProcessError(1, "ld.lld", stderr="ld.lld: error: k.hsaco: No space left on device"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("HIP error: hipErrorOutOfMemory"),
        made("OutOfMemoryError", "", "torch"),
        made("PTXASError", "`ptxas` stderr:\nptxas fatal   : Memory allocation failure\n"),
        made("PTXASError", "`ptxas` stderr:\nptxas fatal   : Could not open output file '/tmp/k.o'\n"),
        ImportError("libtriton.so: failed to map segment: Cannot allocate memory"),
        _raised_from(made("CompilationError", "x"), MemoryError(), named=True),
        _raised_from(made("CompilationError", "x"), MemoryError(), named=False),
        _raised_from(made("PTXASError", "`ptxas` failed with error code -9"), KILLED, named=False),
        _raised_from(RuntimeError("wrapped"), OSError(errno.EIO, "Input/output error"), named=True),
    ],
    ids=lambda error: f"{type(error).__name__}",
)
def test_the_machine(error: Exception) -> None:
    assert of_the_machine(error)


@pytest.mark.parametrize(
    "error",
    [
        made("OutOfResources", "out of resource: shared memory, Required: 300000, Hardware limit: 232448."),
        made("CompilationError", f"{SOURCE}\nno such overload"),
        made("PTXASError", PTXAS),
        RuntimeError("PassManager::run failed"),
        AssertionError("not enough registers"),
        NotImplementedError("x"),
        CRASHED,
        OSError("libamd.so: cannot open shared object file: No such file or directory"),
        ModuleNotFoundError("No module named 'x'"),
        _raised_from(made("PTXASError", "`ptxas` raised SIGSEGV"), CRASHED, named=False),
        _raised_from(ImportError("gone"), FileNotFoundError(errno.ENOENT, "no settings"), named=False),
    ],
    ids=lambda error: f"{type(error).__name__}",
)
def test_not_the_machine(error: Exception) -> None:
    assert not of_the_machine(error)


def test_what_the_caller_was_handling_is_no_part_of_it() -> None:
    handled = OSError(errno.ENOSPC, "No space left on device")
    error = _raised_from(made("CompilationError", f"{SOURCE}\nno such overload"), handled, named=False)
    assert of_the_machine(error)
    assert not of_the_machine(error, handled)
