"""Compile an operation's variants for a named target, on a machine that need not have it: what they take, and what they run.

Nothing is executed: figures are the compiler's own and counts of instructions. Compilers run in a child process with a time
limit, because Triton can abort or hang.

An operation can be compiled when it has :class:`capgate.compat.Examples`, and those of its variants that are a
:class:`capgate.compat.Kernel`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from capgate import compat

from .. import versions
from .._lookup import target_of
from ..spelling import nearest
from .answers import TIMEOUT, Answers, environment

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
        with Answers(f"{__package__}.child", {**request, "jobs": left}, compiling_environment()) as child:
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


def compiling_environment() -> dict[str, str]:
    """The child's environment: Triton as in production, and nothing from its cache."""
    return {
        **environment(),
        "TRITON_ALWAYS_COMPILE": "1",  # a cached result comes without ptxas' log, and in no time
        "TRITON_DUMP_PTXAS_LOG": "1",
    }
