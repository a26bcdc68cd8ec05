"""Compile the kernels of pitfalls.py for cuda:90 without a GPU, and print what became of them as one object of JSON.

tests/compat/offline/test_pitfalls.py runs it as a child process.
"""

import json
from typing import Any

import torch

from capgate import compat
from capgate.compat.offline.absent import set_absent_gpu
from capgate.compat.offline.child import disassembled
from capgate.compat.offline.disassembly import read_sass

from . import code_reading, mbarriers, pitfalls


def meta(dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(64, dtype=dtype, device="meta")


def loads(kernel: Any) -> int:
    integers = meta(torch.int32)
    compiled = kernel.warmup(integers, integers, integers, 9, WIDTH=16, grid=(1,), num_warps=1)
    return code_reading.loads_in_loops(compiled.asm["ttgir"])


def faults(**constants: bool) -> list[str]:
    compiled = pitfalls.tile_after_barrier.warmup(meta(torch.int32), **constants, grid=(1,), num_warps=4)
    return mbarriers.faults(compiled.asm["llir"], [])


def main() -> None:
    set_absent_gpu(compat.capabilities("cuda:90").target)
    found: dict[str, Any] = {"loads": {"carried_bounds": loads(pitfalls.carried_bounds)}}
    if compat.capabilities().gluon:
        found["loads"]["gluon_carried_bounds"] = loads(pitfalls.gluon_carried_bounds)
        operands = (meta(torch.float8_e4m3fn), meta(torch.float8_e4m3fn), meta(torch.float32), meta(torch.int32), 9)
        product = pitfalls.product_after_loop.warmup(*operands, TILES=4, ITEMS=2, DIM=128, grid=(1,), num_warps=4)
        found["undefined"] = code_reading.undefined_descriptors(read_sass(disassembled(product.asm["cubin"])))
        found["faults"] = [faults(INVALIDATED=invalidated) for invalidated in (False, True)]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
