"""What a kernel's grid is made from: how much of a GPU there is."""

from functools import cache
from typing import Any

_supposed: dict[Any, int] = {}


def multiprocessors(device: Any) -> int:
    """SMs of the NVIDIA GPU, CUs of the AMD GPU that a ``torch.device`` names; of any other device or target what
    :func:`suppose_multiprocessors` said, or 1."""
    if getattr(device, "type", None) != "cuda":
        return _supposed.get(device, 1)
    return _of_gpu(device)


def suppose_multiprocessors(target: Any, count: int) -> None:
    """From now on a GPU that is not here has so many, in this process: some of what a launch passes is made from it."""
    _supposed[target] = count


@cache
def _of_gpu(device: Any) -> int:
    import torch

    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count
