"""Compiles calls into Triton's cache in a process of its own: ``python -m capgate.kernels.tools.warm.child``."""

import time
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import Any

from capgate import compat
from capgate.compat.offline.absent import set_absent_gpu
from capgate.compat.offline.answers import Answer, serve
from capgate.compat.offline.launchers import Launchers
from capgate.compat.thirdparty import Raised, ask

from ...common.hardware import suppose_multiprocessors
from .calls import Call, call_of
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
    compiler = Compiler(Launchers(target))
    return partial(answer, compiler, target, Deployment(**request["deployment"]))


def answer(
    compiler: "Compiler", target: compat.Target, deployment: Deployment, job: tuple[str, Shape, str | None]
) -> Iterator[dict[str, Any]]:
    """The parts of a job's row: its kernels that no job before had, each with its variant, and why something did not compile.

    A variant that does not compile is left, as in a launch, and the next one taken.
    """
    name, shape, named = job
    operation = compat.operations()[name]
    call = call_of(operation, target, deployment, shape, named)
    steps = operation.explain(call.problem, named).steps
    accepted = [step.variant for step in steps if step.accepted]
    yield {"accepted": bool(accepted), "kernels": []}
    if not accepted:
        reasons = [step.reason for step in steps if named in (None, step.variant)]
        yield {"compiled": False, "error": "; ".join(dict.fromkeys(reasons))}
        return
    kernels: list[dict[str, Any]] = []
    failing: str | None = None
    for variant in accepted:
        if (variant, call.problem) in compiler.failed:  # which has been said
            continue
        found, error = compiler.compile(operation, variant, call)
        kernels += [{"variant": variant, **kernel} for kernel in found]
        if error is None:
            break
        failing = error
    yield {"kernels": kernels, "launchers": compiler.built, "compiled": failing is None, "error": failing}


class Compiler:
    """Asks Triton for the kernels of calls, as a launch does.

    failed : variants with the problems for which they did not compile
    """

    def __init__(self, launchers: Launchers) -> None:
        self.failed: set[Any] = set()
        self._launchers = launchers
        self._heard = _listen()

    @property
    def built(self) -> dict[str, Any]:
        """What became of the launchers: why one could not be built is no error of a call's."""
        return {"built": self._launchers.built, "error": self._launchers.error}

    def compile(self, operation: compat.Operation[Any], variant: str, call: Call) -> tuple[list[dict[str, Any]], str | None]:
        """The kernels of a call that no call before had, and why one does not compile."""
        kernel = operation.load(operation.variants[variant])
        if not isinstance(kernel, compat.Kernel):
            return [], f"{variant} has no kernel"
        found: list[dict[str, Any]] = []
        failing: str | None = None
        for launch in kernel.prepare(call.problem, *call.operands, **call.options):
            self._heard.clear()
            began = time.perf_counter()
            compiled = ask(partial(launch.kernel.warmup, *launch.arguments, grid=launch.grid, **launch.keywords))
            seconds = round(time.perf_counter() - began, 3)
            error = compiled.words if isinstance(compiled, Raised) else None
            failing = failing or error
            if self._heard and error is None:
                self._launchers.build(compiled)
            if self._heard or error:
                was_there = bool(self._heard) and all(self._heard)
                found.append({"kernel": launch.kernel.__name__, "was_there": was_there, "seconds": seconds, "error": error})
        if failing is not None:
            self.failed.add((variant, call.problem))
        return found, failing


def _listen() -> list[bool]:
    """Where Triton notes whether its cache has a kernel, for each that this process asks it for the first time."""
    from triton import knobs

    if not hasattr(knobs.compilation, "listener"):
        raise compat.CapabilityError("triton: found none that says what it compiles, needs knobs.compilation.listener")
    heard: list[bool] = []
    knobs.compilation.listener = lambda *, cache_hit, **rest: heard.append(cache_hit)
    return heard


if __name__ == "__main__":
    main()
