"""aiter's signature for the MQA logits of its Gluon kernel in MXFP4 (``aiter.ops.triton.attention.pa_mqa_logits_mxfp4``).

vLLM on gfx950 calls it so. It has had three signatures, of which this is the newest: :mod:`.mxfp4_gather` and
:mod:`.mxfp4_first` have the others. Where a call asks for more than logits of a request's keys in their order, aiter's own
function is called.
"""

from typing import Annotated, Any, NamedTuple

import torch

from ... import mx_paged_logits
from ...common import mx
from ...common.checks import check_integer, check_strided
from ...common.key_formats import BLOCK_SIZES, SCALE_BYTES
from ...common.operands import Derived, Operand, Operands
from ...common.rules import MAX_HEADS
from ..families import NotServed

WIDE = 1  # aiter's number for the order of scales that its caches have
OCTETS = (torch.uint8,)
_GROUPS = Derived("D / 32", lambda half: half // 16, ("D / 2",))
_LENGTHS = Operand((("B",),), (torch.int32,), (), (Derived("B + 1", lambda requests: requests + 1, ("B",)),))


class _Rows(NamedTuple):
    q: Annotated[torch.Tensor, Operand((("B", "next_n", "H", "D / 2"),), OCTETS, (), (_GROUPS,))]
    q_scales: Annotated[torch.Tensor, Operand((("B", "next_n", "H", "D / 32"),), OCTETS)]
    context_lens: Annotated[torch.Tensor, _LENGTHS]
    block_table: Annotated[torch.Tensor, Operand((("B", "max_blocks"),), (torch.int32,))]


class _PackedRows(NamedTuple):
    q: Annotated[torch.Tensor, Operand((("rows", "H", "D / 2"),), OCTETS, (), (_GROUPS,))]
    q_scales: Annotated[torch.Tensor, Operand((("rows", "H", "D / 32"),), OCTETS)]
    context_lens: Annotated[torch.Tensor, _LENGTHS]
    block_table: Annotated[torch.Tensor, Operand((("B", "max_blocks"),), (torch.int32,))]
    query_start_loc: Annotated[torch.Tensor, Operand((("B + 1",),), (torch.int32,))]


_ROWS, _PACKED_ROWS = Operands(_Rows), Operands(_PackedRows)


def paged_mxfp4_mqa_logits(
    q: torch.Tensor,
    q_scales: torch.Tensor,
    kv_cache: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    max_model_len: int,
    kv_scale_cache: torch.Tensor | None = None,
    out_logits: torch.Tensor | None = None,
    clean_logits: bool = True,
    preshuffle: int = 1,
    scale_mode: int = WIDE,
    dynamic: int = 0,
    schedule: torch.Tensor | None = None,
    row_ends: torch.Tensor | None = None,
    query_start_loc: torch.Tensor | None = None,
    next_n: int | None = None,
    use_gather: bool = False,
    candidates: Any = None,
    block_scores: torch.Tensor | None = None,
    calc_logits: bool = True,
    calc_block_scores: bool = False,
    candidate_block_size: int = 8,
) -> torch.Tensor:
    """Score the last queries of every request against its keys in a paged cache.

    q : [B, next_n, H, 64], or with ``query_start_loc`` [rows, H, 64], uint8
    q_scales : as ``q`` with 4 bytes in the place of 64, uint8
    kv_cache : [num_blocks, block, 1, 68] or [num_blocks, block, 68], uint8: with ``preshuffle`` in layout "gluon-32" of our
        functions for 32 heads or more, and "gluon-16" for fewer; else "flat"
    weights : [rows, H], float32 or bfloat16
    context_lens : [B], int32, row t of n seeing ``context_lens[b] - n + t + 1`` keys
    block_table : [B, max_blocks], int32
    max_model_len : columns
    out_logits : [rows, max_model_len], float32
    clean_logits : True sets the cells that a row does not see to -inf, also in ``out_logits``; False leaves them as they are
    row_ends : [rows], int32: how many keys each row sees instead, at most its request's
    query_start_loc : [B + 1], int32: the first row of each request, and how many there are
    dynamic, schedule, next_n : tuning of aiter's kernel, without meaning here

    Returns ``out_logits``, or new logits [rows, max_model_len]. Raises NotServed for candidates, block scores, scales in a
    cache of their own or in aiter's narrow order, other dims than 128, and more heads or larger blocks than ours has; TypeError
    or ValueError as :func:`capgate.kernels.mx_paged_mqa_logits`.
    """
    if use_gather or candidates is not None:
        raise NotServed("logits of listed candidates")
    if calc_block_scores or block_scores is not None or not calc_logits:
        raise NotServed("scores of candidate blocks")
    if scale_mode != WIDE:
        raise NotServed("scales in the narrow order")
    operands = (q, q_scales, kv_cache, weights, context_lens, block_table, max_model_len)
    return score(*operands, kv_scale_cache, out_logits, clean_logits, preshuffle, row_ends, query_start_loc)


def score(
    q: torch.Tensor,
    q_scales: torch.Tensor,
    kv_cache: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    max_model_len: int,
    kv_scale_cache: torch.Tensor | None,
    out_logits: torch.Tensor | None,
    clean_logits: bool,
    preshuffle: int,
    row_ends: torch.Tensor | None = None,
    query_start_loc: torch.Tensor | None = None,
) -> torch.Tensor:
    """The logits; arguments as in :func:`paged_mxfp4_mqa_logits`, whose function of any generation this is."""
    if kv_scale_cache is not None:
        raise NotServed("scales in a cache of their own")
    given = (q, q_scales, context_lens, block_table)
    lens = context_lens
    if query_start_loc is None:
        _ROWS.check(given)
        rows = q.shape[0] * q.shape[1]
        if row_ends is not None:
            lens = torch.minimum(_ends(row_ends, rows).view(q.shape[:2]), context_lens[:, None])
    else:
        _PACKED_ROWS.check((*given, query_start_loc))
        rows = len(q)
        ends = None if row_ends is None else _ends(row_ends, rows)
        lens, requests = _of_packed_rows(context_lens, query_start_loc, rows, ends)
        q, q_scales, block_table = q[:, None], q_scales[:, None], block_table[requests]
    max_model_len = check_integer("max_model_len", max_model_len, 0)
    cache, layout = _cache(kv_cache, q, bool(preshuffle))
    if out_logits is None:
        out_logits = torch.empty((rows, max_model_len), dtype=torch.float32, device=q.device)
    return mx_paged_logits.mx_paged_mqa_logits(
        q,
        _words(q_scales),
        cache,
        weights,
        lens,
        block_table,
        max_context_len=max_model_len,
        clean_logits=bool(clean_logits),
        layout=layout,
        out=out_logits,
    )


def _ends(row_ends: torch.Tensor, rows: int) -> torch.Tensor:
    if check_strided("row_ends", row_ends).dtype is not torch.int32:
        raise TypeError(f"row_ends: got {row_ends.dtype}, needs torch.int32")
    if row_ends.shape != (rows,):
        raise ValueError(f"row_ends: got shape {tuple(row_ends.shape)}, needs [{rows}]")
    return row_ends


def _of_packed_rows(
    context_lens: torch.Tensor, query_start_loc: torch.Tensor, rows: int, ends: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """How many keys each row sees, and its request; rows behind the last request's see none. Nothing is read back."""
    requests = len(context_lens)
    row = torch.arange(rows, dtype=torch.int32, device=query_start_loc.device)
    if not requests:
        return torch.zeros_like(row), row
    request = torch.searchsorted(query_start_loc[1:], row, right=True, out_int32=True).clamp(max=requests - 1)
    longest, past = context_lens[request], query_start_loc[request + 1]
    if ends is None:
        ends = longest - past + row + 1  # len - n + t + 1 of row start + t
    return torch.where(row < past, torch.minimum(ends, longest), 0), request


def _cache(kv_cache: torch.Tensor, q: torch.Tensor, preshuffle: bool) -> tuple[torch.Tensor, str]:
    """The cache as our function takes it, and its layout."""
    heads, dim = q.shape[2], 2 * q.shape[3]
    if heads > MAX_HEADS:
        raise NotServed(f"more than {MAX_HEADS} heads")
    if dim != 128:  # of 64, a key's scales are two bytes
        raise NotServed("queries of other than 128 dims")
    octets = check_strided("kv_cache", kv_cache)
    octets = octets.unsqueeze(2) if octets.ndim == 3 else octets
    if octets.ndim == 4 and octets.shape[1] > BLOCK_SIZES[-1]:
        raise NotServed(f"blocks of more than {BLOCK_SIZES[-1]} keys")
    width = dim // 2 + SCALE_BYTES
    if octets.ndim == 4 and octets.shape[3] != width:
        raise ValueError(f"kv_cache: got keys of {octets.shape[3]} bytes, needs {width}")
    return octets, ("gluon-32" if heads >= 32 else "gluon-16") if preshuffle else "flat"


def _words(scales: torch.Tensor) -> torch.Tensor:
    """Bytes [..., 4] as words, without a copy where they lie as words."""
    starts = (scales.storage_offset(), *scales.stride()[:-1])
    if scales.stride(-1) == 1 and not any(start % SCALE_BYTES for start in starts):
        return scales.view(torch.int32)[..., 0]
    return mx.packed(scales)
