"""The variants of what scores blocks and masks logits, in the order in which they are tried."""

from typing import Any, NamedTuple

from capgate import compat

from ..common.rules import FLOAT32, classic_runs, interpreted_when_named

DTYPES = (FLOAT32, "bfloat16")


class Problem(NamedTuple):
    """One class of calls.

    device : a ``torch.device``, or a target to ask about (``"hip:gfx950"``)
    dtype : of the logits
    """

    device: Any
    dtype: str = FLOAT32


def _problem(device: Any, mode: str, wanted: str, dtype: str | None) -> Problem:
    if mode != wanted:
        raise ValueError(f"mode: got {mode!r}, needs {wanted!r}")
    if dtype not in (None, *DTYPES):
        raise ValueError(f"dtype: got {dtype!r}, needs {' or '.join(DTYPES)}: looked at are logits")
    return Problem(device, dtype or FLOAT32)


def example_scoring(device: Any, heads: int, dim: int, mode: str, dtype: str | None = None) -> Problem:
    """A problem for an offline compile; queries do not matter. ValueError for what does not exist."""
    return _problem(device, mode, "select", dtype)


def example_masking(device: Any, heads: int, dim: int, mode: str, dtype: str | None = None) -> Problem:
    """As :func:`example_scoring`."""
    return _problem(device, mode, "mask", dtype)


def _meta(problem: Problem) -> tuple[Any, Any]:
    """Logits of 256 rows and 131072 keys, and numbers of rows."""
    import torch

    logits = torch.empty((256, 131072), dtype=getattr(torch, problem.dtype), device="meta")
    return logits, torch.empty((256,), dtype=torch.int32, device="meta")


def scoring_call(problem: Problem) -> compat.ExampleCall:
    """A call for an offline compile."""
    import torch

    from .operands import Scored

    logits, rows = _meta(problem)
    scores = torch.empty((256, 16384), dtype=torch.float32, device="meta")
    return compat.ExampleCall((Scored(logits, rows, rows), scores, rows), {"candidate_block": 8})


def masking_call(problem: Problem) -> compat.ExampleCall:
    """A call for an offline compile."""
    import torch

    from .operands import Masked

    logits, rows = _meta(problem)
    candidates = torch.empty((256, 2048), dtype=torch.int32, device="meta")
    return compat.ExampleCall((Masked(logits, rows, rows, candidates),), {"candidate_block": 8})


def _variants(operation: compat.Operation[Problem], name: str) -> compat.Operation[Problem]:
    operation.add(
        compat.Variant(
            "classic",
            f"{__package__}.classic:{name}",
            requires=("triton", "torch"),
            accepts=lambda problem: classic_runs(problem.device),
            unless_named=lambda problem: interpreted_when_named(problem.device),
        )
    )
    operation.add(compat.Variant("reference", f"{__package__}.reference:{name}", requires=("torch",), last_resort=True))
    return operation


scoring = _variants(
    compat.Operation(
        "select_candidate_blocks", example=Problem, examples=compat.Examples(example_scoring, scoring_call, ("select",))
    ),
    "scoring",
)
masking = _variants(
    compat.Operation(
        "apply_candidate_mask", example=Problem, examples=compat.Examples(example_masking, masking_call, ("mask",))
    ),
    "masking",
)
