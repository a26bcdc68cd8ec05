"""Compiles calls into Triton's cache in a process of its own: ``python -m capgate.kernels.tools.warm.child``."""

import time
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import Any

from capgate import compat
from capgate.compat._errors import summary
from capgate.compat.offline.answers import Answer, serve
from capgate.compat.offline.child import set_absent_gpu

from ...common.hardware import suppose_multiprocessors
from .calls import call_of
from .deployment import Deployment, Shape


def main() -> None:
    """Answer the request on standard input."""
    serve(begin)


def begin(request: dict[str, Any]) -> Answer:
    """What answers the request's jobs, each an operation's name, a shape, and a variant or None."""
    target = compat.capabilities(request["target"]).target
    suppose_multiprocessors(target, request["multiprocessors"])
    set_absent_gpu(target)
    for module in request["modules"]:
        import_module(module)
    return partial(answer, target, Deployment(**request["deployment"]), _listen(), set())


def _listen() -> list[bool]:
    """Where Triton notes whether its cache has a kernel, for each that this process asks it for the first time."""
    from triton import knobs

    if not hasattr(knobs.compilation, "listener"):
        raise compat.CapabilityError("triton: found none that says what it compiles, needs knobs.compilation.listener")
    heard: list[bool] = []
    knobs.compilation.listener = lambda *, cache_hit, **rest: heard.append(cache_hit)
    return heard


def answer(
    target: compat.Target, deployment: Deployment, heard: list[bool], failed: set[Any], job: tuple[str, Shape, str | None]
) -> Iterator[dict[str, Any]]:
    """The parts of a job's row: the variant, its kernels that no job before had, and why something did not compile.

    failed : variants with the problems for which they did not compile: a call of such a problem takes the next variant
    """
    name, shape, named = job
    operation = compat.operations()[name]
    call = call_of(operation, target, deployment, shape, named)
    steps = operation.explain(call.problem, named).steps
    variant = next((step.variant for step in steps if step.accepted and (step.variant, call.problem) not in failed), None)
    kernel = None if variant is None else operation.load(operation.variants[variant])
    yield {"accepted": variant is not None, "variant": variant or named, "kernels": []}
    if not isinstance(kernel, compat.Kernel):
        reasons = [step.reason for step in steps if step.variant == (named or step.variant) and not step.accepted]
        yield {
            "compiled": False,
            "error": "; ".join(reasons) if variant is None else f"{variant} has no kernel",
            "absent": True,
        }
        return
    kernels, error = [], None
    for launch in kernel.prepare(call.problem, *call.operands, **call.options):
        heard.clear()
        began = time.perf_counter()
        try:
            launch.kernel.warmup(*launch.arguments, grid=launch.grid, **launch.keywords)
        except Exception as raised:  # a compiler may fail in any way; the call's other kernels may not
            error = summary(raised)
        if heard or error:
            row = {"kernel": launch.kernel.__name__, "was_there": all(heard), "seconds": round(time.perf_counter() - began, 3)}
            kernels.append({**row, "error": error})
    if error:
        failed.add((variant, call.problem))
    yield {"kernels": kernels, "compiled": error is None, "error": error}


if __name__ == "__main__":
    main()
