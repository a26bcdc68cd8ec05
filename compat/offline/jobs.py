"""Compile an operation's variants for a named target, on a machine that need not have it: what they take, and what they run.

Nothing is executed: figures are the compiler's own and counts of instructions. Compilers run in a child process with a time
limit, because Triton can abort or hang.

An operation can be compiled when it has :class:`capgate.compat.Examples`, and those of its variants that are a
:class:`capgate.compat.Kernel`.
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
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from capgate import compat

from .. import _switches, versions
from .._lookup import target_of
from ..spelling import nearest
from .children import Child

TIMEOUT = 120.0  # seconds for one compile, and for a process to start

# Every row has these keys, None where a compile did not get so far.
KEYS = (
    *("variant", "mode", "heads", "dim", "dtype", "accepted", "compiled", "error", "tuning"),
    *("vgprs", "agprs", "sgprs", "spills", "scratch_bytes", "lds_bytes", "waves_per_simd"),
    *("hot_loop", "matrix_instructions", "code_bytes", "seconds", "unread"),
)


class Job(NamedTuple):
    """One compile; parameters as in :func:`compile_variants`."""

    variant: str
    heads: int = 64
    dim: int = 128
    mode: str = "unclean"
    dtype: str | None = None


def compile_variants(
    operation: str,
    target: compat.Target | str,
    *,
    variant: str | None = None,
    heads: int = 64,
    dim: int = 128,
    dtype: str | None = None,
    modes: Sequence[str] | None = None,
    timeout: float = TIMEOUT,
    save: str | Path | None = None,
    started: Callable[[Job], None] = lambda job: None,
) -> dict[str, Any]:
    """Compile every variant that a target could take, also those that another one precedes.

    operation : name of an operation
    target : a Target or its text (``"hip:gfx950"``, ``"cuda:90"``)
    variant : this one alone; then one that the target cannot take is an error, and not a row that says so
    heads, dim, dtype : of a row of queries; dtype None is what the target's matrix instructions read
    modes : output modes, None for those that the operation's examples name: of logits "unclean" (cells outside the windows
        untouched), "clean" (set to -inf), "compressed"
    timeout : seconds for one compile
    save : folder for each compile's assembly (on NVIDIA PTX and SASS), TTGIR and argument order, as ``VARIANT.MODE.*``
    started : called with each compile before it begins

    Returns JSON types: ``triton``, ``torch`` (versions), ``operation``, ``target``, and ``variants``: a row for each variant
    and mode, except variants that have no kernel. Keys of a row:

    ``variant``, ``mode``, ``heads``, ``dim``, ``dtype``; ``accepted`` (whether the target could take it), ``compiled``,
    ``error`` (why not, or why it could not be saved, or None), ``tuning`` (the variant's own choice), ``seconds`` (Triton's,
    from source to machine code), those of :class:`.occupancy.Resources`, ``matrix_instructions`` (how often
    each stands in the kernel), ``unread`` (of what compiled, in words, which figures are None because nobody could read them),
    ``files`` if saved, and ``hot_loop``: None, or those of :class:`.disassembly.HotLoop` with ``keys`` for its
    ``products``: keys times rows that a wave completes in one pass.

    Raises ValueError for a name or size that does not exist, CapabilityError where Triton, torch or the named variant cannot
    serve, and OSError for a folder that cannot be written.
    """
    aim, known = target_of(target), operation_of(operation).variants
    if variant is not None and variant not in known:
        raise ValueError(f"variant: {operation} has no variant {variant!r}; {nearest(variant, known)}")
    asked: Sequence[str] = examples_of(operation).modes if modes is None else modes
    jobs = [Job(name, heads, dim, mode, dtype) for name in ([variant] if variant else known) for mode in asked]
    rows = compile_jobs(operation, aim, jobs, timeout=timeout, save=save, started=started)
    for row in rows:
        if variant is not None and (row["accepted"] is False or not row.get("kernel", True)):
            raise compat.CapabilityError(f"{operation} cannot compile variant {variant!r} for {aim}: {row['error']}")
    return {
        "triton": versions.find("triton").text,
        "torch": versions.find("torch").text,
        "operation": operation,
        "target": str(aim),
        "variants": [row for row in rows if row.pop("kernel", True)],
    }


def compile_jobs(
    operation: str,
    target: compat.Target | str,
    jobs: Sequence[Job],
    *,
    timeout: float = TIMEOUT,
    save: str | Path | None = None,
    started: Callable[[Job], None] = lambda job: None,
) -> list[dict[str, Any]]:
    """A row for each job, in their order; parameters and rows as in :func:`compile_variants`.

    A row of a variant that has no kernel has the key ``kernel``, False. Names of files have the sizes in which jobs differ.
    """
    aim, examples = target_of(target), examples_of(operation)
    if not aim.is_gpu:
        raise ValueError(f"target: got {aim}, needs a GPU such as hip:gfx950 or cuda:90")
    problems = [examples.problem(aim, job.heads, job.dim, job.mode, job.dtype) for job in jobs]
    for needed in ("triton", "torch"):
        compat.capabilities(aim).require(needed)
    if save:
        Path(save).mkdir(parents=True, exist_ok=True)
    request = {
        "operation": operation,
        "module": operation_of(operation).module,
        "target": str(aim),
        "save": str(save) if save else None,
    }
    rows: list[dict[str, Any]] = []
    while len(rows) < len(jobs):  # a child that dies or hangs takes one job with it
        left = [{**job._asdict(), "stem": _stem(job, jobs)} for job in jobs[len(rows) :]]
        with _Child({**request, "jobs": left}) as child:
            for job in jobs[len(rows) :]:
                started(job)
                problem = problems[len(rows)]
                asked = job._asdict()
                asked |= {
                    size: getattr(problem, size, None) for size in ("heads", "dim", "dtype")
                }  # None where there are no queries
                rows.append({**dict.fromkeys(KEYS), **asked, **child.answer(timeout)})
                if child.gone:
                    break
    return rows


def _stem(job: Job, jobs: Sequence[Job]) -> str:
    """Of the names of a job's files: with what makes it another one than the rest of the jobs."""
    several = len({(other.heads, other.dim, other.dtype) for other in jobs}) > 1
    sizes = [f"{job.heads}x{job.dim}", *([job.dtype] if job.dtype else [])] if several else []
    return ".".join([job.variant, job.mode, *sizes])


