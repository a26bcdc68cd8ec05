"""The dense functions."""

from typing import Any

import torch

from ...common.checks import check_choice, check_integer, check_strided
from ...common.logits import LOGITS
from ...mqa_logits import api
from ...mx_logits import api as mx_api
from ..families import NotServed
from .kinds import KEY_TILE, MX_KEY_TILE, ROW_BYTES, Queries, current_dtype, has_own_format, keys_of, queries_of, up
from .processors import get_num_sms

ROWS_AND_HEADS = 128  # of a tile of DeepGEMM's: its rows times heads


def fp8_fp4_mqa_logits(
    q: Any,
    kv: tuple[torch.Tensor, torch.Tensor],
    weights: torch.Tensor,
    cu_seq_len_k_start: torch.Tensor,
    cu_seq_len_k_end: torch.Tensor,
    max_seqlen_k: int,
    schedule_meta: torch.Tensor | None = None,
) -> torch.Tensor:
    """Score every query against the keys in its window, in DeepGEMM 2.8's signature.

    q : a pair of [S, H, D], float8_e4m3fn or float8_e4m3fnuz, and None; or the queries alone. In MX formats a pair of
        [S, H, D], float8_e4m3fn, or [S, H, D / 2], int8, and of their scales [S, H], int32
    kv : the keys [N, D] in q's dtype and their scales [N], float32; in MX formats keys as q and scales [N], int32
    weights : [S, H], float32 or bfloat16
    cu_seq_len_k_start, cu_seq_len_k_end : [S], int32
    max_seqlen_k : columns of the output, at least 1: column j of row i means key ``cu_seq_len_k_start[i] + j``
    schedule_meta : not looked at: ours needs none

    Returns float32 logits [S, max_seqlen_k] in rows of a multiple of 256 elements, cells outside the windows as the allocation
    gave them; in MX formats with bfloat16 weights bfloat16 ones, in rows of a multiple of 384 elements and then of 512. Raises
    TypeError or ValueError as :func:`capgate.kernels.fp8_mqa_logits`, or :func:`capgate.kernels.mx_mqa_logits`.
    """
    queries = queries_of(q)
    dtype = current_dtype(queries, weights)
    tile = MX_KEY_TILE if dtype is torch.bfloat16 else KEY_TILE
    max_seqlen_k = check_integer("max_seqlen_k", max_seqlen_k, 1)
    return score(queries, kv, weights, cu_seq_len_k_start, cu_seq_len_k_end, False, max_seqlen_k, dtype, tile)


def fp8_mqa_logits(
    q: torch.Tensor,
    kv: tuple[torch.Tensor, torch.Tensor],
    weights: torch.Tensor,
    cu_seq_len_k_start: torch.Tensor,
    cu_seq_len_k_end: torch.Tensor,
    clean_logits: bool = True,
    max_seqlen_k: int = 0,
) -> torch.Tensor:
    """Score every query against the keys in its window, in the signature of DeepGEMM 2.1 to 2.6.

    q : [S, H, D], float8_e4m3fn or float8_e4m3fnuz
    kv : the keys [N, D] in q's dtype and their scales [N] (or [N, 1]), float32
    weights : [S, H], float32 or bfloat16
    cu_seq_len_k_start, cu_seq_len_k_end : [S], int32
    clean_logits : True sets the cells outside the window to -inf; False leaves them as the allocation gave them
    max_seqlen_k : more than 0 for the compressed output of this many columns, where column j of row i means key
        ``cu_seq_len_k_start[i] + j``; needs ``clean_logits=False``

    Returns float32 logits [S, N] in rows of N + 256 elements, or [S, max_seqlen_k] in rows of max_seqlen_k, each rounded up to
    a multiple of 256. Raises TypeError or ValueError as :func:`capgate.kernels.fp8_mqa_logits`.
    """
    queries = Queries(check_strided("q", q), None)
    return score(queries, kv, weights, cu_seq_len_k_start, cu_seq_len_k_end, clean_logits, max_seqlen_k)


def score(
    queries: Queries,
    kv: Any,
    weights: torch.Tensor,
    starts: torch.Tensor,
    ends: torch.Tensor,
    clean_logits: bool,
    max_seqlen_k: int,
    logits_dtype: torch.dtype = torch.float32,
    tile: int = KEY_TILE,
) -> torch.Tensor:
    """The logits in memory as DeepGEMM allocates it: [S, N], or compressed for ``max_seqlen_k`` of 1 or more.

    tile : keys that rows are rounded up to, and then to ROW_BYTES
    """
    q, (k, k_scale) = queries.values, keys_of(kv, queries)
    max_seqlen_k = check_integer("max_seqlen_k", max_seqlen_k, 0)
    check_choice("logits_dtype", logits_dtype, LOGITS)
    score_into: Any = api.fp8_mqa_logits if queries.scales is None else mx_api.mx_mqa_logits
    scales = () if queries.scales is None else (queries.scales,)
    operands = (q, *scales, k, k_scale, weights, starts, ends)
    line = ROW_BYTES // logits_dtype.itemsize
    whole = q.ndim == 3 and q.shape[0] % _tile_rows(q.shape[1]) == 0
    if max_seqlen_k and whole and up(up(max_seqlen_k, tile), line) == up(max_seqlen_k, line):  # our new outputs are as large
        options = {"max_window": max_seqlen_k, "logits_dtype": logits_dtype}
        logits: torch.Tensor = score_into(*operands, clean_logits=clean_logits, **options)
        return logits
    rows, keys = q.shape[:1].numel(), k.shape[:1].numel()  # of what has no dimensions 1, for the function to refuse
    columns, wanted = (max_seqlen_k, max_seqlen_k) if max_seqlen_k else (keys, keys + KEY_TILE)
    step = up(up(wanted, tile), line)
    room = torch.empty(up(rows, _tile_rows(q.shape[1:2].numel())) * step, dtype=logits_dtype, device=q.device)
    out = room.as_strided((rows, columns), (step, 1))
    score_into(*operands, clean_logits=clean_logits, max_window=max_seqlen_k or None, out=out)
    if clean_logits:
        room.as_strided((rows, step - columns), (step, 1), columns).fill_(float("-inf"))  # which DeepGEMM cleans with the rest
    return out


def _tile_rows(heads: int) -> int:
    """Rows of a tile of DeepGEMM's: there is memory for whole ones."""
    return max(1, ROWS_AND_HEADS // max(1, heads))


def get_mqa_logits_metadata(
    cu_seq_len_k_start: torch.Tensor, cu_seq_len_k_end: torch.Tensor, num_kv_tokens: int, num_heads: int
) -> torch.Tensor:
    """A schedule for :func:`fp8_fp4_mqa_logits`, of DeepGEMM's size: int32, zeros. Ours makes do without one.

    Raises NotServed on devices where DeepGEMM's kernels read it, TypeError or ValueError for what is no such argument.
    """
    device = check_strided("cu_seq_len_k_start", cu_seq_len_k_start).device
    if not has_own_format(device):
        raise NotServed("a schedule of dense logits on this architecture, which its own kernels read")
    check_integer("num_kv_tokens", num_kv_tokens, 0)
    tile = _tile_rows(check_integer("num_heads", num_heads, 1))
    # Two words to begin with and one count for each worker, in whole pairs; then a pair for each tile of rows.
    words = up(3 * get_num_sms(), 2) + 2 * (up(len(cu_seq_len_k_start), tile) // tile)
    return torch.zeros(words, dtype=torch.int32, device=device)
