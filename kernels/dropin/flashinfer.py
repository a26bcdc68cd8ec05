"""FlashInfer's selections for sparse attention (``flashinfer.topk``), over this package's functions.

vLLM and SGLang call them where they are configured to. Ours is exact and the same every time, whatever ``deterministic`` says:
equal logits by the lower index (``tie_break`` 0 or 1), NaN above inf, and indices in ascending order of positions, where
FlashInfer's come in any order. Nothing is cached, and every call can be captured in a graph; rows of more than 16384 logits
take memory for candidates, which is allocated in the call. Not served are float16 and ``tie_break=2``, of equal logits the
higher index: see :class:`capgate.kernels.dropin.NotServed`. Errors that this package's functions raise use their own argument
names.
"""

import torch

from ..common.checks import check_integer, check_strided
from .families import NotServed
from .selected import indices_of, select_slots, window

LARGER_INDEX = 2  # of TopKTieBreak


def top_k_page_table_transform(
    input: torch.Tensor,  # noqa: A002 - FlashInfer's name
    src_page_table: torch.Tensor,
    lengths: torch.Tensor,
    k: int,
    row_to_batch: torch.Tensor | None = None,
    deterministic: bool = False,
    tie_break: int = 0,
    dsa_graph_safe: bool = False,
    row_starts: torch.Tensor | None = None,
    page_table_row_starts: torch.Tensor | None = None,
    *,
    page_size: int = 1,
    out: torch.Tensor | None = None,
    out_raw_indices: torch.Tensor | None = None,
) -> torch.Tensor:
    """Select the keys of each row's largest logits, and return their slots of a page table.

    input : [S, N], float32 or bfloat16
    src_page_table : [B, P], int32
    lengths : [S], int32: row i has the columns from ``row_starts[i]``, or 0, and so many
    row_to_batch : [S], int32: the row of the table for each row of logits; i for row i otherwise
    deterministic, dsa_graph_safe : without meaning here: ours always is
    tie_break : 0 or 1
    row_starts, page_table_row_starts : [S], int32: a row's first column, and the first of its entries in the table, which is
        ``row_starts`` if it is not given
    page_size : columns of an entry; with more than one and ``row_starts``, ``page_table_row_starts`` are needed
    out, out_raw_indices : [S, k], int32: where to write the slots, and the columns counted from the row's first

    Returns ``out`` or a new tensor, -1 behind a row's last key. Raises TypeError or ValueError as
    :func:`capgate.kernels.select_from_logits`.
    """
    _check_served(input, tie_break)
    page_size = check_integer("page_size", page_size, 1)
    if page_size > 1 and row_starts is not None and page_table_row_starts is None:
        raise ValueError("page_table_row_starts: got None, needs entries with page_size > 1 and row_starts, which are columns")
    starts, ends = window(lengths, row_starts)
    return select_slots(
        input,
        starts,
        ends,
        k,
        src_page_table,
        page_size,
        out,
        out_raw_indices,
        relative=page_table_row_starts is not None,
        offsets=page_table_row_starts if page_table_row_starts is None or page_size == 1 else page_table_row_starts * page_size,
        requests=row_to_batch,
    )


def top_k_ragged_transform(
    input: torch.Tensor,  # noqa: A002 - FlashInfer's name
    offsets: torch.Tensor,
    lengths: torch.Tensor,
    k: int,
    deterministic: bool = False,
    tie_break: int = 0,
    dsa_graph_safe: bool = False,
    row_starts: torch.Tensor | None = None,
) -> torch.Tensor:
    """Select the keys of each row's largest logits, counted from the row's first key, and add the row's offset.

    input, lengths, k, deterministic, tie_break, dsa_graph_safe, row_starts : as in :func:`top_k_page_table_transform`
    offsets : [S], int32

    Returns int32 [S, k], -1 behind a row's last key. Raises TypeError or ValueError as
    :func:`capgate.kernels.select_from_logits`.
    """
    _check_served(input, tie_break)
    return indices_of(input, *window(lengths, row_starts), k, relative=True, offsets=offsets)


def _check_served(logits: torch.Tensor, tie_break: int) -> None:
    if check_strided("input", logits).dtype is torch.float16:
        raise NotServed("logits in float16")
    if check_integer("tie_break", tie_break, 0, LARGER_INDEX) == LARGER_INDEX:
        raise NotServed("tie_break=2, equal logits by the higher index")
