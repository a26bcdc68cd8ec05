"""The functions of listed blocks, the second level of DeepSeek-V4.1's indexer, and what their metadata holds.

DeepGEMM's metadata is opaque bytes, which its logits trust. Ours are the lists, windows or lengths, and tables that the logits
do not take, one behind the other as int32: copies, so that what a graph replays follows them.
"""

from typing import Annotated, Any, NamedTuple

import torch

from ...common.checks import check_among, check_choice, check_flag, check_integer, check_strided
from ...common.operands import Operand, Operands
from ...sparse_logits import api, api_mx
from .kinds import ROW_BYTES, Queries, keys_of, queries_of, up

DTYPES = (torch.int8, torch.float8_e4m3fn)  # of queries and keys: FP4 and FP8
BLOCKS = (8, 16)  # keys of a block that a list names
ROWS = 2  # that DeepGEMM scores at a time: there is memory for whole pairs
_OF_ROWS = Operand((("rows",),), (torch.int32,))
_LISTS = Operand((("rows", "W"),), (torch.int32,))


class _Windows(NamedTuple):
    cu_seq_len_k_start: Annotated[torch.Tensor, _OF_ROWS]
    cu_seq_len_k_end: Annotated[torch.Tensor, _OF_ROWS]
    sparse_kv_block_indices: Annotated[torch.Tensor, _LISTS]


class _Requests(NamedTuple):
    context_lens: Annotated[torch.Tensor, Operand((("rows",), ("rows", 1)), (torch.int32,))]
    block_table: Annotated[torch.Tensor, Operand((("rows", "pages"),), (torch.int32,))]
    indices: Annotated[torch.Tensor, _OF_ROWS]
    sparse_kv_block_indices: Annotated[torch.Tensor, _LISTS]


_WINDOWS, _REQUESTS = Operands(_Windows), Operands(_Requests)


def get_sparse_mqa_logits_metadata(
    cu_seq_len_k_start: torch.Tensor,
    cu_seq_len_k_end: torch.Tensor,
    num_kv_tokens: int,
    sparse_kv_block_indices: torch.Tensor,
    qk_dtype: torch.dtype,
    sparse_block_kv: int,
    use_unaligned_ks: bool = False,
) -> torch.Tensor:
    """What :func:`fp8_fp4_sparse_mqa_logits` needs of the windows and lists: bytes, for as many calls as have the same.

    cu_seq_len_k_start, cu_seq_len_k_end : [rows], int32
    num_kv_tokens : not looked at, for the keys say it
    sparse_kv_block_indices : [rows, W], int32: of each row numbers of blocks, ascending, as many as its window has or W
    qk_dtype : int8 for FP4, float8_e4m3fn
    sparse_block_kv : keys in a block, 8 or 16
    use_unaligned_ks : without meaning here: a row's blocks begin ``cu_seq_len_k_start % sparse_block_kv`` keys behind multiples
        of ``sparse_block_kv``, which is 0 where DeepGEMM wants it False

    Raises TypeError or ValueError for other arguments.
    """
    inputs = _Windows(cu_seq_len_k_start, cu_seq_len_k_end, sparse_kv_block_indices)
    _WINDOWS.check(inputs)
    check_integer("num_kv_tokens", num_kv_tokens, 0)
    check_flag("use_unaligned_ks", use_unaligned_ks)
    _check_kind(qk_dtype, sparse_block_kv)
    return _packed(sparse_kv_block_indices, cu_seq_len_k_start, cu_seq_len_k_end)


def fp8_fp4_sparse_mqa_logits(
    q: Any,
    kv: tuple[torch.Tensor, torch.Tensor],
    weights: torch.Tensor,
    metadata: torch.Tensor,
    num_max_sparse_blocks: int,
    sparse_block_kv: int,
    use_unaligned_ks: bool = False,
) -> torch.Tensor:
    """Score every query against the keys of its listed blocks.

    q, kv, weights : as in :func:`.dense.fp8_fp4_mqa_logits`
    metadata : of :func:`get_sparse_mqa_logits_metadata`, this module's, for these rows
    num_max_sparse_blocks : W of the lists
    sparse_block_kv, use_unaligned_ks : as there

    Returns bfloat16 logits [rows, W * sparse_block_kv] in rows of a multiple of 512 elements: column
    ``j * sparse_block_kv + o`` is key o of a row's block j, or -inf past the row's last key, where DeepGEMM writes the logits
    of the keys that follow. Columns behind the row's blocks are as the allocation gave them. Raises TypeError or ValueError as
    :func:`capgate.kernels.mx_sparse_mqa_logits`, or of fp8 queries without scales :func:`capgate.kernels.sparse_mqa_logits`.
    """
    queries, block = queries_of(q), check_among("sparse_block_kv", sparse_block_kv, BLOCKS)
    check_flag("use_unaligned_ks", use_unaligned_ks)
    lists, words = _unpacked(metadata, queries, num_max_sparse_blocks)
    if words.numel() != 2 * len(lists):
        raise _misfit(metadata, *lists.shape)
    operands = (*keys_of(kv, queries), weights, words[: len(lists)], words[len(lists) :], lists)
    options: dict[str, Any] = {"candidate_block": block, "out": _output(lists, block)}
    if queries.scales is None:
        return api.sparse_mqa_logits(queries.values, *operands, **options)
    return api_mx.mx_sparse_mqa_logits(queries.values, queries.scales, *operands, **options)