def operation_of(name: str) -> compat.Operation[Any]:
    """The operation of this name, of this process or of an installed distribution; ValueError where nobody defines it."""
    known = compat.operations()
    if name not in known:
        raise ValueError(f"operation: no operation {name!r}; {nearest(name, known)}")
    return known[name]


def examples_of(name: str) -> compat.Examples:
    """What an operation offers to an offline compile; ValueError where it offers nothing."""
    examples = operation_of(name).examples
    if examples is None:
        raise ValueError(f"operation: {name} has no examples to compile")
    return examples


class _Child:
    """A process that answers one job after the other; ``gone`` once it has died or was killed."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.gone = False
        self._heard = 0  # bytes of its standard error that belong to earlier jobs
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - __exit__ closes it
        self._process = Child(
            [sys.executable, "-m", f"{__package__}.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=_environment(),
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

    def __enter__(self) -> "_Child":
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
                row |= _broken_off(row, _with_cause(f"no result within {timeout:g} s", self._said()))
                break
            if not line:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(10)
                self._kill()
                row |= _broken_off(row, _with_cause(_ending(self._process.returncode), self._said(), died=True))
                break
            row |= json.loads(line)
            if row.get("compiled") is False and row.get("accepted"):
                row["error"] = _with_cause(row["error"], self._said())
        self._said()
        return row

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            for line in stdout:
                self._lines.put(line)
        self._lines.put("")

    def _said(self) -> str:
        """What it has written to standard error since the last time; read without moving the offset that it writes at."""
        file = self._errors.fileno()
        text = os.pread(file, os.fstat(file).st_size - self._heard, self._heard)
        self._heard += len(text)
        return text.decode(errors="replace")

    def _kill(self) -> None:
        self.gone = True
        self._process.kill()
        self._process.wait()


def _environment() -> dict[str, str]:
    """The child's environment: this process's modules and switches, Triton as in production, and nothing from its cache."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return {
        **environment,
        "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
        "PYTHONSAFEPATH": "1",
        "CAPGATE_DISABLE": ",".join(_switches.current().disabled),
        "CAPGATE_ENABLE": ",".join(_switches.current().enabled),
        "TRITON_ALWAYS_COMPILE": "1",  # a cached result comes without ptxas' log, and in no time
        "TRITON_DUMP_PTXAS_LOG": "1",
    }


def _broken_off(row: dict[str, Any], error: str) -> dict[str, Any]:
    """What ends a row whose process gave no more: the compile has failed, unless only its figures were left to read."""
    if "seconds" in row:
        return {"compiled": True, "error": None, "unread": [f"figures: {error}"]}
    return {"compiled": False, "error": error}


def _ending(status: int) -> str:
    return f"the compiler died of {signal.Signals(-status).name}" if status < 0 else f"the compiler exited with status {status}"


def _with_cause(error: str, said: str, *, died: bool = False) -> str:
    """An error with the line that matters of what was written to standard error, where a failed pass may write 200 KB.

    died : whether the last line is worth repeating where none looks like a cause
    """
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    causes = [line for line in lines if re.search(r"\berror:|LLVM ERROR|Assertion .* failed|^\w*Error:", line)]
    cause = next(iter(causes), lines[-1] if died and lines else "")
    return f"{error}: {cause[:300]}" if cause else error
