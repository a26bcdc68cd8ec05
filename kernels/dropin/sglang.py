"""SGLang's selections: those of its JIT kernels (``sglang.kernels.ops.attention.dsv4.topk``), and ``sgl_kernel``'s.

Ours is exact and the same every time: equal logits by the lower index, NaN above inf, and indices in ascending order of
positions, where SGLang's come in any order and take any of equal logits. Scores may be bfloat16, have any strides and are only
read, also where SGLang's kernels overwrite cells in front of a window. Lengths below 0 are 0. Rows of more than 16384 scores
take memory for candidates, which is allocated in the call. Errors that this package's functions raise use their own argument
names.
"""

import torch

from ..common.checks import check_strided
from ..key_selection import select_from_logits
from .selected import indices_of, select_slots, window

# --- JIT kernels ------------------------------------------------------------------------------------------------------------


def topk_transform_paged_v2(
    scores: torch.Tensor,
    seq_lens: torch.Tensor,
    page_tables: torch.Tensor | None,
    out_page_indices: torch.Tensor,
    page_size: int,
    metadata: torch.Tensor,
    out_raw_indices: torch.Tensor | None = None,
) -> None:
    """Select the positions of each row's largest scores, and write their slots.

    scores : [S, N], float32 or bfloat16
    seq_lens : [S], int32: how many scores each row has
    page_tables : [S, P], int32: each row's pages; None writes positions, as into ``out_raw_indices``
    out_page_indices, out_raw_indices : [S, top_k], int32: where to write the slots, and the positions
    page_size : positions of a page
    metadata : SGLang's plan, not looked at

    Raises TypeError or ValueError as :func:`capgate.kernels.select_from_logits`.
    """
    topk_transform_paged(scores, seq_lens, page_tables, out_page_indices, page_size, out_raw_indices)


def topk_transform_paged(
    scores: torch.Tensor,
    seq_lens: torch.Tensor,
    page_tables: torch.Tensor | None,
    out_page_indices: torch.Tensor,
    page_size: int,
    out_raw_indices: torch.Tensor | None = None,
) -> None:
    """As :func:`topk_transform_paged_v2`, which has a plan as well."""
    top_k = check_strided("out_page_indices", out_page_indices).shape[-1]
    if page_tables is None:
        select_from_logits(scores, None, seq_lens, top_k=top_k, out=out_page_indices)
        if out_raw_indices is not None:
            out_raw_indices.copy_(out_page_indices)
    else:
        select_slots(scores, None, seq_lens, top_k, page_tables, page_size, out_page_indices, out_raw_indices)


def topk_transform_ragged_v2(
    scores: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    out_offsets: torch.Tensor,
    out_indices: torch.Tensor,
    row_starts: torch.Tensor | None = None,
) -> None:
    """Select the keys of each row's largest scores, counted from the row's first, and write them with the row's offset added.

    scores : [S, N], float32 or bfloat16
    seq_lens, row_starts : [S], int32: row i has the columns from ``row_starts[i]``, or 0, and ``seq_lens[i]`` of them
    out_offsets : [S], int32
    out_indices : [S, top_k], int32; -1 behind a row's last key

    Raises TypeError or ValueError as :func:`capgate.kernels.select_from_logits`.
    """
    top_k = check_strided("out_indices", out_indices).shape[-1]
    bounds = window(seq_lens, row_starts)
    select_from_logits(scores, *bounds, top_k=top_k, relative=True, offsets=out_offsets, out=out_indices)


# --- sgl_kernel -------------------------------------------------------------------------------------------------------------


def fast_topk_v2(score: torch.Tensor, lengths: torch.Tensor, topk: int, row_starts: torch.Tensor | None = None) -> torch.Tensor:
    """Select the keys of each row's largest scores, counted from the row's first.

    score : [S, N], float32 or bfloat16
    lengths, row_starts : [S], int32: row i has the columns from ``row_starts[i]``, or 0, and ``lengths[i]`` of them

    Returns int32 [S, topk], -1 behind a row's last key. Raises TypeError or ValueError as
    :func:`capgate.kernels.select_from_logits`.
    """
    return indices_of(score, *window(lengths, row_starts), topk, relative=True)


def fast_topk_transform_fused(
    score: torch.Tensor,
    lengths: torch.Tensor,
    page_table_size_1: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    topk: int,
    row_starts: torch.Tensor | None = None,
) -> torch.Tensor:
    """As :func:`fast_topk_v2`, and look the keys up in a table of slots.

    page_table_size_1 : [B, P], int32: the slot of each key of a request
    cu_seqlens_q : [B + 1], int32: request b has the rows from ``cu_seqlens_q[b]`` to ``cu_seqlens_q[b + 1]``; not looked at
        where there is a row for each request and no ``row_starts``

    Returns int32 [S, topk], -1 behind a row's last key. Raises TypeError or ValueError as
    :func:`capgate.kernels.select_from_logits`.
    """
    rows = len(check_strided("score", score))
    requests = None
    if row_starts is not None or len(check_strided("cu_seqlens_q", cu_seqlens_q)) != rows + 1:
        row = torch.arange(rows, dtype=cu_seqlens_q.dtype, device=score.device)
        requests = torch.searchsorted(cu_seqlens_q[1:], row, right=True, out_int32=True)
    bounds = window(lengths, row_starts)
    return select_slots(score, *bounds, topk, page_table_size_1, 1, None, None, requests=requests)


def fast_topk_transform_ragged_fused(
    score: torch.Tensor,
    lengths: torch.Tensor,
    topk_indices_offset: torch.Tensor,
    topk: int,
    row_starts: torch.Tensor | None = None,
) -> torch.Tensor:
    """As :func:`fast_topk_v2`, with ``topk_indices_offset``, [S], int32, added to the keys of each row."""
    return indices_of(score, *window(lengths, row_starts), topk, relative=True, offsets=topk_indices_offset)
