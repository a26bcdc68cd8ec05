"""The variants of select_keys, in the order in which they are tried, and the problems each of them takes."""

from typing import Any, NamedTuple

from capgate import compat

from ..common.rules import classic_runs, interpreted_when_named
from .tunings import for_target, max_top_k

# Rows, columns, whether scores are returned, and which of the launches: few rows of 65536 logits are cut, and take two.
MODES = {
    "indices": (4096, 8192, False, 0),
    "scores": (4096, 8192, True, 0),
    "long": (4096, 65536, False, 0),
    "filtered": (4096, 65536, False, 1),
    "cut": (1, 65536, False, 0),
    "candidates": (1, 65536, False, 1),
}
DTYPES = ("float32", "bfloat16")


class Problem(NamedTuple):
    """One class of calls.

    device : a ``torch.device``, or a target to ask about (``"hip:gfx950"``)
    mode : what an offline compile takes of it, a key of MODES; no matter to a call
    dtype : of the logits
    cut : whether rows are longer than a block, few enough to be cut in sections, and lie in quads
    """

    device: Any
    top_k: int
    mode: str = "indices"
    dtype: str = "float32"
    cut: bool = False


def example(device: Any) -> Problem:
    """DeepSeek-V3.2's selection of 2048 keys."""
    return Problem(device, 2048)


def example_problem(device: Any, heads: int, dim: int, mode: str, dtype: str | None = None) -> Problem:
    """As :func:`example`, with what a mode (a key of MODES) names; ValueError for what does not exist.

    heads, dim : of the queries that were scored; no matter here
    """
    if mode not in MODES:
        raise ValueError(f"mode: got {mode!r}, needs one of {', '.join(MODES)}")
    if dtype not in (None, *DTYPES):
        raise ValueError(f"dtype: got {dtype!r}, needs {' or '.join(DTYPES)}: selected from are logits")
    # What selects from the sections' candidates is the same launch for every variant: compiled as classic's.
    return example(device)._replace(mode=mode, dtype=dtype or DTYPES[0], cut=mode == "cut")


def example_call(problem: Problem) -> compat.ExampleCall:
    """A call with 4096 rows, or one that is cut, for an offline compile."""
    import torch

    from .operands import Inputs

    def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    rows, columns, scores, number = MODES[problem.mode]
    window = meta(rows, dtype=torch.int32)
    selected = (meta(rows, problem.top_k, dtype=torch.int32), meta(rows, problem.top_k) if scores else None)
    return compat.ExampleCall(
        (Inputs(meta(rows, columns, dtype=getattr(torch, problem.dtype)), window, window), *selected),
        {"num_keys": None, "relative": False},
        number=number,
    )


def _gluon_hopper_accepts(problem: Problem) -> str | None:
    if not problem.cut:
        block = for_target(compat.capabilities(problem.device).target).block_logits
        return (
            f"filters sections of rows longer than {block} logits, where rows are few, 64-byte aligned and of adjacent logits"
        )
    return _top_k_fits(problem)


def _classic_accepts(problem: Problem) -> str | None:
    return _top_k_fits(problem) or classic_runs(problem.device)


def _top_k_fits(problem: Problem) -> str | None:
    most = max_top_k(compat.capabilities(problem.device).target)
    return f"needs top_k of at most {most}: found {problem.top_k}" if problem.top_k > most else None


def _classic_unless_named(problem: Problem) -> str | None:
    return interpreted_when_named(problem.device)


operation = compat.Operation(
    "select_keys",
    example=example,
    examples=compat.Examples(example_problem, example_call, tuple(MODES)),
    offers=("tuning",),
)
operation.add(
    compat.Variant(
        "gluon_hopper", f"{__package__}.gluon_hopper:kernel", requires=("gluon_hopper", "torch"), accepts=_gluon_hopper_accepts
    )
)
operation.add(
    compat.Variant(
        "classic",
        f"{__package__}.classic:kernel",
        requires=("triton", "torch"),
        accepts=_classic_accepts,
        unless_named=_classic_unless_named,
    )
)
operation.add(compat.Variant("reference", f"{__package__}.reference:launch", requires=("torch",), last_resort=True))
