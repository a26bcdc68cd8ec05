"""The dense functions."""

import math
from typing import Any

import torch

from ...common.checks import check_choice, check_integer, check_strided
from ...common.logits import LOGITS
from ...mqa_logits import api
from ..families import NotServed
from .kinds import KEY_TILE, has_own_format, keys_of, queries_of
from .processors import get_num_sms

ROW_BYTES = 1024  # that rows of the output are a multiple of
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

    q : a pair of [S, H, D], float8_e4m3fn or float8_e4m3fnuz, and None; or the queries alone
    kv : the keys [N, D] in q's dtype and their scales [N], float32
    weights : [S, H], float32 or bfloat16
    cu_seq_len_k_start, cu_seq_len_k_end : [S], int32
    max_seqlen_k : columns of the output, at least 1: column j of row i means key ``cu_seq_len_k_start[i] + j``
    schedule_meta : not looked at: ours needs none

    Returns float32 logits [S, max_seqlen_k] in rows of a multiple of 256 elements, cells outside the windows as the allocation
    gave them. Raises NotServed for operands in an MX format, and TypeError or ValueError as
    :func:`capgate.kernels.fp8_mqa_logits`.
    """
    q = queries_of(q)
    max_seqlen_k = check_integer("max_seqlen_k", max_seqlen_k, 1)
    return score(q, kv, weights, cu_seq_len_k_start, cu_seq_len_k_end, False, max_seqlen_k)


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
    return score(check_strided("q", q), kv, weights, cu_seq_len_k_start, cu_seq_len_k_end, clean_logits, max_seqlen_k)


def score(
    q: torch.Tensor,
    kv: Any,
    weights: torch.Tensor,
    starts: torch.Tensor,
    ends: torch.Tensor,
    clean_logits: bool,
    max_seqlen_k: int,
    logits_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The logits in memory as DeepGEMM allocates it: [S, N], or compressed for ``max_seqlen_k`` of 1 or more."""
    k, k_scale = keys_of(kv)
    max_seqlen_k = check_integer("max_seqlen_k", max_seqlen_k, 0)
    check_choice("logits_dtype", logits_dtype, LOGITS)
    operands = (q, k, k_scale, weights, starts, ends)
    if max_seqlen_k and q.ndim == 3 and q.shape[0] % _tile_rows(q.shape[1]) == 0:  # a new output of ours is as large
        return api.fp8_mqa_logits(*operands, clean_logits=clean_logits, max_window=max_seqlen_k, logits_dtype=logits_dtype)
    rows, keys = q.shape[:1].numel(), k.shape[:1].numel()  # of what has no dimensions 1, for the function to refuse
    columns, wanted = (max_seqlen_k, max_seqlen_k) if max_seqlen_k else (keys, keys + KEY_TILE)
    step = _up(wanted, math.lcm(KEY_TILE, ROW_BYTES // logits_dtype.itemsize))
    room = torch.empty(_up(rows, _tile_rows(q.shape[1:2].numel())) * step, dtype=logits_dtype, device=q.device)
    out = room.as_strided((rows, columns), (step, 1))
    api.fp8_mqa_logits(*operands, clean_logits=clean_logits, max_window=max_seqlen_k or None, out=out)
    if clean_logits:
        room.as_strided((rows, step - columns), (step, 1), columns).fill_(float("-inf"))  # which DeepGEMM cleans with the rest
    return out


def _tile_rows(heads: int) -> int:
    """Rows of a tile of DeepGEMM's: there is memory for whole ones."""
    return max(1, ROWS_AND_HEADS // max(1, heads))


def _up(size: int, step: int) -> int:
    return -(-size // step) * step


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
    words = _up(3 * get_num_sms(), 2) + 2 * (_up(len(cu_seq_len_k_start), tile) // tile)
    return torch.zeros(words, dtype=torch.int32, device=device)
