"""The variants that quantise to MX formats, in the order in which they are tried."""

from typing import Any, NamedTuple

from capgate import compat

from ..common.key_formats import FORMATS
from ..common.rules import check_sizes, classic_runs, interpreted_when_named

MODES = tuple(name for name, row in FORMATS.items() if row.grouped)  # what is compiled: a format


class Problem(NamedTuple):
    """One class of calls.

    device : a ``torch.device``, or a target to ask about (``"hip:gfx950"``)
    dim, key_format : what an offline compile takes; no matter to the choice
    """

    device: Any
    dim: int = 128
    key_format: str = "mxfp4"


def example(device: Any) -> Problem:
    """Rows of 128 values to mxfp4."""
    return Problem(device)


def example_problem(device: Any, heads: int, dim: int, mode: str, dtype: str | None = None) -> Problem:
    """What an offline compile asks for."""
    check_sizes(heads, dim)
    if mode not in MODES:
        raise ValueError(f"mode: got {mode!r}, needs one of {', '.join(MODES)}")
    if dtype is not None:
        raise ValueError(f"dtype: got {dtype!r}, needs none: the mode says the format")
    if dim not in FORMATS[mode].dims:
        raise ValueError(f"dim: got {dim}, needs one of {', '.join(map(str, FORMATS[mode].dims))} in mode {mode}")
    return Problem(device, dim, mode)


def example_call(problem: Problem) -> compat.ExampleCall:
    """A call of that problem, on meta tensors."""
    import torch

    from .operands import Inputs

    values = torch.empty((4096, problem.dim), dtype=torch.bfloat16, device="meta")
    octets = torch.empty((4096, FORMATS[problem.key_format].key_bytes(problem.dim)), dtype=torch.uint8, device="meta")
    scales = torch.empty((4096,), dtype=torch.int32, device="meta")
    return compat.ExampleCall((Inputs(values), octets, scales), {"key_format": problem.key_format, "rule": "deepgemm"})


examples = compat.Examples(example_problem, example_call, MODES)
operation = compat.Operation("quantize_mx", example=example, examples=examples)
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
