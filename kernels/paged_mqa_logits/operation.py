"""The variants of fp8_paged_mqa_logits, in the order in which they are tried, and the problems each of them takes."""

from typing import Any, NamedTuple

from capgate import compat

from ..launch import ExampleCall
from ..mqa_logits import operation as dense
from ..mqa_logits.operation import padded_heads

MODES = {"unclean": False, "clean": True}  # clean_logits
MAX_NEXT = 8
CHUNK_KEYS = 128  # a schedule's unit of work: a multiple of every branch's key tile


class Problem(NamedTuple):
    """One class of calls.

    device : a ``torch.device``, or a target to ask about (``"hip:gfx950"``)
    dtype : of queries and cached keys, "float8_e4m3fn" or "float8_e4m3fnuz"
    block_size : keys in a block of the cache
    next_n : rows of a request, its draft tokens included
    direct_keys : whether keys can be copied straight to LDS: see :func:`.function.copies_directly`
    tensor_maps : whether tensor maps can describe the queries, the weights, and the cache's keys and scales
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


def example(device: Any) -> Problem:
    """A DeepSeek-V4 decode call (64 heads of 128 dims) with the fp8 format that the device's matrix instructions read."""
    heads, dim, dtype = dense.example(device)[1:4]
    return Problem(device, heads, dim, dtype, False)


def example_problem(device: Any, heads: int, dim: int, mode: str, dtype: str | None = None) -> Problem:
    """As :func:`example` with these sizes, output mode (a key of MODES) and dtype; ValueError for what does not exist."""
    if mode not in MODES:
        raise ValueError(f"mode: got {mode!r}, needs one of {', '.join(MODES)}")
    found = dense.example_problem(device, heads, dim, mode, dtype)
    return Problem(device, found.heads, found.dim, found.dtype, MODES[mode])


def example_call(problem: Problem) -> ExampleCall:
    """A call with 256 requests of up to 65536 keys, for an offline compile."""
    import torch

    def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    requests, keys, block = 256, 65536, problem.block_size
    rows, blocks = requests * problem.next_n, keys // block
    return ExampleCall(
        (
            meta(requests, problem.next_n, problem.heads, problem.dim, dtype=getattr(torch, problem.dtype)),
            meta(blocks, block, 1, problem.dim + 4, dtype=torch.uint8),
            meta(rows, problem.heads),
            meta(requests, dtype=torch.int32),
            meta(requests, blocks, dtype=torch.int32),
            meta(257, 2, dtype=torch.int32),
            meta(rows, keys),
        ),
        {"clean_logits": problem.clean_logits, "target": compat.capabilities(problem.device).target},
        padded_heads(problem.heads) * problem.dim,
    )


def _gluon_cdna4_accepts(problem: Problem) -> str | None:
    if problem.dtype != "float8_e4m3fn":
        return compat.capabilities(problem.device).why("fp8_e4m3fnuz")
    if not problem.direct_keys:
        return (
            "needs 16-byte aligned blocks a multiple of 16 bytes apart, those of fewer than 64 keys within 2 GiB, "
            "and weights and table entries near each other, to copy them straight to LDS"
        )
    return None


def _gluon_hopper_accepts(problem: Problem) -> str | None:
    if problem.dtype != "float8_e4m3fn":
        return compat.capabilities(problem.device).why("fp8_e4m3fnuz")
    if problem.heads % 4:
        return f"needs a multiple of 4 heads: found {problem.heads}"
    if problem.block_size < 32:
        return f"needs blocks of 32 keys or more, whose scales fill 128 bytes: found {problem.block_size}"
    if not problem.tensor_maps:
        return (
            "needs operands that tensor maps describe: 16-byte aligned lines of adjacent elements, "
            "requests at equal distances, blocks a multiple of 16 bytes apart"
        )
    return None


def classic_accepts(problem: Problem) -> str | None:
    return dense.classic_accepts(dense.Problem(*problem[:5], compressed=False))


def classic_unless_named(problem: Problem) -> str | None:
    return dense.classic_unless_named(dense.Problem(*problem[:5], compressed=False))


operation = compat.Operation("fp8_paged_mqa_logits", example=example)
operation.add(
    compat.Variant(
        "gluon_cdna4",
        f"{__package__}.gluon_cdna4:launch",
        requires=("gluon_cdna4", "torch"),
        accepts=_gluon_cdna4_accepts,
    )
)
operation.add(
    compat.Variant(
        "gluon_hopper",
        f"{__package__}.gluon_hopper:launch",
        requires=("gluon_hopper", "torch"),
        accepts=_gluon_hopper_accepts,
    )
)
operation.add(
    compat.Variant(
        "classic",
        f"{__package__}.classic:launch",
        requires=("triton", "torch"),
        accepts=classic_accepts,
        unless_named=classic_unless_named,
    )
)
operation.add(compat.Variant("reference", f"{__package__}.reference:launch", requires=("torch",), last_resort=True))
