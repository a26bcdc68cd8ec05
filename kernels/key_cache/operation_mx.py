"""The variants that write and gather cached keys in MX formats, in the order in which they are tried."""

from typing import Any, NamedTuple

from capgate import compat

from ..common.key_formats import FORMATS, LAYOUTS, layouts_of
from ..common.rules import check_sizes, classic_runs, interpreted_when_named
from .operation import BLOCK

# What is compiled: a format of the keys, and a layout of it.
MODES = tuple(f"{name}-{layout}" for name, row in FORMATS.items() if row.grouped for layout in layouts_of(name))


class Problem(NamedTuple):
    """One class of calls.

    device : a ``torch.device``, or a target to ask about (``"hip:gfx950"``)
    dim, key_format, layout : what an offline compile takes; no matter to the choice
    """

    device: Any
    dim: int = 128
    key_format: str = "mxfp4"
    layout: str = "flat"


def example(device: Any) -> Problem:
    """Keys of 128 dims in mxfp4."""
    return Problem(device)


def example_problem(device: Any, heads: int, dim: int, mode: str, dtype: str | None = None) -> Problem:
    """What an offline compile asks for."""
    check_sizes(heads, dim)
    if mode not in MODES:
        raise ValueError(f"mode: got {mode!r}, needs one of {', '.join(MODES)}")
    if dtype is not None:
        raise ValueError(f"dtype: got {dtype!r}, needs none: the mode says the format")
    key_format, _, layout = mode.partition("-")
    dims = tuple(size for size in FORMATS[key_format].dims if size in LAYOUTS[layout].dims)
    if dim not in dims:
        raise ValueError(f"dim: got {dim}, needs one of {', '.join(map(str, dims))} in mode {mode}")
    return Problem(device, dim, key_format, layout)


def _caches(problem: Problem) -> dict[str, Any]:
    import torch

    key_bytes = FORMATS[problem.key_format].key_bytes(problem.dim)
    if LAYOUTS[problem.layout].apart:
        shapes = {"kv_cache": (1024, 1, 4, BLOCK, 16), "kv_scale": (1024, 1, 4, BLOCK)}
    else:
        shapes = {"kv_cache": (1024, BLOCK, 1, key_bytes + 4)}
    return {name: torch.empty(shape, dtype=torch.uint8, device="meta") for name, shape in shapes.items()}


def _writing_call(problem: Problem) -> compat.ExampleCall:
    import torch

    from .operands_mx import MxWritten

    keys = torch.empty((4096, problem.dim), dtype=torch.bfloat16, device="meta")
    slots = torch.empty((4096,), dtype=torch.int64, device="meta")
    rule = "deepgemm" if problem.key_format == "mxfp8" else "vllm"  # a scale for each 32 elements, whatever D is
    options = {"key_format": problem.key_format, "rule": rule, "layout": problem.layout}
    return compat.ExampleCall((MxWritten(k=keys, slot_mapping=slots, **_caches(problem)),), options)


def _gathering_call(problem: Problem) -> compat.ExampleCall:
    import torch

    from .operands_mx import MxGathered

    table, lens = (torch.empty(shape, dtype=torch.int32, device="meta") for shape in ((256, 64), (256,)))
    key_bytes = FORMATS[problem.key_format].key_bytes(problem.dim)
    keys = torch.empty((4096, key_bytes), dtype=torch.uint8, device="meta")
    scales = torch.empty((4096,), dtype=torch.int32, device="meta")
    options = {"key_format": problem.key_format, "layout": problem.layout}
    return compat.ExampleCall((MxGathered(block_table=table, lens=lens, **_caches(problem)), keys, scales), options)


def _operation(name: str, call: Any, function: str) -> compat.Operation[Problem]:
    made = compat.Operation(name, example=example, examples=compat.Examples(example_problem, call, MODES))
    made.add(
        compat.Variant(
            "classic",
            f"{__package__}.classic_mx:{function}",
            requires=("triton", "torch"),
            accepts=lambda problem: classic_runs(problem.device),
            unless_named=lambda problem: interpreted_when_named(problem.device),
        )
    )
    made.add(compat.Variant("reference", f"{__package__}.reference_mx:{function}", requires=("torch",), last_resort=True))
    return made


writing = _operation("quantize_mx_keys_to_cache", _writing_call, "write")
gathering = _operation("gather_mx_keys", _gathering_call, "gather")
