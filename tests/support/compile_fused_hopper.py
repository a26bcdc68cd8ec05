"""Compile the scan of a fused selection's gluon_hopper kernel for cuda:90 without a GPU, and print what came out as JSON.

    python -m support.compile_fused_hopper fp8_select_keys
    python -m support.compile_fused_hopper fp8_select_paged_keys

With 64 heads of 128 dims and 2048 keys. tests/kernels/fused_selection/test_compile.py runs it as a child process.
"""

import json
import re
import sys
from collections import Counter
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import triton

from capgate import compat
from capgate.compat.offline import absent, child
from capgate.compat.offline.disassembly import read_sass
from capgate.kernels.fused_selection import gluon_hopper, gluon_hopper_paged
from capgate.kernels.fused_selection import operation as fused

from . import code_reading, mbarriers


def compile_scan(operation: str) -> dict[str, Any]:
    """As support.compile_hopper says it of the logits' kernels."""
    target = compat.capabilities("cuda:90").target
    if operation == "fp8_select_keys":
        problem, kernel, scan = fused.example_problem(target, 64, 128, "indices"), gluon_hopper.kernel, 0
        call = fused.example_call(problem)
    else:
        problem, kernel, scan = fused.example_paged_problem(target, 64, 128, "indices"), gluon_hopper_paged.kernel, 1
        call = fused.example_paged_call(problem)
    launch = kernel.prepare(problem, *call.operands, **call.options)[scan]
    with redirect_stdout(StringIO()) as log:
        compiled = launch.kernel.warmup(*launch.arguments, grid=launch.grid, **launch.keywords)
    code = read_sass(child.disassembled(compiled.asm["cubin"]))
    return {
        "wgmma": Counter(re.findall(r"wgmma\.mma_async\S*", compiled.asm["ptx"])),
        "serialized": "C7514" in log.getvalue(),
        "faults": mbarriers.faults(compiled.asm["llir"], mbarriers.boxes_of(list(compiled.src.signature.values()))),
        "undefined": code_reading.undefined_descriptors(code),
        "fenced": code_reading.released_behind_fences(code),
    }


if __name__ == "__main__":
    triton.knobs.compilation.always_compile = True  # a cached result comes without ptxas's log
    triton.knobs.nvidia.dump_ptxas_log = True
    absent.set_absent_gpu(compat.capabilities("cuda:90").target)
    print(json.dumps(compile_scan(sys.argv[1])))
