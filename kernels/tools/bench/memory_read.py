"""A read of device memory and nothing else, in Triton: what decode's kernels are held against."""

from collections.abc import Callable

import torch
import triton
import triton.language as tl

BYTES = 2**15  # that a program reads: eight 16-byte loads a lane


@triton.jit
def read_kernel(source, sums, WORDS: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    words = tl.load(source + program * WORDS + tl.arange(0, WORDS))
    tl.store(sums + program, tl.sum(words, axis=0))


def prepare(source: torch.Tensor) -> Callable[[], torch.Tensor]:
    """The call that reads the int32 ``source``, whose bytes are a multiple of BYTES; it returns the sum of each stretch."""
    words = BYTES // source.itemsize
    sums = torch.empty(source.numel() // words, dtype=source.dtype, device=source.device)

    def call() -> torch.Tensor:
        read_kernel[(len(sums),)](source, sums, WORDS=words, num_warps=8)
        return sums

    return call
