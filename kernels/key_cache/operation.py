"""The variants that write and gather cached keys, in the order in which they are tried."""

from typing import Any, NamedTuple

from capgate import compat

from ..common.rules import check_sizes, classic_runs, interpreted_when_named, native_fp8

BLOCK = 64  # keys in a block of the cache that an offline compile takes


class Problem(NamedTuple):
    """One class of calls.

    device : a ``torch.device``, or a target to ask about (``"hip:gfx950"``)
    dim : what an offline compile takes; no matter to a call
    dtype : of the cached keys; as ``dim``
    """

    device: Any
    dim: int = 128
    dtype: str = "float8_e4m3fn"


def example(device: Any) -> Problem:
    """Keys of 128 dims in the fp8 format that the device's matrix instructions read."""
    return Problem(device, 128, native_fp8(device))


def _example_problem(mode_of: str) -> Any:
    def example_problem(device: Any, heads: int, dim: int, mode: str, dtype: str | None = None) -> Problem:
        check_sizes(heads, dim)
        if mode != mode_of:
            raise ValueError(f"mode: got {mode!r}, needs {mode_of!r}")
        return Problem(device, dim, dtype or native_fp8(device))

    return example_problem


def _writing_call(problem: Problem) -> compat.ExampleCall:
    import torch

    from .operands import Written

    keys = torch.empty((4096, problem.dim), dtype=torch.bfloat16, device="meta")
    cache = torch.empty((1024, BLOCK, 1, problem.dim + 4), dtype=torch.uint8, device="meta")
    slots = torch.empty((4096,), dtype=torch.int64, device="meta")
    return compat.ExampleCall((Written(keys, cache, slots),), {"dtype": getattr(torch, problem.dtype), "scale_format": "fp32"})


def _gathering_call(problem: Problem) -> compat.ExampleCall:
    import torch

    from .operands import Gathered

    cache = torch.empty((1024, BLOCK, 1, problem.dim + 4), dtype=torch.uint8, device="meta")
    table, lens = (torch.empty(shape, dtype=torch.int32, device="meta") for shape in ((256, 64), (256,)))
    keys = torch.empty((4096, problem.dim), dtype=torch.uint8, device="meta")
    return compat.ExampleCall((Gathered(cache, table, lens), keys, torch.empty((4096,), device="meta")), {})


def _operation(name: str, mode: str, call: Any, function: str) -> compat.Operation[Problem]:
    made = compat.Operation(name, example=example, examples=compat.Examples(_example_problem(mode), call, (mode,)))
    made.add(
        compat.Variant(
            "classic",
            f"{__package__}.classic:{function}",
            requires=("triton", "torch"),
            accepts=lambda problem: classic_runs(problem.device),
            unless_named=lambda problem: interpreted_when_named(problem.device),
        )
    )
    made.add(compat.Variant("reference", f"{__package__}.reference:{function}", requires=("torch",), last_resort=True))
    return made


writing = _operation("quantize_keys_to_cache", "write", _writing_call, "write")
gathering = _operation("gather_keys", "gather", _gathering_call, "gather")
