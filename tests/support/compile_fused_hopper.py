"""Compile the scans of the fused selections' gluon_hopper kernels for cuda:90 without a GPU: answers requests as
support.compile_hopper does, for tests/kernels/fused_selection/test_compile.py.

A request has as ``jobs`` operations, fp8_select_keys or fp8_select_paged_keys: with 64 heads of 128 dims and 2048 keys.
"""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import lru_cache
from io import StringIO
from typing import Any

from capgate import compat
from capgate.compat.offline import absent, child
from capgate.compat.offline.answers import Answer, serve
from capgate.compat.offline.disassembly import read_sass
from capgate.kernels.fused_selection import gluon_hopper, gluon_hopper_paged
from capgate.kernels.fused_selection import operation as fused

from . import code_reading, mbarriers


def main() -> None:
    """Answer the request on standard input."""
    serve(begin)


def begin(request: dict[str, Any]) -> Answer:
    """What answers the request's jobs."""
    child.disassembled = lru_cache(maxsize=1)(child.disassembled)  # of each cubin once, for its figures and its descriptors
    absent.set_absent_gpu(compat.capabilities("cuda:90").target)

    def answer(operation: str) -> Iterator[dict[str, Any]]:
        yield {**compile_scan(operation), "compiled": True}

    return answer


def compile_scan(operation: str) -> dict[str, Any]:
    """A row as ``capgate compile`` has it, and what support.compile_hopper says of the logits' kernels."""
    target = compat.capabilities("cuda:90").target
    if operation == "fp8_select_keys":
        problem, kernel = fused.example_problem(target, 64, 128, "indices"), gluon_hopper.kernel
        call = fused.example_call(problem)
    else:
        problem, kernel = fused.example_paged_problem(target, 64, 128, "indices"), gluon_hopper_paged.kernel
        call = fused.example_paged_call(problem)
    launch = kernel.prepare(problem, *call.operands, **call.options)[call.number]
    with redirect_stdout(StringIO()) as log:
        compiled = launch.kernel.warmup(*launch.arguments, grid=launch.grid, **launch.keywords)
    code = read_sass(child.disassembled(compiled.asm["cubin"]))
    assert kernel.tuning is not None
    return {
        **child.describe(compiled, target, call, log.getvalue()),
        "tuning": kernel.tuning(problem)._asdict(),
        "wgmma": Counter(re.findall(r"wgmma\.mma_async\S*", compiled.asm["ptx"])),
        "serialized": "C7514" in log.getvalue(),
        "faults": mbarriers.faults(compiled.asm["llir"], mbarriers.boxes_of(list(compiled.src.signature.values()))),
        "undefined": code_reading.undefined_descriptors(code),
        "fenced": code_reading.released_behind_fences(code),
    }


if __name__ == "__main__":
    main()
