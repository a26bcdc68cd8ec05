"""The variants of fp8_mqa_logits, in the order in which they are tried, and the problems each of them takes."""

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
    output_of,
)

# Measured on an H200 with Triton 3.6.0: a graph of 16 rows x 512 keys takes 2.6 us with classic, 5.7 with gluon_hopper.
FEW_PRODUCTS = 16 * 512
MODES = {"unclean": (False, False), "clean": (True, False), "compressed": (False, True)}  # clean_logits, compressed


class Problem(NamedTuple):
    """One class of calls.

    device : a ``torch.device``, or a target to ask about (``"hip:gfx950"``)
    dtype : of query and key, "float8_e4m3fn" or "float8_e4m3fnuz"
    compressed : whether column j means key ``starts[i] + j``
    direct_keys : whether keys can be copied straight to LDS: see :func:`.api.copies_directly`
    tensor_maps : whether a tensor map can describe each of q, k, k_scale and weights, and with clean_logits the output
    weights_dtype, logits_dtype : "float32" or "bfloat16"
    few_products : whether rows x keys are at most FEW_PRODUCTS
    """

    device: Any
    heads: int
    dim: int
    dtype: str
    clean_logits: bool
    compressed: bool
    direct_keys: bool = True
    tensor_maps: bool = True
    weights_dtype: str = FLOAT32
    logits_dtype: str = FLOAT32
    few_products: bool = False


def example(device: Any) -> Problem:
    """A DeepSeek-V4 prefill call (64 heads of 128 dims) with the fp8 format that the device's matrix instructions read."""
    return Problem(device, 64, 128, native_fp8(device), False, False)


def example_problem(device: Any, heads: int, dim: int, mode: str, dtype: str | None = None) -> Problem:
    """As :func:`example` with these sizes, mode (see :func:`output_of`) and dtype; ValueError for what does not exist."""
    check_sizes(heads, dim)
    (clean_logits, compressed), floats = output_of(mode, MODES)
    return Problem(
        device, heads, dim, dtype or native_fp8(device), clean_logits, compressed, weights_dtype=floats, logits_dtype=floats
    )


def example_call(problem: Problem) -> compat.ExampleCall:
    """A call with 4096 rows and as many keys, for an offline compile."""
    import torch

    from .operands import Inputs

    def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    size, fp8 = 4096, getattr(torch, problem.dtype)
    window = meta(size, dtype=torch.int32)
    inputs = Inputs(
        q=meta(size, problem.heads, problem.dim, dtype=fp8),
        k=meta(size, problem.dim, dtype=fp8),
        k_scale=meta(size),
        weights=meta(size, problem.heads, dtype=getattr(torch, problem.weights_dtype)),
        starts=window,
        ends=window,
    )
    options = {"clean_logits": problem.clean_logits, "compressed": problem.compressed}
    out = meta(size, size, dtype=getattr(torch, problem.logits_dtype))
    return compat.ExampleCall((inputs, out), options, key_products(problem.device, problem.heads, problem.dim))


def _gluon_cdna4_accepts(problem: Problem) -> str | None:
    if reason := needs_e4m3fn(problem.device, problem.dtype):
        return reason
    if not problem.direct_keys:
        return "needs k in 16-byte aligned rows of adjacent elements, less than 8 MiB apart, to copy it straight to LDS"
    return None


def _gluon_cdna3_accepts(problem: Problem) -> str | None:
    return None if problem.direct_keys else "needs k in 16-byte aligned rows of adjacent elements, less than 8 MiB apart"


def _gluon_gfx1250_accepts(problem: Problem) -> str | None:
    if reason := needs_e4m3fn(problem.device, problem.dtype):
        return reason
    return None if problem.direct_keys else "needs k in 16-byte aligned rows of adjacent elements, less than 8 MiB apart"


def _gluon_gfx1250_unless_named(problem: Problem) -> str:
    return "has been compiled for gfx1250 and executed nowhere; name it to use it"


def _gluon_hopper_accepts(problem: Problem) -> str | None:
    if reason := needs_e4m3fn(problem.device, problem.dtype):
        return reason
    if problem.heads % 4:
        return f"needs a multiple of 4 heads: found {problem.heads}"
    if not problem.tensor_maps:
        return "needs operands that tensor maps describe: 16-byte aligned lines of adjacent elements, one key at least"
    return None


def _gluon_hopper_unless_named(problem: Problem) -> str | None:
    if problem.few_products:
        return f"fills a pipeline for longer than classic takes for {FEW_PRODUCTS} rows x keys or fewer; name it to use it"
    return None


def _classic_accepts(problem: Problem) -> str | None:
    return classic_scores(problem.device, problem.dtype)


def _classic_unless_named(problem: Problem) -> str | None:
    return interpreted_when_named(problem.device)


operation = compat.Operation(
    "fp8_mqa_logits",
    example=example,
    examples=compat.Examples(example_problem, example_call, ("unclean", "clean")),
    offers=("tuning",),
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
        "gluon_gfx1250",
        f"{__package__}.gluon_gfx1250:kernel",
        requires=("gluon_gfx1250", "torch"),
        accepts=_gluon_gfx1250_accepts,
        unless_named=_gluon_gfx1250_unless_named,
    )
)
operation.add(
    compat.Variant(
        "gluon_hopper",
        f"{__package__}.gluon_hopper:kernel",
        requires=("gluon_hopper", "torch"),
        accepts=_gluon_hopper_accepts,
        unless_named=_gluon_hopper_unless_named,
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
