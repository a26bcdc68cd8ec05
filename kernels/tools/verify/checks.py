"""What is judged of MQA logits, dense and paged, in fp8 and in MX formats: one call each, and what it has to give.

Each function makes a call of the sizes that it is given, runs it by the variant of its place, and raises
:class:`.judge.Disagreement` where what it wrote is not what float64 says. A variant that refuses it raises CapabilityError.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from capgate import compat

from ...common.rules import packs_relu
from ...mqa_logits import fp8_mqa_logits
from ...paged_mqa_logits import fp8_paged_mqa_logits, paged_mqa_schedule
from . import judge, mx_logits, mx_paged, paged
from . import sparse as listed_blocks
from .judge import Disagreement

MODES = {"clean": True, "unclean": False, "compressed": False}  # clean_logits
WINDOW = 100  # columns of a compressed output, at most
NAN_BYTES = {torch.float8_e4m3fn: 0x7F, torch.float8_e4m3fnuz: 0x80}
REPEATS = 3  # of a call, whose launches are kept from the third on


class Place(NamedTuple):
    """Where a call runs.

    device : of its tensors
    variant : that it names
    fp8 : what the device's matrix instructions read
    """

    device: torch.device
    variant: str
    fp8: torch.dtype


def dense(
    place: Place,
    rows: int,
    keys: int,
    heads: int,
    dim: int,
    windows: str,
    mode: str,
    *,
    dtype: str = "",
    logits: str = "float32",
    odd: bool = False,
    apart: bool = False,
    nan: bool = False,
) -> None:
    """fp8_mqa_logits.

    dtype : of queries and keys, if not the device's own
    logits : "bfloat16" for weights and logits of it
    odd : the output's rows lie anyhow; they begin at multiples of 16 bytes otherwise
    apart : the operands' lines lie apart, and heads of a query side by side
    nan : a query and a key have a NaN each
    """
    if nan and place.variant != "reference" and compat.capabilities(place.device).interpreter:
        raise compat.CapabilityError("needs fp8 NaN: Triton's interpreter decodes it as 480")
    fp8 = getattr(torch, dtype) if dtype else place.fp8
    call = judge.make_call(rows, keys, heads, dim, windows, dtype=fp8, device=str(place.device))
    if logits == "bfloat16":
        call = call._replace(weights=call.weights.bfloat16())
    if apart:
        weights = judge.laid_out(call.weights, gap=3)
        call = call._replace(q=judge.laid_out(call.q, order=(0, 2, 1)), k=judge.laid_out(call.k, gap=16), weights=weights)
    max_window = min(keys, WINDOW) if mode == "compressed" else None
    out = _output(rows, max_window or keys, place.device, logits, odd)
    options: dict[str, Any] = {"clean_logits": MODES[mode], "max_window": max_window, "variant": place.variant}
    if nan:
        for tensor in (call.q[rows // 2, 0], call.k[keys // 2]):
            tensor.view(torch.uint8)[dim // 3] = NAN_BYTES[fp8]
        written = fp8_mqa_logits(*call, **options, out=out)
        _same_nans(written, judge.formula(call, max_window))
        return
    judge.check(call, place.variant, clean_logits=MODES[mode], max_window=max_window, out=out)
    _same_again(partial(fp8_mqa_logits, *call, **options), out)


def _output(rows: int, columns: int, device: torch.device, logits: str, odd: bool) -> torch.Tensor:
    dtype: torch.dtype = getattr(torch, logits)
    unit = 16 // dtype.itemsize
    layout = {} if odd else {"gap": -columns % unit + unit, "offset": unit}
    return judge.sentinels(rows, columns, str(device), dtype, **layout)


def _same_nans(written: torch.Tensor, answer: judge.Answer) -> None:
    """Logits are NaN where the formula's are, and the others agree."""
    expected = answer.logits.isnan() & answer.inside
    if not expected.any():
        raise Disagreement("no logit of the call is NaN: it says nothing")
    if not torch.equal(written.isnan() & answer.inside, expected):
        raise Disagreement(f"{int(((written.isnan() & answer.inside) != expected).sum())} cells wrongly NaN or not")
    others = answer.inside & ~expected
    judge.agree(written[others], answer.logits[others], answer.magnitude[others], True)


