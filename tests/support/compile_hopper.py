"""Compile gluon_hopper kernels for cuda:90 without a GPU: answers requests as capgate.compat.offline.child does, in forks of
support.compile_server, for tests/kernels/common/test_hopper_compile.py.

A request has the ``operation``, such as mqa_logits, and as ``jobs`` kinds of its calls: HEADS,DIM,MODE[,ROWS] of dense logits,
HEADS,DIM,MODE,BLOCK,NEXT_N[,WORKERS] of paged ones, HEADS,DIM,MODE,CANDIDATE,LIST_ROWS of listed blocks.

MODE: of the operation's output, such as clean or clean-bf16; ROWS: query rows, 4096 otherwise; WORKERS: of the schedule, 256
otherwise; CANDIDATE: keys of a block; LIST_ROWS: rows that share a list.
"""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import lru_cache
from importlib import import_module
from io import StringIO
from typing import Any

from capgate import compat
from capgate.compat.offline import absent, child
from capgate.compat.offline.answers import Answer, serve
from capgate.compat.offline.disassembly import read_sass

from . import code_reading, mbarriers


def main() -> None:
    """Answer the request on standard input."""
    serve(begin)


def begin(request: dict[str, Any]) -> Answer:
    """What answers the request's jobs."""
    child.disassembled = lru_cache(maxsize=1)(child.disassembled)  # of each cubin once, for its figures and its descriptors
    absent.set_absent_gpu(compat.capabilities("cuda:90").target)

    def answer(kind: str) -> Iterator[dict[str, Any]]:
        yield {**compile_kind(request["operation"], kind), "compiled": True}

    return answer


def compile_kind(operation: str, kind: str) -> dict[str, Any]:
    """What the compiler says of one kind of call, and what it made."""
    target = compat.capabilities("cuda:90").target
    module = import_module(f"capgate.kernels.{operation}.operation")
    kernels = import_module(f"capgate.kernels.{operation}.gluon_hopper")
    heads, dim, mode, *sizes = kind.split(",")
    problem = module.example_problem(target, int(heads), int(dim), mode)
    if operation == "sparse_logits":
        problem = problem._replace(candidate_block=int(sizes[0]), list_rows=int(sizes[1]))
    elif len(sizes) >= 2:
        problem = problem._replace(block_size=int(sizes[0]), next_n=int(sizes[1]))
    call = module.example_call(problem)
    inputs, out = call.operands
    if len(sizes) == 1:
        rows = slice(int(sizes[0]))
        inputs = inputs._replace(**{name: getattr(inputs, name)[rows] for name in ("q", "weights", "starts", "ends")})
        out = out[rows]
    if len(sizes) == 3:
        inputs = inputs._replace(schedule=inputs.schedule[: int(sizes[2]) + 1])
    (launch,) = kernels.kernel.prepare(problem, inputs, out, **call.options)
    kernel, grid, arguments, keywords = launch
    with redirect_stdout(StringIO()) as log:
        compiled = kernel.warmup(*arguments, grid=grid, **keywords)
    taken = child.describe(compiled, target, call, log.getvalue())
    code = read_sass(child.disassembled(compiled.asm["cubin"]))
    return {
        "shared": taken["lds_bytes"],
        "spills": taken["spills"],
        "scratch": taken["scratch_bytes"],
        "hot_loop": taken["hot_loop"],
        "warps": taken["waves_per_simd"] * 4,  # of as many programs as fit on an SM
        "threads": int(re.search(r"\.reqntid (\d+)", compiled.asm["ptx"])[1]),
        "wgmma": Counter(re.findall(r"wgmma\.mma_async\S*", compiled.asm["ptx"])),
        "serialized": "C7514" in log.getvalue(),
        "uses": code_reading.uses_of_the_schedule(compiled.asm["ttgir"]),
        "loads": code_reading.loads_in_loops(compiled.asm["ttgir"]),
        "faults": mbarriers.faults(compiled.asm["llir"], mbarriers.boxes_of(list(compiled.src.signature.values()))),
        "undefined": code_reading.undefined_descriptors(code),
        "fenced": code_reading.released_behind_fences(code),
    }
