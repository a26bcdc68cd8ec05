"""Compile the gluon_hopper kernel for cuda:90 without a GPU, and print one line of JSON for each kind of call, in order.

    python compile_hopper.py HEADS,DIM,MODE ...     (MODE: clean, unclean or compressed)

test_offline_hopper.py runs it as a child process.
"""

import json
import re
import sys
from contextlib import redirect_stdout
from io import StringIO

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from capgate import compat
from capgate.kernels.mqa_logits import gluon_hopper

ROWS, KEYS = 4096, 4096


class AbsentGpu:
    """As much of a driver as ``warmup`` asks for."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0


def main(*kinds: str) -> None:
    triton.knobs.compilation.always_compile = True  # a cached result comes without ptxas's log
    triton.knobs.nvidia.dump_ptxas_log = True
    driver.set_active(AbsentGpu())
    for kind in kinds:
        heads, dim, mode = kind.split(",")

        def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        q, k = (meta(*shape, int(dim), dtype=torch.float8_e4m3fn) for shape in ((ROWS, int(heads)), (KEYS,)))
        window = meta(ROWS, dtype=torch.int32)
        kernel, grid, arguments, keywords = gluon_hopper.prepare(
            *(q, k, meta(KEYS), meta(ROWS, int(heads)), window, window, meta(ROWS, KEYS)),
            clean_logits=mode == "clean",
            compressed=mode == "compressed",
            target=compat.capabilities("cuda:90").target,
        )
        with redirect_stdout(StringIO()) as log:
            compiled = kernel.warmup(*arguments, grid=grid, **keywords)
        spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", log.getvalue())
        result = {
            "shared": compiled.metadata.shared,
            "spills": sum(map(int, spills)) if spills else None,
            "wgmma": sorted(set(re.findall(r"wgmma\.mma_async\S*", compiled.asm["ptx"]))),
            "serialized": "C7514" in log.getvalue(),
        }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