def _same_again(function: Callable[..., torch.Tensor], out: torch.Tensor) -> None:
    """The same call, and one that allocates its output, give the same bits."""
    before = judge.storage_of(out, judge.WORDS[out.dtype]).clone()
    for _ in range(REPEATS):
        function(out=out)
    if not torch.equal(judge.storage_of(out, judge.WORDS[out.dtype]), before):
        raise Disagreement("the same call gives other bits")


def paged_logits(
    place: Place,
    lens: Sequence[int],
    next_n: int,
    heads: int,
    dim: int,
    block: int,
    mode: str,
    *,
    layout: str = "flat",
    logits: str = "float32",
    workers: int = 0,
    absent: bool = False,
    row_lens: bool = False,
) -> None:
    """fp8_paged_mqa_logits.

    workers : that a schedule is given for; 0 leaves it to the call
    absent : every second block is one that the cache lacks
    row_lens : lengths are given for each row of a request
    """
    counts: Any = [[max(length - 3 * (next_n - 1 - row), 0) for row in range(next_n)] for length in lens] if row_lens else lens
    call = paged.make_call(counts, next_n, heads, dim, block, gap=16, layout=layout, dtype=place.fp8, device=str(place.device))
    if absent:
        call = paged.without_blocks(call)
    if logits == "bfloat16":
        call = call._replace(weights=call.weights.bfloat16())
    columns = max(*lens, 1)
    out = _output(len(lens) * next_n, columns, place.device, logits, odd=False)
    schedule = paged_mqa_schedule(call.context_lens, block, workers) if workers else None
    paged.check(call, place.variant, columns, clean_logits=MODES[mode], layout=layout, schedule=schedule, out=out)
    options: dict[str, Any] = {"clean_logits": MODES[mode], "layout": layout, "schedule": schedule, "variant": place.variant}
    _same_again(partial(fp8_paged_mqa_logits, *call, max_context_len=columns, **options), out)


def mx_dense(
    place: Place,
    rows: int,
    keys: int,
    heads: int,
    dim: int,
    windows: str,
    mode: str,
    *,
    queries: str = "mxfp4",
    keys_in: str = "mxfp4",
    logits: str = "float32",
) -> None:
    """mx_mqa_logits.

    queries, keys_in : formats of q and k
    """
    call = mx_logits.make_call(rows, keys, heads, dim, (queries, keys_in), windows, device=str(place.device))
    if logits == "bfloat16":
        call = call._replace(weights=call.weights.bfloat16())
    max_window = min(keys, WINDOW) if mode == "compressed" else None
    out = _output(rows, max_window or keys, place.device, logits, odd=False)
    mx_logits.check(call, place.variant, clean_logits=MODES[mode], max_window=max_window, out=out)


def mx_paged_logits(
    place: Place,
    lens: Sequence[int],
    next_n: int,
    heads: int,
    dim: int,
    block: int,
    mode: str,
    *,
    queries: str = "mxfp4",
    keys_in: str = "mxfp4",
    layout: str = "flat",
) -> None:
    """mx_paged_mqa_logits."""
    pair = (queries, keys_in)
    call = mx_paged.make_call(lens, next_n, heads, dim, block, pair, layout=layout, gap=16, device=str(place.device))
    columns = max(*lens, 1)
    out = _output(len(lens) * next_n, columns, place.device, "float32", odd=False)
    mx_paged.check(call, place.variant, columns, layout, clean_logits=MODES[mode], out=out)


