"""What the machine can do at most, measured in the run whose times are held against it."""

from typing import Any, NamedTuple

import torch

from capgate import compat

from .timing import Timer

MATMUL = 8192  # rows, columns and depth of the fp8 matmul
BYTES = 2**32  # read, and in the copy as many written


class Ceilings(NamedTuple):
    """What can be had of the device.

    flops : operations a second of the library's fp8 matmul of 8192^3
    copy : bytes a second, read and written, of a device copy
    read : bytes a second of a read that writes next to nothing
    """

    flops: float
    copy: float
    read: float

    def floor_ms(self, flops: int, bytes_: int, moves: str) -> float:
        """The time below which no kernel comes: what its operations or its fewest bytes need, whichever is more.

        moves : which ceiling the bytes are held against, "copy" or "read"
        """
        return 1e3 * max(flops / self.flops, bytes_ / float(getattr(self, moves)))


def measure(timer: Timer, dtype: torch.dtype) -> Ceilings | None:
    """The ceilings of the timer's GPU; None on the CPU, and where torch has no fp8 matmul for it or Triton no kernels."""
    if timer.device.type != "cuda" or not compat.capabilities(timer.device).triton_gpu:
        return None
    from . import memory_read

    matmul = _matmul(timer.device, dtype)
    try:
        matmul()
    except RuntimeError:  # _scaled_mm refuses a GPU without fp8 matrix units
        return None
    flops = 2 * MATMUL**3 / timer(matmul).median * 1e3
    source = torch.ones(BYTES // 4, dtype=torch.int32, device=timer.device)
    target = torch.empty_like(source)
    copy = 2 * BYTES / timer(lambda: target.copy_(source)).median * 1e3
    return Ceilings(flops, copy, BYTES / timer(memory_read.prepare(source)).median * 1e3)


def _matmul(device: torch.device, dtype: torch.dtype) -> Any:
    a, b = (torch.randn(MATMUL, MATMUL, device=device, dtype=torch.bfloat16).to(dtype) for _ in range(2))
    one = torch.ones((), device=device)
    return lambda: torch._scaled_mm(a, b.T, one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
