"""vLLM's selection of the top keys of each row.

Ours is exact and the same every time: equal logits by the lower index, NaN above inf, indices ascending, where vLLM's takes any
of equal logits, has no rule for NaN, and orders rows of more than ``topK`` keys as it comes. A window that reaches past the
logits is cut, which vLLM's trusts. Rows of more than 16384 logits take memory for candidates, which is allocated in the call
where the caller gives none, or too little.
"""

import torch

from ...common.checks import check_integer, check_strided
from ...key_selection import select_from_logits
from ..selected import columns_of, ends_of, first_of, room_in, rows_at


def top_k_per_row_prefill(
    logits: torch.Tensor,
    rowStarts: torch.Tensor,
    rowEnds: torch.Tensor,
    indices: torch.Tensor,
    numRows: int,
    stride0: int,
    stride1: int,
    topK: int,
) -> None:
    """Select the keys of each row's largest logits, into ``indices``, counted from the row's first key.

    logits : float32 (or bfloat16), two-dimensional; read are ``numRows`` rows with the given strides
    rowStarts, rowEnds : [numRows] or more, int32: row i has the columns from ``rowStarts[i]`` to ``rowEnds[i]``
    indices : [numRows, topK] or more, int32; -1 behind a row's last key

    Raises TypeError or ValueError as :func:`capgate.kernels.select_from_logits`.
    """
    rows = rows_at(logits, numRows, stride0, stride1)
    out = columns_of("indices", indices, len(rows), topK)
    starts, ends = first_of(rowStarts, len(rows)), first_of(rowEnds, len(rows))
    select_from_logits(rows, starts, ends, top_k=topK, relative=True, out=out)


def top_k_per_row_decode(
    logits: torch.Tensor,
    next_n: int,
    seq_lens: torch.Tensor,
    indices: torch.Tensor,
    numRows: int,
    stride0: int,
    stride1: int,
    topK: int,
) -> None:
    """Select the positions of each row's largest logits, into ``indices``.

    logits, indices, numRows, stride0, stride1, topK : as in :func:`top_k_per_row_prefill`
    next_n : rows of a request
    seq_lens : int32: of one dimension for requests, whose row t sees ``seq_lens[b] - next_n + t + 1`` keys; of two for rows,
        whatever its shape

    Raises TypeError or ValueError as :func:`capgate.kernels.select_from_logits`.
    """
    rows = rows_at(logits, numRows, stride0, stride1)
    out = columns_of("indices", indices, len(rows), topK)
    lens = check_strided("seq_lens", seq_lens)
    next_n = check_integer("next_n", next_n, 1)
    ends = first_of(lens.reshape(-1), len(rows)) if lens.ndim == 2 else ends_of(lens, next_n, len(rows))
    select_from_logits(rows, None, ends, top_k=topK, out=out)


def persistent_topk(
    logits: torch.Tensor, lengths: torch.Tensor, output: torch.Tensor, workspace: torch.Tensor, k: int, max_seq_len: int
) -> None:
    """Select the positions of each row's largest logits, into ``output``: vLLM's choice in decode for k = 512, 1024 and 2048.

    logits : [rows, columns], float32 (or bfloat16)
    lengths : int32, a length for each row, whatever the shape: [B, next_n] and [B * next_n] mean the same
    output : [rows, k], int32; -1 behind a row's last key
    workspace : uint8, for candidates where it has room for them
    k : 1 or more, and not vLLM's three alone
    max_seq_len : no row is longer: columns beyond the next power of two are not looked at

    Raises TypeError or ValueError as :func:`capgate.kernels.select_from_logits`.
    """
    columns = 1 << max(check_integer("max_seq_len", max_seq_len, 0) - 1, 0).bit_length()
    if isinstance(logits, torch.Tensor) and logits.ndim == 2 and columns < logits.shape[1]:
        logits = logits[:, :columns]
    _select(logits, lengths, output, workspace, k)


def cooperative_topk(
    logits: torch.Tensor, lengths: torch.Tensor, output: torch.Tensor, workspace: torch.Tensor, k: int, max_seq_len: int
) -> None:
    """As :func:`persistent_topk`, which vLLM calls for more than 64 rows; these are any number. As vLLM's, it does not look at
    ``max_seq_len``."""
    _select(logits, lengths, output, workspace, k)


def _select(logits: torch.Tensor, lengths: torch.Tensor, output: torch.Tensor, workspace: torch.Tensor, k: int) -> None:
    ends = check_strided("lengths", lengths).reshape(-1)
    select_from_logits(logits, None, ends, top_k=k, out=output, workspace=room_in(workspace, logits, k))
