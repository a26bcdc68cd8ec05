"""The fused selections in plain torch: scores and selection in two steps, a few rows at a time, as the judge of the others."""

import torch

from ..key_selection import reference as selection
from ..key_selection.operands import Dense, Inputs, Paged
from ..mqa_logits import operands as dense
from ..mqa_logits import reference as dense_scores
from ..paged_mqa_logits import operands as paged
from ..paged_mqa_logits import reference as paged_scores

LOGITS_BYTES = 2**28  # of the logits that are held at a time


def launch(
    inputs: Dense,
    indices: torch.Tensor,
    scores: torch.Tensor | None,
    *,
    max_window: int | None,
    relative: bool,
    page_size: int = 1,
    memory: torch.Tensor | None = None,
) -> None:
    """Fill ``indices`` and ``scores`` as :func:`capgate.kernels.select_keys` says; the arguments have been checked.

    memory : not used
    """
    rows, keys = len(indices), inputs.k.shape[0]
    columns = keys if max_window is None else max_window
    requests = _requests(inputs.page_table, inputs.requests, rows, 1, indices.device)
    step = max(1, LOGITS_BYTES // (4 * max(columns, 1)))
    for first in range(0, rows, step):
        turn = slice(first, first + step)
        starts, ends = inputs.starts[turn], inputs.ends[turn]
        logits = torch.empty((len(ends), columns), device=indices.device)
        scoring = dense.Inputs(inputs.q[turn], inputs.k, inputs.k_scale, inputs.weights[turn], starts, ends)
        if columns:
            dense_scores.launch(scoring, logits, clean_logits=False, compressed=max_window is not None)
        _select(
            Inputs(logits, starts, ends, inputs.offsets, inputs.page_table, requests),
            turn,
            indices,
            scores,
            keys if max_window is not None else None,
            relative,
            page_size,
        )


def launch_paged(
    inputs: Paged,
    indices: torch.Tensor,
    scores: torch.Tensor | None,
    *,
    max_context_len: int,
    page_size: int = 1,
    layout: str = "flat",
    memory: torch.Tensor | None = None,
) -> None:
    """As :func:`launch` for :func:`capgate.kernels.select_paged_keys`."""
    batch, next_n = inputs.q.shape[:2]
    block, table = inputs.kv_cache.shape[1], inputs.block_table
    columns = min(max_context_len, table.shape[1] * block if len(inputs.kv_cache) else 0)
    requests = _requests(inputs.page_table, inputs.requests, batch * next_n, next_n, indices.device)
    ends = paged_scores.row_lengths(inputs.context_lens, next_n).clamp(min=0, max=columns).int()
    step = max(1, LOGITS_BYTES // (4 * max(columns, 1) * next_n))
    for first in range(0, batch, step):
        turn = slice(first, first + step)
        rows = slice(first * next_n, (first + step) * next_n)
        logits = torch.empty((len(ends[turn]) * next_n, columns), device=indices.device)
        weights = inputs.weights[rows]
        scoring = paged.Inputs(inputs.q[turn], inputs.kv_cache, weights, inputs.context_lens[turn], table[turn])
        if columns:
            paged_scores.launch(scoring, logits, clean_logits=False, layout=layout)
        selected = Inputs(logits, None, ends[turn].reshape(-1), inputs.offsets, inputs.page_table, requests)
        _select(selected, rows, indices, scores, None, False, page_size)


def _requests(
    page_table: torch.Tensor | None, requests: torch.Tensor | None, rows: int, rows_per_request: int, device: torch.device
) -> torch.Tensor | None:
    """The row of the page table that each row looks into."""
    if page_table is None or requests is not None:
        return requests
    return torch.arange(rows, dtype=torch.int32, device=device) // rows_per_request


def _select(
    inputs: Inputs,
    turn: slice,
    indices: torch.Tensor,
    scores: torch.Tensor | None,
    num_keys: int | None,
    relative: bool,
    page_size: int,
) -> None:
    """Select from logits of a turn, whose ``offsets`` and ``requests`` are still those of all rows."""
    offsets, requests = (None if rows is None else rows[turn] for rows in (inputs.offsets, inputs.requests))
    selection.launch(
        inputs._replace(offsets=offsets, requests=requests),
        indices[turn],
        None if scores is None else scores[turn],
        num_keys=num_keys,
        relative=relative,
        page_size=page_size,
    )
