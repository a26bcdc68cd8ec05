"""What the machine can do at most, measured in the run whose times are held against it."""

from typing import Any, NamedTuple

import torch

from .timing import Timer
from .workloads import Batch

MATMUL = 8192  # rows, columns and depth of the fp8 matmul
COPY_BYTES = 4 * 10**9  # read, and as many written


class Ceilings(NamedTuple):
    """Operations a second of the library's fp8 matmul of 8192^3, bytes a second (read and written) of a device copy."""

    flops: float
    bytes: float

    def floor_ms(self, batch: Batch, clean_logits: bool) -> float:
        """The time below which no kernel comes: what its operations or its fewest bytes need, whichever is more."""
        return 1e3 * max(batch.flops / self.flops, batch.least_bytes(clean_logits) / self.bytes)


def measure(timer: Timer, dtype: torch.dtype) -> Ceilings | None:
    """Both ceilings of the timer's GPU; None on the CPU, or where torch has no fp8 matmul for it."""
    if timer.device.type != "cuda":
        return None
    matmul = _matmul(timer.device, dtype)
    try:
        matmul()
    except RuntimeError:  # _scaled_mm refuses a GPU without fp8 matrix units
        return None
    flops = 2 * MATMUL**3 / timer(matmul).median * 1e3
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=timer.device)
    target = torch.empty_like(source)
    return Ceilings(flops, 2 * COPY_BYTES / timer(lambda: target.copy_(source)).median * 1e3)


def _matmul(device: torch.device, dtype: torch.dtype) -> Any:
    a, b = (torch.randn(MATMUL, MATMUL, device=device, dtype=torch.bfloat16).to(dtype) for _ in range(2))
    one = torch.ones((), device=device)
    return lambda: torch._scaled_mm(a, b.T, one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
