"""Compile the scans of the fused selections' gluon_hopper kernels for cuda:90 without a GPU: answers requests as
support.compile_hopper does, for tests/kernels/fused_selection/test_compile.py.

A request has as ``jobs`` operations, fp8_select_keys or fp8_select_paged_keys: with 64 heads of 128 dims and 2048 keys.
"""

from typing import Any

from capgate import compat
from capgate.kernels.fused_selection import gluon_hopper, gluon_hopper_paged
from capgate.kernels.fused_selection import operation as fused

from .hopper_code import compile_launch, serve_compiles


def main() -> None:
    """Answer the request on standard input."""
    serve_compiles(compile_scan)


def compile_scan(request: dict[str, Any], operation: str) -> dict[str, Any]:
    """A row as ``capgate compile`` has it, and what support.compile_hopper says of the logits' kernels."""
    target = compat.capabilities("cuda:90").target
    if operation == "fp8_select_keys":
        problem, kernel = fused.example_problem(target, 64, 128, "indices"), gluon_hopper.kernel
        call = fused.example_call(problem)
    else:
        problem, kernel = fused.example_paged_problem(target, 64, 128, "indices"), gluon_hopper_paged.kernel
        call = fused.example_paged_call(problem)
    _compiled, figures, asked = compile_launch(kernel.prepare(problem, *call.operands, **call.options)[call.number], call)
    assert kernel.tuning is not None
    return {**figures, "tuning": kernel.tuning(problem)._asdict(), **asked}


if __name__ == "__main__":
    main()
