"""The variants of the fused selections, in the order in which they are tried, and the problems each of them takes: a rule says
from shapes alone where fusing is worth it."""

from collections.abc import Callable
from functools import partial
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
    padded_heads,
)
from . import tunings
from .scratch import bytes_needed, programs

# Whether scores are returned, and which of the launches is meant: the scan, or what merges rows that programs shared.
MODES = {"indices": (False, "scan"), "scores": (True, "scan"), "merge": (False, "merge")}

# From which shapes on fusing pays, by the cost model of docs/design/fused_selection.md.
LEAST_KEYS = 8  # that a row can see, times top_k: in shorter rows most keys are candidates anyway
LEAST_SHARE = 4  # of a row's keys, that a program sees, times top_k: of fewer it would keep half or more
MOST_PARTS = 16  # of a row: they are merged by one program, which takes about two of them at a time


class Problem(NamedTuple):
    """One class of calls.

    device : a ``torch.device``, or a target to ask about (``"hip:gfx950"``)
    dtype : of query and key, "float8_e4m3fn" or "float8_e4m3fnuz"
    rows, keys : query rows, and keys that a row can see: see :func:`size_class`
    next_n : rows of a request whose keys are in a paged cache; None for packed keys
    packets : whether queries, and keys for a direct copy to LDS, lie in aligned packets of 16 bytes; cached ones as
        :func:`..common.cache.copies_directly` says
    tensor_maps : whether a tensor map can describe each of packed keys, their scales, queries and weights
    budget : bytes that the lists may take
    asked : whether the caller wants it fused, so that neither the rule nor what was measured matters
    mode : what an offline compile takes of it, a key of MODES; no matter to a call
    """

    device: Any
    heads: int
    dim: int
    dtype: str
    top_k: int
    rows: int
    keys: int
    next_n: int | None = None
    block_size: int = 64
    layout: str = "flat"
    weights_dtype: str = FLOAT32
    packets: bool = True
    tensor_maps: bool = True
    budget: int = 2**31
    asked: bool = False
    mode: str = "indices"


def size_class(size: int) -> int:
    """A size rounded down to a power of two: sizes change from call to call, and the choice is remembered for each problem."""
    return 1 << size.bit_length() >> 1