def get_paged_sparse_mqa_logits_metadata(
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    indices: torch.Tensor,
    page_kv: int,
    sparse_kv_block_indices: torch.Tensor,
    qk_dtype: torch.dtype,
    sparse_block_kv: int,
) -> torch.Tensor:
    """What :func:`fp8_fp4_paged_sparse_mqa_logits` needs of the lengths, tables and lists: bytes, for as many calls as have the
    same.

    context_lens : [rows] or [rows, 1], int32
    block_table : [rows, pages], int32
    indices : [rows], int32: the request that each row belongs to, by which DeepGEMM pairs rows; the logits are the same
    page_kv : keys in a block of the cache
    sparse_kv_block_indices, qk_dtype, sparse_block_kv : as in :func:`get_sparse_mqa_logits_metadata`

    Raises TypeError or ValueError for other arguments.
    """
    inputs = _Requests(context_lens, block_table, indices, sparse_kv_block_indices)
    _REQUESTS.check(inputs)
    check_integer("page_kv", page_kv, 1)
    _check_kind(qk_dtype, sparse_block_kv)
    return _packed(sparse_kv_block_indices, context_lens, block_table)


def fp8_fp4_paged_sparse_mqa_logits(
    q: Any,
    kv_cache: torch.Tensor,
    weights: torch.Tensor,
    metadata: torch.Tensor,
    num_max_sparse_blocks: int,
    sparse_block_kv: int,
) -> torch.Tensor:
    """As :func:`fp8_fp4_sparse_mqa_logits` for keys in a paged cache.

    q, kv_cache, weights : as in :func:`.paged.fp8_fp4_paged_mqa_logits`, with next_n of 1
    metadata : of :func:`get_paged_sparse_mqa_logits_metadata`, this module's, for these rows
    """
    queries, block = queries_of(q), check_among("sparse_block_kv", sparse_block_kv, BLOCKS)
    lists, words = _unpacked(metadata, queries, num_max_sparse_blocks)
    rows = len(lists)
    if rows and (words.numel() < rows or words.numel() % rows):
        raise _misfit(metadata, *lists.shape)
    lens, table = words[:rows], words[rows:].reshape(rows, words.numel() // rows - 1 if rows else 0)
    operands = (kv_cache, weights, lens, table, lists)
    options: dict[str, Any] = {"candidate_block": block, "out": _output(lists, block)}
    if queries.scales is None:
        return api.paged_sparse_mqa_logits(queries.values, *operands, **options)
    return api_mx.mx_paged_sparse_mqa_logits(queries.values, queries.scales, *operands, **options)


def _check_kind(qk_dtype: torch.dtype, sparse_block_kv: int) -> None:
    check_choice("qk_dtype", qk_dtype, DTYPES)
    check_among("sparse_block_kv", sparse_block_kv, BLOCKS)


def _packed(*tensors: torch.Tensor) -> torch.Tensor:
    """The words of tensors, one behind the other, as bytes."""
    return torch.cat([tensor.flatten() for tensor in tensors]).view(torch.uint8)


def _unpacked(metadata: torch.Tensor, queries: Queries, num_max_sparse_blocks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(the lists of these queries' rows, the words behind them)."""
    check_strided("metadata", metadata)
    if metadata.dtype is not torch.uint8:
        raise TypeError(f"metadata: got {metadata.dtype}, needs torch.uint8")
    rows, listed = queries.values.shape[:-2].numel(), check_integer("num_max_sparse_blocks", num_max_sparse_blocks, 0)
    whole = metadata.ndim == 1 and metadata.is_contiguous() and metadata.numel() % 4 == 0
    if not whole or metadata.numel() < 4 * rows * listed:
        raise _misfit(metadata, rows, listed)
    words = metadata.view(torch.int32)
    return words[: rows * listed].view(rows, listed), words[rows * listed :]


def _misfit(metadata: torch.Tensor, rows: int, listed: int) -> ValueError:
    shape = tuple(metadata.shape)
    return ValueError(f"metadata: got shape {shape}, needs what the function for it makes of {rows} rows with {listed} blocks")


def _output(lists: torch.Tensor, block: int) -> torch.Tensor:
    """A new output in memory as DeepGEMM allocates it."""
    (rows, listed), dtype = lists.shape, torch.bfloat16
    room = torch.empty((up(rows, ROWS), up(listed * block, ROW_BYTES // dtype.itemsize)), dtype=dtype, device=lists.device)
    return room[:rows, : listed * block]
