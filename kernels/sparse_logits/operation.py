"""The variants of the sparse logits' operations, in the order in which they are tried, and what each takes."""

from itertools import product
from typing import Any, NamedTuple

from capgate import compat

from ..common.key_formats import FORMATS, PAIRS, SCALE_BYTES, mx_output_of
from ..common.rules import (
    FLOAT32,
    check_sizes,
    classic_runs,
    classic_scores,
    interpreted_when_named,
    key_products,
    native_fp8,
    needs_64_dims,
    needs_e4m3fn,
    output_of,
    padded_heads,
)

MOST_ROWS = 8  # that any kernel scores at a time
HOPPER_PRODUCTS = 256  # of a key with the rows of one of gluon_hopper's groups
MODES = {"unclean": (False, 1), "clean": (True, 1), "shared": (False, MOST_ROWS)}  # clean_logits, and rows that share a list
MX_MODES = {f"{pair}-{mode}": (*PAIRS[pair], *MODES[mode]) for pair, mode in product(PAIRS, MODES)}
CANDIDATE_BLOCKS = (8, 16, 32, 64)  # keys of a candidate block; engines have 8 and 16


class Problem(NamedTuple):
    """One class of calls.

    device : a ``torch.device``, or a target to ask about (``"hip:gfx950"``)
    dtype : of query and key, "float8_e4m3fn" or "float8_e4m3fnuz"; or the query's MX format, "mxfp8" or "mxfp4"
    candidate_block : keys of a candidate block
    next_n : rows of a request, whose keys are in a paged cache; None for packed keys
    block_size, layout : of the cache
    list_rows : rows that share a list, rounded up to a power of two, and at most MOST_ROWS
    packed_words : whether packed keys can be loaded in words of four bytes
    direct_keys : whether keys can be copied straight to LDS: see :func:`.calls.copies_directly` and its like of packed keys
    tensor_maps : whether a tensor map can describe each of q, k and weights
    weights_dtype, logits_dtype : "float32" or "bfloat16"
    k_format : the key's MX format; None where query and key are of one fp8 dtype
    """

    device: Any
    heads: int
    dim: int
    dtype: str
    clean_logits: bool
    candidate_block: int = 8
    next_n: int | None = None
    block_size: int = 64
    layout: str = "flat"
    list_rows: int = 1
    packed_words: bool = True
    direct_keys: bool = True
    tensor_maps: bool = True
    weights_dtype: str = FLOAT32
    logits_dtype: str = FLOAT32
    k_format: str | None = None


def example(device: Any) -> Problem:
    """A DeepSeek-V4.1 prefill call (32 heads of 128 dims) in the fp8 format that the device's matrix instructions read."""
    return Problem(device, 32, 128, native_fp8(device), False)


def example_paged(device: Any) -> Problem:
    """As :func:`example`, of decode from a paged cache."""
    return example(device)._replace(next_n=1)


def example_problem(device: Any, heads: int, dim: int, mode: str, dtype: str | None = None) -> Problem:
    """As :func:`example` with these sizes, mode (see :func:`output_of`) and dtype; ValueError for what does not exist."""
    check_sizes(heads, dim)
    (clean_logits, list_rows), floats = output_of(mode, MODES)
    sizes = (heads, dim, dtype or native_fp8(device), clean_logits)
    return Problem(device, *sizes, list_rows=list_rows, weights_dtype=floats, logits_dtype=floats)


def example_paged_problem(device: Any, heads: int, dim: int, mode: str, dtype: str | None = None) -> Problem:
    """As :func:`example_problem` for :func:`example_paged`."""
    problem = example_problem(device, heads, dim, mode, dtype)
    return problem._replace(next_n=problem.list_rows)


def mx_example(device: Any) -> Problem:
    """As :func:`example` in mxfp4."""
    return Problem(device, 32, 128, "mxfp4", False, k_format="mxfp4")