def sparse(
    place: Place,
    rows: int,
    keys: int,
    listed: int,
    heads: int,
    dim: int,
    windows: str,
    mode: str,
    *,
    block: int = 8,
    queries: str = "fp8",
    keys_in: str = "fp8",
) -> None:
    """sparse_mqa_logits; of queries and keys in MX formats mx_sparse_mqa_logits.

    listed : blocks that each row lists
    block : keys of one
    queries, keys_in : formats of q and k
    """
    kind: dict[str, Any] = {"dtype": place.fp8} if queries == "fp8" else {"pair": (queries, keys_in)}
    call = listed_blocks.make_call(windows, rows, keys, listed, block, heads, dim, **kind)
    listed_blocks.check(call, place.variant, block, clean_logits=MODES[mode], device=str(place.device))


def sparse_paged(
    place: Place,
    lens: Sequence[int],
    next_n: int,
    listed: int,
    heads: int,
    dim: int,
    mode: str,
    *,
    layout: str = "flat",
    queries: str = "fp8",
    keys_in: str = "fp8",
) -> None:
    """paged_sparse_mqa_logits; of queries and keys in MX formats mx_paged_sparse_mqa_logits."""
    options: dict[str, Any] = {"heads": heads, "dim": dim, "layout": layout}
    options |= {"dtype": place.fp8} if queries == "fp8" else {"pair": (queries, keys_in)}
    call = listed_blocks.make_paged_call(lens, listed, next_n=next_n, **options)
    clean = MODES[mode]
    listed_blocks.check(call, place.variant, layout=layout, clean_logits=clean, device=str(place.device))


# --- what no hardware has shown ---------------------------------------------------------------------------------------------


def packed_relu(place: Place, rows: int, keys: int, heads: int, dim: int, *, nan: bool = False) -> None:
    """fp8_mqa_logits with the capability packed_clamp: its logits have the bits that they have without, NaN among them."""
    _uses_it(place, dim)
    call = judge.make_call(rows, keys, heads, dim, "ragged", dtype=place.fp8, device=str(place.device))
    if nan:
        call.q[rows // 2, 0].view(torch.uint8)[dim // 3] = NAN_BYTES[place.fp8]
    _same_bits(partial(fp8_mqa_logits, *call, clean_logits=True, variant=place.variant), nan)


def packed_relu_paged(
    place: Place, lens: Sequence[int], next_n: int, heads: int, dim: int, block: int, *, nan: bool = False
) -> None:
    """The same of fp8_paged_mqa_logits."""
    _uses_it(place, dim)
    call = paged.make_call(lens, next_n, heads, dim, block, dtype=place.fp8, device=str(place.device))
    if nan:
        call.q[0, 0, 0].view(torch.uint8)[dim // 3] = NAN_BYTES[place.fp8]
    options: dict[str, Any] = {"max_context_len": max(*lens, 1), "clean_logits": True, "variant": place.variant}
    _same_bits(partial(fp8_paged_mqa_logits, *call, **options), nan)


def _uses_it(place: Place, dim: int) -> None:
    """Raise CapabilityError where the kernel would be the same with the capability."""
    with compat.override(enable=["packed_clamp"]):
        compat.require("packed_clamp", place.device)
        if not packs_relu(place.device, str(place.fp8).removeprefix("torch."), dim):
            raise compat.CapabilityError(f"needs products that a clamp is the relu of: found {place.fp8} of {dim} dims")


def _same_bits(function: Callable[[], torch.Tensor], nan: bool) -> None:
    with compat.override(disable=["packed_clamp"]):
        plain = function()
    with compat.override(enable=["packed_clamp"]):
        packed = function()
    if bool(plain.isnan().any()) != nan:
        raise Disagreement(f"without packed_clamp {'no logit is' if nan else 'logits are'} NaN: the call says nothing")
    if not torch.equal(plain.isnan(), packed.isnan()):
        raise Disagreement(f"{int((plain.isnan() != packed.isnan()).sum())} logits are NaN, or not, otherwise than without it")
    others = plain.nan_to_num() != packed.nan_to_num()
    if others.any():
        raise Disagreement(f"{int(others.sum())} logits of {others.numel()} have other bits than without it")
