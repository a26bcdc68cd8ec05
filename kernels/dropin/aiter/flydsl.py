"""aiter's signatures for the MQA logits of its FlyDSL kernels in MXFP4 (``aiter.ops.flydsl.kernels.mqa_logits``).

ATOM's DeepSeek-V4 and SGLang on gfx950 call them so. Keys stay where they are, in layout "flydsl" of our functions; scales of
queries are put in our order, which copies four bytes for each head. ``flydsl_pa_mqa_logits_fp4_varqlen`` of aiter's module
calls the one for prefill there, ours once that is replaced.
"""

from typing import Any

import torch

from ... import mx_paged_logits
from ...common import mx
from ...common.checks import check_integer, check_strided
from ..families import NotServed

KEYS, CHUNKS, HEAD_TILE = 64, 4, 16  # of a block; of a key's values, and of a query's scales; heads whose scales go together
STRIP_BYTES = 64 * 2**20  # of cells that are masked at a time


def flydsl_pa_mqa_logits_fp4(
    q_fp4: torch.Tensor,
    q_scale: torch.Tensor,
    kv_cache: torch.Tensor,
    kv_scale: torch.Tensor,
    block_tables: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    max_seq_len: int,
    *,
    weight_scale: float = 1.0,
    next_n: int = 1,
    block_k: int = 256,
    kv_block_size: int = 64,
    num_warps: int = 4,
    parallel_unit_num: int | None = None,
    out: torch.Tensor | None = None,
    cta_info: torch.Tensor | None = None,
    total_ctas: int | None = None,
    stream: Any = None,
) -> torch.Tensor:
    """Score the last queries of every request against its keys in a paged cache.

    q_fp4 : [B, next_n, H, 64], uint8
    q_scale : [B, next_n, 1, 4, 16, P], uint8, P times 16 at least H: head h's scale of group g at ``[..., g, h % 16, h // 16]``
    kv_cache, kv_scale : [num_blocks, 1, 4, 64, 16] and [num_blocks, 1, 4, 64], uint8
    block_tables : [B, max_blocks], int32
    weights : [B * next_n, H], bfloat16 or float32, each times ``weight_scale``
    context_lens : [B], row t of next_n seeing ``context_lens[b] - next_n + t + 1`` keys
    max_seq_len : columns
    out : float32, [at least B * next_n, at least max_seq_len]
    cta_info, total_ctas : aiter's schedule, not looked at. As in aiter, cells of ``out`` that no row sees are left as they are
        where it is given, and become -inf otherwise, as those of a new output always do.
    block_k, num_warps, parallel_unit_num : tuning of aiter's kernel, without meaning here

    Returns ``out``, or new logits [B * next_n, max_seq_len]. Raises NotServed for keys of other than 128 dims, blocks of other
    than 64 keys, or a stream; TypeError or ValueError as :func:`capgate.kernels.mx_paged_mqa_logits`.
    """
    lines = _queries(q_fp4, 4)
    if check_integer("next_n", next_n, 1) != lines[1]:
        raise ValueError(f"next_n: got {next_n}, needs q_fp4's {lines[1]}")
    _check_served(kv_cache, kv_block_size, stream)
    words, rows = _words(q_scale, lines), lines[0] * lines[1]
    logits = _output(out, rows, max_seq_len, q_fp4.device)
    mx_paged_logits.mx_paged_mqa_logits(
        q_fp4,
        words,
        kv_cache,
        _weighted(weights, weight_scale),
        _int32("context_lens", context_lens),
        block_tables,
        max_context_len=max_seq_len,
        clean_logits=out is None or cta_info is None,
        layout="flydsl",
        out=logits,
        kv_scale=kv_scale,
    )
    return logits if out is None else out


