"""The variants of mx_mqa_logits, in the order in which they are tried, and the problems each of them takes."""

from itertools import product
from typing import Any, NamedTuple

from capgate import compat

from ..common.key_formats import FORMATS, PAIRS, mx_output_of
from ..common.rules import FLOAT32, check_sizes, classic_runs, interpreted_when_named, needs_64_dims, padded_heads

OUTPUTS = {"unclean": (False, False), "clean": (True, False), "compressed": (False, True)}  # clean_logits, compressed
MODES = {f"{pair}-{output}": (*PAIRS[pair], *OUTPUTS[output]) for pair, output in product(PAIRS, OUTPUTS)}


class Problem(NamedTuple):
    """One class of calls.

    device : a ``torch.device``, or a target to ask about (``"hip:gfx950"``)
    q_format, k_format : of query and key, "mxfp8" or "mxfp4"
    compressed : whether column j means key ``starts[i] + j``
    direct_keys : whether keys can be copied straight to LDS: see :func:`.api.copies_directly`
    weights_dtype, logits_dtype : "float32" or "bfloat16"
    """

    device: Any
    heads: int
    dim: int
    q_format: str
    k_format: str
    clean_logits: bool
    compressed: bool
    direct_keys: bool = True
    weights_dtype: str = FLOAT32
    logits_dtype: str = FLOAT32


def example(device: Any) -> Problem:
    """A DeepSeek-V4 prefill call, 64 heads of 128 dims, in mxfp4."""
    return Problem(device, 64, 128, "mxfp4", "mxfp4", False, False)


def example_problem(device: Any, heads: int, dim: int, mode: str, dtype: str | None = None) -> Problem:
    """As :func:`example` with these sizes and mode (see :func:`mx_output_of`); ValueError for what does not exist."""
    check_sizes(heads, dim)
    (q_format, k_format, clean_logits, compressed), floats = mx_output_of(mode, MODES, dim, dtype)
    return Problem(device, heads, dim, q_format, k_format, clean_logits, compressed, weights_dtype=floats, logits_dtype=floats)


def example_call(problem: Problem) -> compat.ExampleCall:
    """A call with 4096 rows and as many keys, for an offline compile."""
    import torch

    from ..common.mx_operands import FORMAT_OF
    from .operands import Inputs

    dtypes = {name: dtype for dtype, name in FORMAT_OF.items()}

    def meta(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def values(key_format: str, *shape: int) -> torch.Tensor:
        return meta(*shape, FORMATS[key_format].key_bytes(problem.dim), dtype=dtypes[key_format])

    size = 4096
    inputs = Inputs(
        q=values(problem.q_format, size, problem.heads),
        q_scale=meta(size, problem.heads),
        k=values(problem.k_format, size),
        k_scale=meta(size),
        weights=meta(size, problem.heads, dtype=getattr(torch, problem.weights_dtype)),
        starts=meta(size),
        ends=meta(size),
    )
    options = {"clean_logits": problem.clean_logits, "compressed": problem.compressed}
    out = meta(size, size, dtype=getattr(torch, problem.logits_dtype))
    return compat.ExampleCall((inputs, out), options, padded_heads(problem.heads) * problem.dim)


def _gluon_cdna4_accepts(problem: Problem) -> str | None:
    if reason := needs_64_dims(problem.dim):
        return reason
    if not problem.direct_keys:
        return "needs k in 16-byte aligned rows of adjacent elements, less than 8 MiB apart, to copy it straight to LDS"
    return None


operation = compat.Operation(
    "mx_mqa_logits",
    example=example,
    examples=compat.Examples(example_problem, example_call, ("mxfp4-unclean", "mxfp4-clean", "mxfp8-unclean")),
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
        "classic",
        f"{__package__}.classic:kernel",
        requires=("triton", "torch"),
        accepts=lambda problem: classic_runs(problem.device),
        unless_named=lambda problem: interpreted_when_named(problem.device),
    )
)
operation.add(compat.Variant("reference", f"{__package__}.reference:launch", requires=("torch",), last_resort=True))
