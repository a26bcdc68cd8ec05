"""Compile the classic kernel for a target without a GPU, and print one line of JSON for each kind of call, in order.

    python compile_classic.py hip:gfx950 float8_e4m3fn HEADS,DIM,MODE ...     (MODE: clean, unclean or compressed)

test_offline_compile.py runs it as a child process.
"""

import json
import re
import sys
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from capgate import compat
from capgate.kernels.mqa_logits import classic

ROWS, KEYS = 4096, 4096


class AbsentGpu:
    """As much of a driver as ``warmup`` asks for: with it Triton's own argument binder finds divisibilities and constants."""

    def __init__(self, target: compat.Target) -> None:
        arch = int(target.arch) if target.backend == "cuda" else target.arch
        self.target = GPUTarget(target.backend, arch, target.warp_size)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0


def compile_for(target: compat.Target, fp8: torch.dtype, heads: int, dim: int, mode: str) -> Any:
    def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    q, k = meta(ROWS, heads, dim, dtype=fp8), meta(KEYS, dim, dtype=fp8)
    window = meta(ROWS, dtype=torch.int32)
    kernel, grid, arguments, keywords = classic.prepare(
        *(q, k, meta(KEYS), meta(ROWS, heads), window, window, meta(ROWS, KEYS)),
        clean_logits=mode == "clean",
        compressed=mode == "compressed",
        target=target,
    )
    return kernel.warmup(*arguments, grid=grid, **keywords)


def describe(target: compat.Target, compiled: Any, ptxas_log: str) -> dict[str, Any]:
    """Shared memory, bytes or registers spilled (None: the compiler did not say), and the matrix instructions."""
    assembly = compiled.asm["ptx" if target.backend == "cuda" else "amdgcn"]
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", ptxas_log)
    spills += re.findall(r"\.[sv]gpr_spill_count:\s*(\d+)", assembly)
    return {
        "shared": compiled.metadata.shared,
        "spills": sum(map(int, spills)) if spills else None,
        "matrix": sorted(set(re.findall(r"wgmma\.mma_async\S*|\bmma\.sync\S*|v_mfma\w*", assembly))),
    }


def main(name: str, fp8: str, *kinds: str) -> None:
    triton.knobs.compilation.always_compile = True  # a cached result comes without ptxas's log
    triton.knobs.nvidia.dump_ptxas_log = True
    target = compat.capabilities(name).target
    driver.set_active(AbsentGpu(target))
    for kind in kinds:
        heads, dim, mode = kind.split(",")
        with redirect_stdout(StringIO()) as log:
            compiled = compile_for(target, getattr(torch, fp8), int(heads), int(dim), mode)
        print(json.dumps(describe(target, compiled, log.getvalue())), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
