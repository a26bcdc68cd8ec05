"""Schedules in plain torch: the variant for machines without a GPU, and the judge of the other."""

import torch

from .operands import Inputs, last_lengths
from .operation import CHUNK_KEYS


def launch(inputs: Inputs, schedule: torch.Tensor, *, chunk_keys: int = CHUNK_KEYS) -> None:
    """Fill ``schedule`` as :func:`capgate.kernels.paged_mqa_schedule` says; the arguments have been checked."""
    context_lens, num_workers = inputs.context_lens, schedule.shape[0] - 1
    chunks = (last_lengths(context_lens).long().clamp(min=0) + chunk_keys - 1) // chunk_keys
    ends = chunks.cumsum(0)
    total = chunks.sum()
    worker = torch.arange(num_workers + 1, device=ends.device)
    one_less = num_workers - total % num_workers  # workers in front that have one chunk less than those behind
    start = worker * (total // num_workers) + (worker - one_less).clamp(min=0)
    request = torch.searchsorted(ends, start, right=True)
    before = torch.where(request > 0, ends[request - 1], 0) if len(ends) else torch.zeros_like(start)
    schedule.copy_(torch.stack([request, start - before], 1))
