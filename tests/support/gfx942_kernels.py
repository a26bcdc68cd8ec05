"""Kernels of what classic Triton does for gfx942 alone, by itself."""

# ruff: noqa: N803 - Triton's constants are written in capitals

import triton
import triton.language as tl

from capgate.kernels.common.device.classic import fn_to_fnuz, relu


@triton.jit
def convert(bytes_in, bytes_out, WORDS: tl.constexpr):
    row, byte = tl.arange(0, 4)[:, None], tl.arange(0, 64)[None, :]
    if WORDS:
        fn = tl.load(bytes_in.to(tl.pointer_type(tl.uint32)) + row * 16 + tl.arange(0, 16)[None, :])
    else:
        fn = tl.load(bytes_in + row * 64 + byte)
    tl.store(bytes_out + row * 64 + byte, fn_to_fnuz(fn).to(tl.uint8, bitcast=True))


@triton.jit
def relu_of(x, out):
    place = tl.arange(0, 4)
    tl.store(out + place, relu(tl.load(x + place), False))
