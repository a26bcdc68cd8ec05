"""The fused selections in plain torch: scores and selection in two steps, a few rows at a time, as the judge of the others."""

from collections.abc import Iterator

import torch

from ..key_selection import reference as selection
from ..key_selection.operands import Dense, Paged
from ..key_selection.operators import (
    dense_columns,
    dense_options,
    dense_turn,
    paged_columns,
    paged_options,
    paged_turn,
    row_ends,
)
from ..mqa_logits import reference as dense_scores
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
    columns, options = dense_columns(inputs, max_window), dense_options(inputs, max_window, relative, page_size)
    for turn in _turns(len(indices), columns):
        logits = torch.empty((len(indices[turn]), columns), device=indices.device)
        scored, selected = dense_turn(inputs, turn, logits)
        if columns:
            dense_scores.launch(scored, logits, clean_logits=False, compressed=max_window is not None)
        selection.launch(selected, indices[turn], None if scores is None else scores[turn], **options)


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
    columns, options = paged_columns(inputs, max_context_len), paged_options(inputs, page_size)
    ends = row_ends(inputs.context_lens, next_n)
    for turn in _turns(batch, columns * next_n):
        rows = slice(turn.start * next_n, turn.stop * next_n)
        logits = torch.empty((len(indices[rows]), columns), device=indices.device)
        scored, selected = paged_turn(inputs, turn, logits, ends)
        if columns:
            paged_scores.launch(scored, logits, clean_logits=False, layout=layout)
        selection.launch(selected, indices[rows], None if scores is None else scores[rows], **options)


def _turns(groups: int, cells: int) -> Iterator[slice]:
    """Groups of ``cells`` logits each, as many at a time as there is room for."""
    step = max(1, LOGITS_BYTES // (4 * max(cells, 1)))
    return (slice(first, first + step) for first in range(0, groups, step))