def mx_example_paged(device: Any) -> Problem:
    """As :func:`mx_example`, of decode from a paged cache."""
    return mx_example(device)._replace(next_n=1)


def mx_example_problem(device: Any, heads: int, dim: int, mode: str, dtype: str | None = None) -> Problem:
    """As :func:`mx_example` with these sizes and mode (see :func:`mx_output_of`); ValueError for what does not exist."""
    check_sizes(heads, dim)
    (q_format, k_format, clean_logits, list_rows), floats = mx_output_of(mode, MX_MODES, dim, dtype)
    options: dict[str, Any] = {"list_rows": list_rows, "weights_dtype": floats, "logits_dtype": floats, "k_format": k_format}
    return Problem(device, heads, dim, q_format, clean_logits, **options)


def mx_example_paged_problem(device: Any, heads: int, dim: int, mode: str, dtype: str | None = None) -> Problem:
    """As :func:`mx_example_problem` for :func:`mx_example_paged`."""
    problem = mx_example_problem(device, heads, dim, mode, dtype)
    return problem._replace(next_n=problem.list_rows)


def example_call(problem: Problem) -> compat.ExampleCall:
    """A call of 256 rows with 2048 candidate blocks each, of 131072 keys, for an offline compile."""
    import torch

    from ..common.mx_operands import FORMAT_OF
    from .operands import Dense, Inputs, MxDense, MxPaged, Paged

    dtypes = {name: dtype for dtype, name in FORMAT_OF.items()}

    def meta(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def values(name: str, *shape: int) -> torch.Tensor:
        dtype = dtypes[name] if problem.k_format else getattr(torch, problem.dtype)
        return meta(*shape, FORMATS[name].key_bytes(problem.dim), dtype=dtype)

    requests, keys, listed, heads = 256, 131072, 2048, problem.heads
    rows, blocks = requests * (problem.next_n or 1), keys // problem.block_size
    q_format, k_format = (problem.dtype, problem.k_format) if problem.k_format else ("fp8", "fp8")
    lines = (rows,) if problem.next_n is None else (requests, problem.next_n)
    q, q_scale = values(q_format, *lines, heads), meta(*lines, heads)
    weights = meta(rows, heads, dtype=getattr(torch, problem.weights_dtype))
    candidates, schedule = meta(rows // problem.list_rows, listed), meta(257, 2)
    inputs: Inputs
    options: dict[str, Any] = {"clean_logits": problem.clean_logits, "candidate_block": problem.candidate_block}
    if problem.next_n is None:
        k, window = values(k_format, keys), meta(rows)
        others = (weights, window, window, candidates, schedule)
        scale = meta(keys) if problem.k_format else meta(keys, dtype=torch.float32)
        inputs = MxDense(q, q_scale, k, scale, *others) if problem.k_format else Dense(q, k, scale, *others)
        options["relative"] = False
    else:
        width = FORMATS[k_format].key_bytes(problem.dim) + SCALE_BYTES
        kv_cache = meta(blocks, problem.block_size, 1, width, dtype=torch.uint8)
        others = (weights, meta(requests), meta(requests, blocks), candidates, schedule)
        inputs = MxPaged(q, q_scale, kv_cache, *others) if problem.k_format else Paged(q, kv_cache, *others)
        options["layout"] = problem.layout
    out = meta(rows, listed * problem.candidate_block, dtype=getattr(torch, problem.logits_dtype))
    return compat.ExampleCall((inputs, out), options, key_products(problem.device, problem.heads, problem.dim))


def _mfma_multiplies(problem: Problem) -> str | None:
    return needs_64_dims(problem.dim) if problem.k_format else needs_e4m3fn(problem.device, problem.dtype)


def _gluon_cdna4_accepts(problem: Problem) -> str | None:
    if reason := _mfma_multiplies(problem):
        return reason
    if problem.block_size % problem.candidate_block:
        return (
            "needs candidate blocks that each lie in one block of the cache, to copy them straight to LDS: "
            f"found {problem.candidate_block} keys in blocks of {problem.block_size}"
        )
    if not problem.direct_keys:
        return (
            "needs 16-byte aligned blocks a multiple of 16 bytes apart within 2 GiB, "
            "and weights, table entries and candidates near each other, to copy them straight to LDS"
        )
    return None


def _gluon_cdna4_packed_accepts(problem: Problem) -> str | None:
    if reason := _mfma_multiplies(problem):
        return reason
    if not problem.direct_keys:
        return (
            "needs k in 16-byte aligned rows of adjacent elements within 2 GiB, "
            "and weights and candidates near each other, to copy them straight to LDS"
        )
    return None


def _gluon_hopper_accepts(problem: Problem) -> str | None:
    if reason := needs_e4m3fn(problem.device, problem.dtype):
        return reason
    if problem.heads % 4:
        return f"needs a multiple of 4 heads: found {problem.heads}"
    if problem.list_rows == 1:
        return "needs rows that share lists, whose keys it gathers once for several: found a list for each"
    if not problem.tensor_maps:
        return "needs operands that tensor maps describe: 16-byte aligned lines of adjacent elements, one key at least"
    return None


def _gluon_hopper_unless_named(problem: Problem) -> str | None:
    group = min(HOPPER_PRODUCTS // padded_heads(problem.heads), MOST_ROWS)
    if problem.list_rows < group:
        return (
            f"gathers keys for groups of {group} rows that share a list, and leaves lists of fewer to classic: "
            f"found {problem.list_rows} rows or fewer to each; name it to use it"
        )
    return None


def _classic_accepts(problem: Problem) -> str | None:
    return classic_runs(problem.device) if problem.k_format else classic_scores(problem.device, problem.dtype)


def _classic_unless_named(problem: Problem) -> str | None:
    return interpreted_when_named(problem.device)


def _operation(
    name: str, example: Any, examples: compat.Examples, *variants: compat.Variant[Problem]
) -> compat.Operation[Problem]:
    operation = compat.Operation(name, example=example, examples=examples, offers=("tuning", "workers"))
    for variant in variants:
        operation.add(variant)
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
    return operation


_MX_MODES = ("mxfp4-unclean", "mxfp4-shared", "mxfp8-unclean")
_PACKED_IN_GLUON = compat.Variant(
    "gluon_cdna4",
    f"{__package__}.gluon_cdna4_packed:kernel",
    requires=("gluon_cdna4", "torch"),
    accepts=_gluon_cdna4_packed_accepts,
)
dense = _operation(
    "sparse_mqa_logits",
    example,
    compat.Examples(example_problem, example_call, tuple(MODES)),
    _PACKED_IN_GLUON,
    compat.Variant(
        "gluon_hopper",
        f"{__package__}.gluon_hopper:kernel",
        requires=("gluon_hopper", "torch"),
        accepts=_gluon_hopper_accepts,
        unless_named=_gluon_hopper_unless_named,
    ),
)
_CACHED_IN_GLUON = compat.Variant(
    "gluon_cdna4", f"{__package__}.gluon_cdna4:kernel", requires=("gluon_cdna4", "torch"), accepts=_gluon_cdna4_accepts
)
paged = _operation(
    "paged_sparse_mqa_logits",
    example_paged,
    compat.Examples(example_paged_problem, example_call, tuple(MODES)),
    _CACHED_IN_GLUON,
)
mx_dense = _operation(
    "mx_sparse_mqa_logits", mx_example, compat.Examples(mx_example_problem, example_call, _MX_MODES), _PACKED_IN_GLUON
)
mx_paged = _operation(
    "mx_paged_sparse_mqa_logits",
    mx_example_paged,
    compat.Examples(mx_example_paged_problem, example_call, _MX_MODES),
    _CACHED_IN_GLUON,
)
