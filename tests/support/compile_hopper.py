"""Compile gluon_hopper kernels for cuda:90 without a GPU: answers requests as capgate.compat.offline.child does, in forks of
support.compile_server, for tests/kernels/common/test_hopper_compile.py.

A request has the ``operation``, such as mqa_logits, and as ``jobs`` kinds of its calls: HEADS,DIM,MODE[,ROWS] of dense logits,
HEADS,DIM,MODE,BLOCK,NEXT_N[,WORKERS] of paged ones, HEADS,DIM,MODE,CANDIDATE,LIST_ROWS of listed blocks.

MODE: of the operation's output, such as clean or clean-bf16; ROWS: query rows, 4096 otherwise; WORKERS: of the schedule, 256
otherwise; CANDIDATE: keys of a block; LIST_ROWS: rows that share a list.
"""

import re
from importlib import import_module
from typing import Any

from capgate import compat

from . import code_reading
from .hopper_code import compile_launch, serve_compiles


def main() -> None:
    """Answer the request on standard input."""
    serve_compiles(compile_kind)


def compile_kind(request: dict[str, Any], kind: str) -> dict[str, Any]:
    """What the compiler says of one kind of call, and what it made."""
    operation: str = request["operation"]
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
    compiled, taken, asked = compile_launch(launch, call)
    return {
        "shared": taken["lds_bytes"],
        "spills": taken["spills"],
        "scratch": taken["scratch_bytes"],
        "hot_loop": taken["hot_loop"],
        "warps": taken["waves_per_simd"] * 4,  # of as many programs as fit on an SM
        "threads": int(re.search(r"\.reqntid (\d+)", compiled.asm["ptx"])[1]),
        "uses": code_reading.uses_of_the_schedule(compiled.asm["ttgir"]),
        "loads": code_reading.loads_in_loops(compiled.asm["ttgir"]),
        **asked,
    }
