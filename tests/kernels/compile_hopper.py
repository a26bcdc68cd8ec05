"""Compile the gluon_hopper kernel for cuda:90 without a GPU, and print one line of JSON for each kind of call, in order.

    python compile_hopper.py HEADS,DIM,MODE ...     (MODE: clean, unclean or compressed)

test_offline_hopper.py runs it as a child process.
"""

import json
import re
import sys
from contextlib import redirect_stdout
from io import StringIO

import triton

from capgate import compat
from capgate.kernels.mqa_logits import gluon_hopper
from capgate.kernels.mqa_logits.operation import example_call, example_problem
from capgate.kernels.offline_child import set_absent_gpu


def main(*kinds: str) -> None:
    triton.knobs.compilation.always_compile = True  # a cached result comes without ptxas's log
    triton.knobs.nvidia.dump_ptxas_log = True
    target = compat.capabilities("cuda:90").target
    set_absent_gpu(target)
    for kind in kinds:
        heads, dim, mode = kind.split(",")
        call = example_call(example_problem(target, int(heads), int(dim), mode))
        kernel, grid, arguments, keywords = gluon_hopper.prepare(*call.arguments, **call.keywords)
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
