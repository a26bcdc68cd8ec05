"""aiter's selection of the top keys of each row.

Ours is exact, the same every time and ascending, as aiter's is with ``stable=True`` alone: equal logits go to the lower index.
It takes 0 and -0 for equal, where aiter's stable form puts 0 first, and NaN for larger than inf. A window that reaches past the
logits is cut, which aiter's trusts. Rows of more than 16384 logits take memory for candidates, which is allocated in the call.
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
    values: torch.Tensor | None,
    numRows: int,
    stride0: int,
    stride1: int,
    k: int = 2048,
    stable: bool = False,
) -> None:
    """Select the columns of each row's largest logits, into ``indices``, and the logits, where wanted, into ``values``.

    logits : float32 (or bfloat16), two-dimensional; read are ``numRows`` rows with the given strides
    rowStarts, rowEnds : [numRows] or more, int32: row i has the columns from ``rowStarts[i]`` to ``rowEnds[i]``
    indices : [numRows, k] or more, int32; -1 behind a row's last key
    values : as ``indices``, float32, or None; -inf behind a row's last key
    stable : without meaning here: ours always is

    Raises TypeError or ValueError as :func:`capgate.kernels.select_from_logits`.
    """
    rows = rows_at(logits, numRows, stride0, stride1)
    out = columns_of("indices", indices, len(rows), k)
    scores = None if values is None else columns_of("values", values, len(rows), k)
    starts, ends = first_of(rowStarts, len(rows)), first_of(rowEnds, len(rows))
    select_from_logits(rows, starts, ends, top_k=k, return_scores=scores is not None, out=out, out_scores=scores)


def top_k_per_row_decode(
    logits: torch.Tensor,
    next_n: int,
    seqLens: torch.Tensor,
    indices: torch.Tensor,
    numRows: int,
    stride0: int,
    stride1: int,
    k: int = 2048,
    stable: bool = False,
) -> None:
    """Select the positions of each row's largest logits, into ``indices``.

    logits, indices, numRows, stride0, stride1, k, stable : as in :func:`top_k_per_row_prefill`
    next_n : rows of a request
    seqLens : [B], int32; row t of request b sees ``seqLens[b] - next_n + t + 1`` keys

    Raises TypeError or ValueError as :func:`capgate.kernels.select_from_logits`.
    """
    rows = rows_at(logits, numRows, stride0, stride1)
    out = columns_of("indices", indices, len(rows), k)
    lens = check_strided("seqLens", seqLens)
    if lens.ndim != 1:
        raise ValueError(f"seqLens: got shape {tuple(lens.shape)}, needs one dimension")
    select_from_logits(rows, None, ends_of(lens, check_integer("next_n", next_n, 1), len(rows)), top_k=k, out=out)
