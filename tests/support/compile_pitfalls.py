"""Compile the kernels of pitfalls.py for cuda:90 and hip:gfx950 without a GPU, and print what became of them, as one
object of JSON.

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


def unfenced() -> int:
    halves = meta(torch.float16)
    compiled = pitfalls.sum_of_products.warmup(halves, halves, meta(torch.float32), 9, TILE=64, grid=(1,), num_stages=2)
    return code_reading.unfenced_products(compiled.asm["ptx"])


def buffer_stores(size: int) -> int:
    out = torch.empty(size, dtype=torch.float32, device="meta")
    compiled = pitfalls.store_tile.warmup(out, 2**20, TILE=64, grid=(1,), num_warps=4)
    return compiled.asm["amdgcn"].count("buffer_store")


def spilled() -> int:
    operand = meta(torch.bfloat16)
    sizes = {"ROWS": 64, "KEYS": 64, "DIM": 512, "MORE": 64}
    options = {"num_warps": 4, "num_stages": 1, "waves_per_eu": 1}
    compiled = pitfalls.wide_attention.warmup(operand, operand, operand, operand, 999, 0.1, **sizes, **options, grid=(1,))
    return code_reading.spilled_vgprs(compiled.asm["amdgcn"])


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
    found["unfenced"] = unfenced()
    set_absent_gpu(compat.capabilities("hip:gfx950").target)
    found["spilled"] = spilled()
    found["buffer_stores"] = {"of 256 bytes": buffer_stores(64), "of 16 GiB": buffer_stores(2**32)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
