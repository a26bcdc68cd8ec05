"""Schedules in plain torch: the variant for machines without a GPU, and the judge of the other."""

import torch

from ..reference import row_lengths
from .operands import Inputs, last_lengths
from .operation import CHUNK_KEYS, MOST


def launch(
    inputs: Inputs, schedule: torch.Tensor, *, chunk_keys: int = CHUNK_KEYS, rows: int | None = None, most: int = MOST
) -> None:
    """Fill ``schedule`` as :func:`capgate.kernels.paged_mqa_schedule` says, or :func:`capgate.kernels.sparse_mqa_schedule`;
    the arguments have been checked.

    rows : of a request, each of which is shared out by itself; None shares out requests, by their last rows
    most : keys of a row or request that count
    """
    lens, num_workers = inputs.context_lens, schedule.shape[0] - 1
    keys = last_lengths(lens).long() if rows is None else row_lengths(lens, rows).flatten()
    if inputs.starts is not None:
        keys = keys.clamp(min=0) - inputs.starts.long().clamp(min=0)
    chunks = (keys.clamp(min=0, max=most) + chunk_keys - 1) // chunk_keys
    ends = chunks.cumsum(0)
    total = chunks.sum()
    worker = torch.arange(num_workers + 1, device=ends.device)
    one_less = num_workers - total % num_workers  # workers in front that have one chunk less than those behind
    start = worker * (total // num_workers) + (worker - one_less).clamp(min=0)
    request = torch.searchsorted(ends, start, right=True)
    before = torch.where(request > 0, ends[request - 1], 0) if len(ends) else torch.zeros_like(start)
    schedule.copy_(torch.stack([request, start - before], 1))
