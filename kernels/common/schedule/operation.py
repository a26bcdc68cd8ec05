"""The variants that make a schedule, in the order in which they are tried."""

from collections.abc import Hashable
from typing import Any, NamedTuple, TypeVar

from capgate import compat

from ..rules import classic_runs, interpreted_when_named

CHUNK_KEYS = 128  # a schedule's unit of work: a multiple of every variant's key tile
DEEP_GEMM_KEYS = 256  # that of the schedules that DeepGEMM's kernels for sm90 make and read
CHUNKS = (CHUNK_KEYS, DEEP_GEMM_KEYS)
MOST = 2**31 - 1  # keys of a request that count: all of them
P = TypeVar("P", bound=Hashable)


class Problem(NamedTuple):
    """One class of calls.

    device : a ``torch.device``, or a target to ask about (``"hip:gfx950"``)
    """

    device: Any


def example_problem(device: Any, heads: int, dim: int, mode: str, dtype: str | None = None) -> Problem:
    """A problem for an offline compile; queries do not matter. ValueError for what does not exist."""
    if mode != "schedule":
        raise ValueError(f"mode: got {mode!r}, needs 'schedule'")
    if dtype not in (None, "int32"):
        raise ValueError(f"dtype: got {dtype!r}, needs int32: shared out are lengths")
    return Problem(device)


def example_call(problem: Problem) -> compat.ExampleCall:
    """A call with 256 requests and as many workers, for an offline compile."""
    import torch

    from .operands import Inputs

    def meta(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int32, device="meta")

    return compat.ExampleCall((Inputs(meta(256)), meta(257, 2)), {})


operation = compat.Operation(
    "paged_mqa_schedule", example=Problem, examples=compat.Examples(example_problem, example_call, ("schedule",))
)
operation.add(
    compat.Variant(
        "classic",
        f"{__package__}.classic:kernel",
        requires=("triton", "torch"),
        accepts=lambda problem: classic_runs(problem.device),
        unless_named=lambda problem: interpreted_when_named(problem.device),
    )
)
operation.add(compat.Variant("reference", f"{__package__}.reference:launch", requires=("torch",), last_resort=True))


def workers_of(paged: compat.Operation[P], problem: P, variant: str | None) -> int:
    """How many workers a schedule should have for a paged operation's calls; ``variant`` is the one that they name."""
    kernel = paged.load(paged.select(problem, variant))
    return kernel.workers(problem) if isinstance(kernel, compat.Kernel) and kernel.workers else 1  # torch looks at no schedule
