"""The variants of mx_paged_mqa_logits, in the order in which they are tried, and the problems each of them takes."""

from itertools import product
from typing import Any, NamedTuple

from capgate import compat

from ..common.key_formats import FORMATS, GROUP, LAYOUTS, PACKET, PAIRS, SCALE_BYTES, mx_output_of
from ..common.rules import (
    FLOAT32,
    check_sizes,
    classic_runs,
    interpreted_when_named,
    needs_64_dims,
    needs_near_blocks,
    padded_heads,
)

OUTPUTS = {"unclean": False, "clean": True}  # clean_logits
MODES = {f"{pair}-{output}": (*PAIRS[pair], OUTPUTS[output]) for pair, output in product(PAIRS, OUTPUTS)}


class Problem(NamedTuple):
    """One class of calls.

    device : a ``torch.device``, or a target to ask about (``"hip:gfx950"``)
    q_format, k_format : of query and key, "mxfp8" or "mxfp4"
    block_size : keys in a block of the cache
    next_n : rows of a request, its draft tokens included
    direct_keys : whether keys can be copied straight to LDS: see :func:`..common.cache.copies_directly`
    layout : where a block holds its bytes
    weights_dtype, logits_dtype : "float32" or "bfloat16"
    """

    device: Any
    heads: int
    dim: int
    q_format: str
    k_format: str
    clean_logits: bool
    block_size: int = 64
    next_n: int = 1
    direct_keys: bool = True
    layout: str = "flat"
    weights_dtype: str = FLOAT32
    logits_dtype: str = FLOAT32


def example(device: Any) -> Problem:
    """A DeepSeek-V4 decode call, 64 heads of 128 dims, in mxfp4."""
    return Problem(device, 64, 128, "mxfp4", "mxfp4", False)


def example_problem(device: Any, heads: int, dim: int, mode: str, dtype: str | None = None) -> Problem:
    """As :func:`example` with these sizes and mode (see :func:`mx_output_of`); ValueError for what does not exist."""
    check_sizes(heads, dim)
    (q_format, k_format, clean_logits), floats = mx_output_of(mode, MODES, dim, dtype)
    return Problem(device, heads, dim, q_format, k_format, clean_logits, weights_dtype=floats, logits_dtype=floats)


def example_call(problem: Problem) -> compat.ExampleCall:
    """A call with 256 requests of up to 65536 keys, for an offline compile."""
    import torch

    from ..common.mx_operands import FORMAT_OF
    from .operands import Inputs

    dtypes = {name: dtype for dtype, name in FORMAT_OF.items()}

    def meta(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    requests, keys, block = 256, 65536, problem.block_size
    rows, blocks = requests * problem.next_n, keys // block
    q_bytes, key_bytes = (FORMATS[name].key_bytes(problem.dim) for name in (problem.q_format, problem.k_format))
    kv_cache, kv_scale = meta(blocks, block, 1, key_bytes + SCALE_BYTES, dtype=torch.uint8), None
    if LAYOUTS[problem.layout].apart:
        chunks = (blocks, 1, problem.dim // GROUP, block)
        kv_cache, kv_scale = meta(*chunks, PACKET, dtype=torch.uint8), meta(*chunks, dtype=torch.uint8)
    inputs = Inputs(
        q=meta(requests, problem.next_n, problem.heads, q_bytes, dtype=dtypes[problem.q_format]),
        q_scale=meta(requests, problem.next_n, problem.heads),
        kv_cache=kv_cache,
        weights=meta(rows, problem.heads, dtype=getattr(torch, problem.weights_dtype)),
        context_lens=meta(requests),
        block_table=meta(requests, blocks),
        schedule=meta(257, 2),
        kv_scale=kv_scale,
    )
    options = {"clean_logits": problem.clean_logits, "layout": problem.layout}
    out = meta(rows, keys, dtype=getattr(torch, problem.logits_dtype))
    return compat.ExampleCall((inputs, out), options, padded_heads(problem.heads) * problem.dim)


def _gluon_cdna4_accepts(problem: Problem) -> str | None:
    if LAYOUTS[problem.layout].apart:
        return (
            f"needs the scales of keys behind them in their block, to copy them straight to LDS: found layout {problem.layout}"
        )
    return needs_64_dims(problem.dim) or needs_near_blocks(problem.direct_keys, "to copy them straight to LDS")


operation = compat.Operation(
    "mx_paged_mqa_logits",
    example=example,
    examples=compat.Examples(example_problem, example_call, ("mxfp4-unclean", "mxfp4-clean", "mxfp8-unclean")),
    offers=("tuning", "workers"),
    repeatable=True,
)
operation.add(
    compat.Variant(
        "gluon_cdna4", f"{__package__}.gluon_cdna4:kernel", requires=("gluon_cdna4", "torch"), accepts=_gluon_cdna4_accepts
    )
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