def flydsl_pa_mqa_logits_fp4_prefill(
    q_fp4: torch.Tensor,
    q_scale: torch.Tensor,
    kv_cache: torch.Tensor,
    kv_scale: torch.Tensor,
    block_tables: torch.Tensor,
    weights: torch.Tensor,
    row_to_batch: torch.Tensor,
    local_starts: torch.Tensor,
    local_ends: torch.Tensor,
    max_seq_len: int,
    *,
    weight_scale: float = 1.0,
    block_k: int = 256,
    kv_block_size: int = 64,
    num_warps: int = 4,
    parallel_unit_num: int = 512,
    out: torch.Tensor | None = None,
    cta_info: torch.Tensor | None = None,
    n_ctas: int | None = None,
    stream: Any = None,
) -> torch.Tensor:
    """Score every query against its window of its request's keys in a paged cache.

    q_fp4 : [S, H, 64], uint8
    q_scale : [S, 1, 4, 16, P], uint8, as in :func:`flydsl_pa_mqa_logits_fp4`
    row_to_batch : [S], integers: the request of each row, and so its row of ``block_tables``, which the call copies for it
    local_starts, local_ends : [S], integers: row i sees the keys from ``local_starts[i]`` to ``local_ends[i]`` of its request
    out : float32, [at least S, at least max_seq_len]; column j means key j of the row's request
    cta_info, n_ctas : aiter's schedule, not looked at. As in aiter, cells of ``out`` behind a row's window are left as they are
        where it is given, and become -inf otherwise. Those in front of one always become -inf, where aiter leaves them as well:
        callers fill ``out`` so, or read the windows alone.

    The others are as in :func:`flydsl_pa_mqa_logits_fp4`. Returns ``out``, or new logits [S, max_seq_len]. Raises as that.
    """
    lines = _queries(q_fp4, 3)
    _check_served(kv_cache, kv_block_size, stream)
    words = _words(q_scale, lines)
    logits = _output(out, lines[0], max_seq_len, q_fp4.device)
    starts, ends = _int32("local_starts", local_starts), _int32("local_ends", local_ends)
    requests = _int32("row_to_batch", row_to_batch).clamp(0, max(0, check_strided("block_tables", block_tables).shape[0] - 1))
    for name, tensor in (("row_to_batch", requests), ("local_starts", starts), ("local_ends", ends)):
        if tensor.shape != lines[:1]:
            raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, needs [{lines[0]}] to match q_fp4")
    mx_paged_logits.mx_paged_mqa_logits(
        q_fp4[:, None],
        words[:, None],
        kv_cache,
        _weighted(weights, weight_scale),
        ends,
        block_tables[requests],
        max_context_len=max_seq_len,
        clean_logits=out is None or cta_info is None,
        layout="flydsl",
        out=logits,
        kv_scale=kv_scale,
    )
    _mask_in_front(logits, starts)
    return logits if out is None else out


def _queries(q_fp4: torch.Tensor, rank: int) -> tuple[int, ...]:
    """The shape of the queries but for their bytes."""
    shape = check_strided("q_fp4", q_fp4).shape
    if len(shape) != rank:
        names = ", ".join(("B", "next_n", "H", "D / 2") if rank == 4 else ("S", "H", "D / 2"))
        raise ValueError(f"q_fp4: got shape {tuple(shape)}, needs [{names}]")
    if shape[-1] != 64:
        raise NotServed("queries of other than 128 dims")
    return tuple(shape[:-1])


def _check_served(kv_cache: torch.Tensor, kv_block_size: int, stream: Any) -> None:
    shape = check_strided("kv_cache", kv_cache).shape
    if stream is not None:
        raise NotServed("a stream other than the current one")
    if len(shape) == 5:  # what it is otherwise our function says
        if check_integer("kv_block_size", kv_block_size, 1) != shape[3]:
            raise ValueError(f"kv_block_size: got {kv_block_size}, needs kv_cache's {shape[3]}")
        if shape[3] != KEYS:
            raise NotServed("blocks of other than 64 keys")


def _words(q_scale: torch.Tensor, lines: tuple[int, ...]) -> torch.Tensor:
    """The scales of queries [lines..., H] as our functions take them."""
    shape = tuple(check_strided("q_scale", q_scale).shape)
    if q_scale.dtype is not torch.uint8:
        raise TypeError(f"q_scale: got {q_scale.dtype}, needs torch.uint8")
    *rows, heads = lines
    if shape[:-1] != (*rows, 1, CHUNKS, HEAD_TILE) or shape[-1] * HEAD_TILE < heads:
        needed = ", ".join(map(str, (*rows, 1, CHUNKS, HEAD_TILE)))
        raise ValueError(f"q_scale: got shape {shape}, needs [{needed}, P] with P of {-(-heads // HEAD_TILE)} or more")
    by_head = q_scale[..., 0, :, :, :].movedim(-3, -1).transpose(-3, -2)  # [..., P, 16, 4]
    return mx.packed(by_head.flatten(-3, -2)[..., :heads, :])


def _weighted(weights: torch.Tensor, weight_scale: float) -> torch.Tensor:
    weights = check_strided("weights", weights)
    return weights if weight_scale == 1 else weights.float() * weight_scale


def _int32(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if check_strided(name, tensor).dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name}: got {tensor.dtype}, needs torch.int32 or torch.int64")
    return tensor.int()


def _output(out: torch.Tensor | None, rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """Where to write: the first rows and columns of the caller's tensor, or a new one."""
    columns = check_integer("max_seq_len", columns, 0)
    if out is None:
        return torch.empty((rows, columns), dtype=torch.float32, device=device)
    shape = check_strided("out", out).shape
    if len(shape) != 2 or shape[0] < rows or shape[1] < columns:
        raise ValueError(f"out: got shape {tuple(shape)}, needs [{rows}, {columns}] or more")
    if out.dtype is not torch.float32:
        raise TypeError(f"out: got {out.dtype}, needs torch.float32")
    return out[:rows, :columns]


def _mask_in_front(logits: torch.Tensor, starts: torch.Tensor) -> None:
    """Set the cells in front of each row's window to -inf. Nothing is read from the device."""
    rows, columns = logits.shape
    column = torch.arange(columns, device=logits.device)
    strip = max(1, STRIP_BYTES // max(1, columns))
    for first in range(0, rows, strip):
        batch = slice(first, first + strip)
        logits[batch].masked_fill_(column < starts[batch, None], float("-inf"))
