"""vLLM's selection of the top keys of each row.

Ours is exact and the same every time: equal logits by the lower index, NaN above inf, indices ascending, where vLLM's takes any
of equal logits, has no rule for NaN, and orders rows of more than ``topK`` keys as it comes. A window that reaches past the
logits is cut, which vLLM's trusts. Rows of more than 16384 logits take memory for candidates, which is allocated in the call.
"""

import torch

from ...common.checks import check_integer, check_strided
from ...key_selection import select_from_logits
from ..selected import columns_of, ends_of, first_of, rows_at


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
