"""What a kernel's grid is made from: how much of a GPU there is."""

from functools import cache
from typing import Any

from capgate import compat

# Compute units in use of an accelerator complex die: AMD, white papers of CDNA 3 and of CDNA 4.
XCD_COMPUTE_UNITS = {"gfx942": 38, "gfx950": 32}

_supposed: dict[Any, int] = {}


def multiprocessors(device: Any) -> int:
    """SMs of the NVIDIA GPU, CUs of the AMD GPU that a ``torch.device`` names; of any other device or target what
    :func:`suppose_multiprocessors` said, or 1."""
    if getattr(device, "type", None) != "cuda":
        return _supposed.get(device, 1)
    return _of_gpu(device)


def xcds(device: Any) -> int:
    """Dies, each with an L2 of its own, to which the GPU's workgroups go in turn, or 1 where that is not known.

    8 of an MI300X or MI355X, 6 of an MI300A, fewer of a partition.
    """
    caps = compat.capabilities(device)
    if not caps.xcds_in_turn:
        return 1
    dies, left = divmod(multiprocessors(device), XCD_COMPUTE_UNITS[caps.target.label])
    return max(1, dies) if left == 0 else 1


def suppose_multiprocessors(target: Any, count: int) -> None:
    """From now on a GPU that is not here has so many, in this process: some of what a launch passes is made from it."""
    _supposed[target] = count


@cache
def _of_gpu(device: Any) -> int:
    import torch

    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count
