"""The variants of fp8_paged_mqa_logits, in the order in which they are tried, and the problems each of them takes."""

from typing import Any, NamedTuple

from capgate import compat

from ..common.rules import (
    FLOAT32,
    check_sizes,
    classic_scores,
    interpreted_when_named,
    key_products,
    native_fp8,
    needs_e4m3fn,
    needs_near_blocks,
    output_of,
)

MODES = {"unclean": False, "clean": True}  # clean_logits


class Problem(NamedTuple):
    """One class of calls.

    device : a ``torch.device``, or a target to ask about (``"hip:gfx950"``)
    dtype : of queries and cached keys, "float8_e4m3fn" or "float8_e4m3fnuz"
    block_size : keys in a block of the cache
    layout : of a block's keys, "flat" or "preshuffled"
    next_n : rows of a request, its draft tokens included
    direct_keys : whether keys can be copied straight to LDS: see :func:`..common.cache.copies_directly`
    tensor_maps : whether tensor maps can describe the queries, the weights, and the cache's keys and scales
    weights_dtype, logits_dtype : "float32" or "bfloat16"
    """

    device: Any
    heads: int
    dim: int
    dtype: str
    clean_logits: bool
    block_size: int = 64
    next_n: int = 1
    direct_keys: bool = True
    tensor_maps: bool = True
    layout: str = "flat"
    weights_dtype: str = FLOAT32
    logits_dtype: str = FLOAT32


def example(device: Any) -> Problem:
    """A DeepSeek-V4 decode call (64 heads of 128 dims) with the fp8 format that the device's matrix instructions read."""
    return Problem(device, 64, 128, native_fp8(device), False)


def example_problem(device: Any, heads: int, dim: int, mode: str, dtype: str | None = None) -> Problem:
    """As :func:`example` with these sizes, mode (see :func:`output_of`) and dtype; ValueError for what does not exist."""
    check_sizes(heads, dim)
    clean_logits, floats = output_of(mode, MODES)
    sizes = (heads, dim, dtype or native_fp8(device), clean_logits)
    return Problem(device, *sizes, weights_dtype=floats, logits_dtype=floats)


def example_call(problem: Problem) -> compat.ExampleCall:
    """A call with 256 requests of up to 65536 keys, for an offline compile."""
    import torch

    from .operands import Inputs

    def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    requests, keys, block = 256, 65536, problem.block_size
    rows, blocks = requests * problem.next_n, keys // block
    inputs = Inputs(
        q=meta(requests, problem.next_n, problem.heads, problem.dim, dtype=getattr(torch, problem.dtype)),
        kv_cache=meta(blocks, block, 1, problem.dim + 4, dtype=torch.uint8),
        weights=meta(rows, problem.heads, dtype=getattr(torch, problem.weights_dtype)),
        context_lens=meta(requests, dtype=torch.int32),
        block_table=meta(requests, blocks, dtype=torch.int32),
        schedule=meta(257, 2, dtype=torch.int32),
    )
    options = {"clean_logits": problem.clean_logits, "layout": problem.layout}
    out = meta(rows, keys, dtype=getattr(torch, problem.logits_dtype))
    return compat.ExampleCall((inputs, out), options, key_products(problem.device, problem.heads, problem.dim))


def _gluon_cdna4_accepts(problem: Problem) -> str | None:
    return needs_e4m3fn(problem.device, problem.dtype) or needs_near_blocks(problem.direct_keys, "to copy them straight to LDS")


def _gluon_cdna3_accepts(problem: Problem) -> str | None:
    return needs_near_blocks(problem.direct_keys, "to load them at offsets of 32 bits")


def _gluon_hopper_accepts(problem: Problem) -> str | None:
    if reason := needs_e4m3fn(problem.device, problem.dtype):
        return reason
    if problem.heads % 4:
        return f"needs a multiple of 4 heads: found {problem.heads}"
    if problem.layout != "flat":
        return f"needs a flat cache, whose keys tensor maps copy as matrix instructions read them: found a {problem.layout} one"
    if problem.block_size % 32:
        return f"needs blocks of a multiple of 32 keys, whose scales fill 128 bytes: found {problem.block_size}"
    if not problem.tensor_maps:
        return (
            "needs operands that tensor maps describe: 16-byte aligned lines of adjacent elements, "
            "requests at equal distances, blocks a multiple of 16 bytes apart"
        )
    return None


def _classic_accepts(problem: Problem) -> str | None:
    return classic_scores(problem.device, problem.dtype)


def _classic_unless_named(problem: Problem) -> str | None:
    return interpreted_when_named(problem.device)


operation = compat.Operation(
    "fp8_paged_mqa_logits",
    example=example,
    examples=compat.Examples(example_problem, example_call, tuple(MODES)),
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
        "gluon_cdna3", f"{__package__}.gluon_cdna3:kernel", requires=("gluon_cdna3", "torch"), accepts=_gluon_cdna3_accepts
    )
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
