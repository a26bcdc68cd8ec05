"""Schedules in plain torch: the variant for machines without a GPU, and the judge of the other."""

import torch

from .operands import Inputs
from .operation import CHUNK_KEYS


def launch(inputs: Inputs, schedule: torch.Tensor) -> None:
    """Fill ``schedule`` as :func:`capgate.kernels.paged_mqa_schedule` says; the arguments have been checked."""
    context_lens, num_workers = inputs.context_lens, schedule.shape[0] - 1
    longest = context_lens.long() if context_lens.ndim == 1 else context_lens.long().amax(1)
    chunks = (longest.clamp(min=0) + CHUNK_KEYS - 1) // CHUNK_KEYS
    ends = chunks.cumsum(0)
    total = chunks.sum()
    start = total * torch.arange(num_workers + 1, device=ends.device) // num_workers
    request = torch.searchsorted(ends, start, right=True)
    before = torch.where(request > 0, ends[request - 1], 0) if len(ends) else torch.zeros_like(start)
    schedule.copy_(torch.stack([request, start - before], 1))