def why_two_steps(problem: Problem, tune: tunings.Tuning | None = None) -> str | None:
    """None where fusing pays by the cost model, or the reason why not: of shapes alone.

    tune : of the variant that is meant; the classic one's otherwise
    """
    tune = tune or tunings.classic(problem)
    keys, top_k = problem.keys, problem.top_k
    if keys < LEAST_KEYS * top_k:
        return f"rows of about {keys} keys are two steps: top_k {top_k} is fused from {LEAST_KEYS * top_k} keys on"
    groups = -(-problem.rows // tune.rows)
    share = min(keys, groups * keys // programs(problem, tune))
    if share < LEAST_SHARE * top_k:
        return f"each program would see about {share} keys of a row: top_k {top_k} is fused from {LEAST_SHARE * top_k} on"
    if keys > MOST_PARTS * share:
        return f"rows would be shared by about {-(-keys // share)} programs: fused are those of {MOST_PARTS} at most"
    return None


def example(device: Any) -> Problem:
    """DeepSeek-V3.2's prefill at 131,072 tokens: 64 heads of 128 dims, 2048 keys of every query."""
    return Problem(device, 64, 128, native_fp8(device), 2048, 8192, 131072)


def example_paged(device: Any) -> Problem:
    """DeepSeek-V3.2's decode of 64 requests of 131,072 tokens."""
    return example(device)._replace(rows=64, next_n=1)


def example_problem(device: Any, heads: int, dim: int, mode: str, dtype: str | None = None) -> Problem:
    """As :func:`example` with these sizes, and what a mode (a key of MODES) names; ValueError for what does not exist."""
    check_sizes(heads, dim)
    if mode not in MODES:
        raise ValueError(f"mode: got {mode!r}, needs one of {', '.join(MODES)}")
    return example(device)._replace(heads=heads, dim=dim, dtype=dtype or native_fp8(device), asked=True, mode=mode)


def example_paged_problem(device: Any, heads: int, dim: int, mode: str, dtype: str | None = None) -> Problem:
    """As :func:`example_problem` for :func:`example_paged`."""
    return example_problem(device, heads, dim, mode, dtype)._replace(rows=64, next_n=1)


def example_call(problem: Problem) -> compat.ExampleCall:
    """A call with about 4096 rows and as many keys, whose last group of rows programs share, for an offline compile."""
    import torch

    from ..key_selection.operands import Dense

    def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    tune, keys, fp8 = tunings.classic(problem), 4096, getattr(torch, problem.dtype)
    rows = tune.rows * (4096 // tune.rows // programs(problem) * programs(problem) + 1)
    window = meta(rows, dtype=torch.int32)
    inputs = Dense(
        q=meta(rows, problem.heads, problem.dim, dtype=fp8),
        k=meta(keys, problem.dim, dtype=fp8),
        k_scale=meta(keys),
        weights=meta(rows, problem.heads, dtype=getattr(torch, problem.weights_dtype)),
        starts=window,
        ends=window,
    )
    scores, launch = MODES[problem.mode]
    selected = (meta(rows, problem.top_k, dtype=torch.int32), meta(rows, problem.top_k) if scores else None)
    options = {"max_window": None, "relative": False}
    products = key_products(problem.device, problem.heads, problem.dim)
    return compat.ExampleCall((inputs, *selected), options, products, launch == "merge")


def example_paged_call(problem: Problem) -> compat.ExampleCall:
    """A call with 256 requests of up to 65536 keys, for an offline compile."""
    import torch

    from ..key_selection.operands import Paged

    def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    requests, keys, block, next_n = 256, 65536, problem.block_size, problem.next_n or 1
    rows, blocks = requests * next_n, keys // block
    inputs = Paged(
        q=meta(requests, next_n, problem.heads, problem.dim, dtype=getattr(torch, problem.dtype)),
        kv_cache=meta(blocks, block, 1, problem.dim + 4, dtype=torch.uint8),
        weights=meta(rows, problem.heads, dtype=getattr(torch, problem.weights_dtype)),
        context_lens=meta(requests, dtype=torch.int32),
        block_table=meta(requests, blocks, dtype=torch.int32),
    )
    scores, launch = MODES[problem.mode]
    selected = (meta(rows, problem.top_k, dtype=torch.int32), meta(rows, problem.top_k) if scores else None)
    options = {"max_context_len": keys, "layout": problem.layout}
    number = 1 + (launch == "merge")  # the first one makes the schedule
    return compat.ExampleCall((inputs, *selected), options, key_products(problem.device, problem.heads, problem.dim), number)


def _too_many_keys(problem: Problem) -> str | None:
    if problem.top_k > tunings.MAX_TOP_K:
        return f"needs top_k of at most {tunings.MAX_TOP_K}: found {problem.top_k}"
    return None


def _too_little_room(problem: Problem, tune: tunings.Tuning | None = None) -> str | None:
    needed = bytes_needed(problem, tune)
    if needed > problem.budget:
        return f"needs {needed} bytes for lists of programs: found a budget of {problem.budget}"
    return None


def _classic_accepts(problem: Problem) -> str | None:
    if reason := _too_many_keys(problem):
        return reason
    if compat.capabilities(problem.device).target.backend == "hip" and tunings.classic(problem).rows == 1:
        return f"needs at most 64 heads on AMD, where Triton 3.6.0 compiles no lists of one row: found {problem.heads}"
    return _too_little_room(problem) or classic_scores(problem.device, problem.dtype)


def _gluon_cdna4_accepts(problem: Problem) -> str | None:
    if reason := _too_many_keys(problem) or needs_e4m3fn(problem.device, problem.dtype):
        return reason
    if problem.heads > tunings.MAX_WAVE_HEADS:
        return (
            f"needs at most {tunings.MAX_WAVE_HEADS} heads, so that a wave's lanes are keys of one row: found {problem.heads}"
        )
    if problem.next_n is not None:
        if reason := needs_near_blocks(problem.packets, "and q in 16-byte aligned rows of adjacent elements"):
            return reason
        return _too_little_room(problem, tunings.gluon_cdna4_paged(problem))
    if not problem.packets:
        return "needs q and k in 16-byte aligned rows of adjacent elements, those of k less than 8 MiB apart"
    return _too_little_room(problem, tunings.gluon_cdna4(problem))


def _gluon_hopper_accepts(problem: Problem) -> str | None:
    if reason := _too_many_keys(problem) or needs_e4m3fn(problem.device, problem.dtype):
        return reason
    if padded_heads(problem.heads) not in tunings.GLUON_HOPPER or problem.heads % 4:
        return f"needs a multiple of 4 heads, 36 to 64, so that a warp's lanes have 16 keys of two rows: found {problem.heads}"
    if not problem.tensor_maps:
        return "needs operands that tensor maps describe: 16-byte aligned lines of adjacent elements, one key at least"
    return _too_little_room(problem, tunings.gluon_hopper(problem))


def _gluon_hopper_paged_accepts(problem: Problem) -> str | None:
    if reason := _too_many_keys(problem) or needs_e4m3fn(problem.device, problem.dtype):
        return reason
    if problem.heads % 4:
        return f"needs a multiple of 4 heads: found {problem.heads}"
    if problem.layout != "flat":
        return f"needs a flat cache, whose keys tensor maps copy as matrix instructions read them: found a {problem.layout} one"
    if problem.block_size % 32:
        return f"needs blocks of a multiple of 32 keys, as the logits' kernel does: found {problem.block_size}"
    if (problem.next_n or 1) > tunings.HOPPER_ROWS and problem.heads <= 32:
        return (
            "needs one or two rows a request, or more than 32 heads, so that sums over heads are in the order of the logits' "
            f"kernel, whose programs have more rows otherwise: found {problem.next_n} rows and {problem.heads} heads"
        )
    if not problem.tensor_maps:
        return (
            "needs operands that tensor maps describe: 16-byte aligned lines of adjacent elements, "
            "requests at equal distances, blocks a multiple of 16 bytes apart"
        )
    return _too_little_room(problem, tunings.gluon_hopper_paged(problem))


def _fused_unless_named(problem: Problem, tuning: Callable[[Problem], tunings.Tuning] = tunings.classic) -> str | None:
    if problem.asked:
        return None
    # gluon_hopper is for random logits of long rows, and takes twice as long for ascending ones: docs/measured.md.
    label = compat.capabilities(problem.device).target.label
    not_faster = f"not measured to be faster than two steps on {label} whatever the order of logits"
    return why_two_steps(problem, tuning(problem)) or f"{not_faster}: fused=True takes it, and CAPGATE_VARIANT"


def _classic_unless_named(problem: Problem) -> str | None:
    return interpreted_when_named(problem.device) or _fused_unless_named(problem)


def _reference_unless_named(problem: Problem) -> str | None:
    # No last resort, of which a GPU is warned: select_keys takes two steps of its own in its place.
    if problem.asked and compat.capabilities(problem.device).gpu:
        return "would take two steps in torch; name it to use it"
    return None


def _with_variants(operation: "compat.Operation[Problem]", classic: str, reference: str) -> "compat.Operation[Problem]":
    operation.add(
        compat.Variant(
            "classic",
            f"{__package__}.{classic}:kernel",
            requires=("triton", "torch"),
            accepts=_classic_accepts,
            unless_named=_classic_unless_named,
        )
    )
    operation.add(
        compat.Variant(
            "reference", f"{__package__}.reference:{reference}", requires=("torch",), unless_named=_reference_unless_named
        )
    )
    return operation


dense = compat.Operation(
    "fp8_select_keys",
    example=example,
    examples=compat.Examples(example_problem, example_call, tuple(MODES)),
    offers=("tuning",),
)
dense.add(
    compat.Variant(
        "gluon_cdna4",
        f"{__package__}.gluon_cdna4:kernel",
        requires=("gluon_cdna4", "torch"),
        accepts=_gluon_cdna4_accepts,
        unless_named=_fused_unless_named,
    )
)
dense.add(
    compat.Variant(
        "gluon_hopper",
        f"{__package__}.gluon_hopper:kernel",
        requires=("gluon_hopper", "torch"),
        accepts=_gluon_hopper_accepts,
        unless_named=partial(_fused_unless_named, tuning=tunings.gluon_hopper),
    )
)
_with_variants(dense, "classic", "launch")
paged = compat.Operation(
    "fp8_select_paged_keys",
    example=example_paged,
    examples=compat.Examples(example_paged_problem, example_paged_call, tuple(MODES)),
    offers=("tuning",),
)
paged.add(
    compat.Variant(
        "gluon_cdna4",
        f"{__package__}.gluon_cdna4_paged:kernel",
        requires=("gluon_cdna4", "torch"),
        accepts=_gluon_cdna4_accepts,
        unless_named=partial(_fused_unless_named, tuning=tunings.gluon_cdna4_paged),
    )
)
paged.add(
    compat.Variant(
        "gluon_hopper",
        f"{__package__}.gluon_hopper_paged:kernel",
        requires=("gluon_hopper", "torch"),
        accepts=_gluon_hopper_paged_accepts,
        unless_named=partial(_fused_unless_named, tuning=tunings.gluon_hopper_paged),
    )
)
_with_variants(paged, "classic_paged", "launch_paged")
