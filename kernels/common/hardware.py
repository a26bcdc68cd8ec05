"""What a kernel's grid is made from: how much of a GPU there is."""

from functools import cache
from typing import Any


@cache
def multiprocessors(device: Any) -> int:
    """SMs of the NVIDIA GPU, CUs of the AMD GPU that a ``torch.device`` names; 1 for any other device or target."""
    if getattr(device, "type", None) != "cuda":
        return 1
    import torch

    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count
