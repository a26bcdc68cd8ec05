"""What the launches of both fused selections have in common."""

from typing import Any

import torch

from .scratch import list_entries
from .tunings import Tuning, slots_of


def strides_of(*tensors: torch.Tensor | None, axes: int = 1) -> tuple[int | None, ...]:
    """The strides of tensors, one after the other; of one that is not given as many None as it has ``axes``."""
    return tuple(step for tensor in tensors for step in ((None,) * axes if tensor is None else tensor.stride()))


def cut_of(tune: Tuning, top_k: int, page_size: int) -> dict[str, Any]:
    """The constants of a kernel that scores and of the one that merges: how lists are cut, and what a page holds."""
    return {
        "ENTRIES": tune.block_entries,
        "STRIDE": list_entries(tune, top_k),
        "RUNS": tune.block_entries // tune.planes,
        "PLANES": tune.planes,
        "SLOTS": slots_of(top_k),
        "PAGE": page_size,
        "num_warps": tune.num_warps,
    }
