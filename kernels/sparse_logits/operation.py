"""The variants of sparse_mqa_logits and paged_sparse_mqa_logits, in the order in which they are tried, and what each takes."""

from typing import Any, NamedTuple

from capgate import compat

from ..common.rules import (
    FLOAT32,
    check_sizes,
    classic_scores,
    interpreted_when_named,
    native_fp8,
    output_of,
    padded_heads,
)

MOST_ROWS = 8  # that any kernel scores at a time
MODES = {"unclean": (False, 1), "clean": (True, 1), "shared": (False, MOST_ROWS)}  # clean_logits, and rows that share a list
CANDIDATE_BLOCKS = (8, 16, 32, 64)  # keys of a candidate block; engines have 8 and 16


class Problem(NamedTuple):
    """One class of calls.

    device : a ``torch.device``, or a target to ask about (``"hip:gfx950"``)
    dtype : of query and key, "float8_e4m3fn" or "float8_e4m3fnuz"
    candidate_block : keys of a candidate block
    next_n : rows of a request, whose keys are in a paged cache; None for packed keys
    block_size, layout : of the cache
    list_rows : rows that share a list, rounded up to a power of two, and at most MOST_ROWS
    packed_words : whether packed keys can be loaded in words of four bytes
    weights_dtype, logits_dtype : "float32" or "bfloat16"
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
    weights_dtype: str = FLOAT32
    logits_dtype: str = FLOAT32


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


def example_call(problem: Problem) -> compat.ExampleCall:
    """A call of 256 rows with 2048 candidate blocks each, of 131072 keys, for an offline compile."""
    import torch

    from .operands import Dense, Paged

    def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def integers(*shape: int) -> torch.Tensor:
        return meta(*shape, dtype=torch.int32)

    requests, keys, listed, fp8 = 256, 131072, 2048, getattr(torch, problem.dtype)
    rows = requests * (problem.next_n or 1)
    q = meta(rows, problem.heads, problem.dim, dtype=fp8)
    weights = meta(rows, problem.heads, dtype=getattr(torch, problem.weights_dtype))
    candidates, schedule = integers(rows // problem.list_rows, listed), integers(257, 2)
    inputs: Dense | Paged
    options: dict[str, Any] = {"clean_logits": problem.clean_logits, "candidate_block": problem.candidate_block}
    if problem.next_n is None:
        k, k_scale, window = meta(keys, problem.dim, dtype=fp8), meta(keys), integers(rows)
        inputs = Dense(q, k, k_scale, weights, window, window, candidates, schedule)
        options["relative"] = False
    else:
        blocks = keys // problem.block_size
        kv_cache = meta(blocks, problem.block_size, 1, problem.dim + 4, dtype=torch.uint8)
        q, lens, table = q.unflatten(0, (requests, problem.next_n)), integers(requests), integers(requests, blocks)
        inputs = Paged(q, kv_cache, weights, lens, table, candidates, schedule)
        options["layout"] = problem.layout
    out = meta(rows, listed * problem.candidate_block, dtype=getattr(torch, problem.logits_dtype))
    return compat.ExampleCall((inputs, out), options, padded_heads(problem.heads) * problem.dim)


def _classic_accepts(problem: Problem) -> str | None:
    return classic_scores(problem.device, problem.dtype)


def _classic_unless_named(problem: Problem) -> str | None:
    return interpreted_when_named(problem.device)


def _variants(operation: compat.Operation[Problem]) -> compat.Operation[Problem]:
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


dense = _variants(
    compat.Operation(
        "sparse_mqa_logits",
        example=example,
        examples=compat.Examples(example_problem, example_call, tuple(MODES)),
        offers=("tuning", "workers"),
    )
)
paged = _variants(
    compat.Operation(
        "paged_sparse_mqa_logits",
        example=example_paged,
        examples=compat.Examples(example_paged_problem, example_call, tuple(MODES)),
        offers=("tuning", "workers"),
    )
)
