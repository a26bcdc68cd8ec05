"""Judges and times in a process of its own, which a fault may end: ``python -m capgate.kernels.tools.verify.child``."""

import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch

from capgate import compat
from capgate.compat.command import in_words
from capgate.compat.offline.answers import Answer, serve
from capgate.compat.thirdparty import Raised, ask
from capgate.compat.tunings import Tunings

from ...common.rules import native_fp8
from ..bench import ceilings
from ..bench.timing import Timer
from . import catalogue, verdicts
from .checks import Place
from .judge import Disagreement
from .timed import Timed, timed
from .tuning import around
from .verdicts import Row


def main() -> None:
    """Answer the request on standard input."""
    serve(begin)


def begin(request: dict[str, Any]) -> Answer:
    """What answers the request's jobs: see :mod:`.jobs`."""
    device = torch.device(request["device"])
    return partial(answer, Child(device, small=device.type != "cuda", flush_bytes=request["flush_bytes"]))


def answer(child: "Child", job: dict[str, Any]) -> Iterator[Row]:
    """That a job has begun, from when its time is counted, and its row; the process ends where the GPU serves it no more."""
    yield {"began": True}
    do: dict[str, Callable[[dict[str, Any]], Row]] = {
        "judge": child.judge,
        "prepare": child.prepare,
        "time": child.time,
        "ceilings": child.ceilings,
        "candidates": child.candidates,
    }
    row = do[job["what"]](job)
    row["usable"] = child.usable()
    yield {**row, "compiled": True}
    if not row["usable"]:
        os._exit(1)  # nothing that is freed at a proper end can be freed


class Child:
    """The device that jobs run on, and what they share."""

    def __init__(self, device: torch.device, *, small: bool, flush_bytes: int) -> None:
        self.device, self.small = device, small
        self._flush_bytes = flush_bytes
        self._timer: Timer | None = None
        self.fp8: torch.dtype = getattr(torch, native_fp8(device))

    def judge(self, job: dict[str, Any]) -> Row:
        """Run a case by a variant, and judge it."""
        case = catalogue.find(job["operation"], job["case"], self.small)
        place = Place(self.device, job["variant"], self.fp8)
        began = time.perf_counter()
        with self._named(job):
            row = verdict_of(partial(case.check, place, **case.options))
        self._free()
        return {**row, "seconds": round(time.perf_counter() - began, 3)}

    def prepare(self, job: dict[str, Any]) -> Row:
        """Make the call that will be timed, and make it once, so that it is compiled."""
        made = ask(partial(self._once, job))
        self._free()
        return {"words": made.words if isinstance(made, Raised) else ""}

    def _once(self, job: dict[str, Any]) -> None:
        with self._named(job):
            self._timed(job).make(self.device, job["variant"]).call()
        self._synchronize()

    def time(self, job: dict[str, Any]) -> Row:
        """Milliseconds of a call, and what it means."""
        found = ask(partial(self._time, job))
        self._free()
        return {"words": found.words} if isinstance(found, Raised) else found

    def _time(self, job: dict[str, Any]) -> Row:
        with self._named(job):
            made = self._timed(job).make(self.device, job["variant"])
            timing = self.timer(made.call)
        facts = {"flops": made.flops, "bytes": made.bytes, "moves": made.moves}
        return {"words": "", **{f"{name}_ms": getattr(timing, name) for name in timing._fields}, **facts}

    def ceilings(self, job: dict[str, Any]) -> Row:
        """What the device can do at most, or None."""
        found = ask(partial(ceilings.measure, self.timer, self.fp8))
        self._free()
        if isinstance(found, Raised):
            return {"words": found.words, "ceilings": None}
        return {"words": "", "ceilings": found._asdict() if found else None}

    def candidates(self, job: dict[str, Any]) -> Row:
        """Which fields of a call's tuning are worth another value, each with the values to try."""
        found = ask(partial(self._candidates, job))
        return {"words": found.words, "candidates": []} if isinstance(found, Raised) else {"words": "", "candidates": found}

    def _candidates(self, job: dict[str, Any]) -> list[dict[str, Any]]:
        timed = self._timed(job)
        operation = timed.operation
        kernel = operation.load(operation.variants[job["variant"]])
        if not isinstance(kernel, compat.Kernel) or kernel.tuning is None or operation.examples is None:
            return []
        problem = operation.examples.problem(self.device, timed.where["heads"], timed.where["dim"], timed.mode, None)
        return around(kernel.tuning(problem))

    def _named(self, job: dict[str, Any]) -> AbstractContextManager[None]:
        """The job's variant is the one that runs, with the tuning that the job has, if any."""
        tunings = None
        if job.get("tuning"):
            device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device)
            tunings = Tunings("--tune", str(compat.capabilities(self.device).target), device, [job["tuning"]])
        return compat.override(variant={job["operation"]: job["variant"]}, strict=True, tunings=tunings)

    @property
    def timer(self) -> Timer:
        """Of the device; made once, for it holds the memory that is written before each call."""
        if self._timer is None:
            self._timer = Timer(self.device, flush_bytes=self._flush_bytes)
        return self._timer

    def usable(self) -> bool:
        """Whether the GPU still takes work of this process; after an illegal access it does not."""
        return not isinstance(ask(self._synchronize), Raised)

    def _timed(self, job: dict[str, Any]) -> Timed:
        return next(each for each in timed() if (each.operation.name, each.name) == (job["operation"], job["call"]))

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _free(self) -> None:
        if self.device.type == "cuda":
            ask(torch.cuda.empty_cache)


def verdict_of(check: Callable[[], None]) -> Row:
    """The verdict of a case, with the reason in words, and where a traceback says more, that."""
    try:
        check()
    except Disagreement as error:
        return {"verdict": verdicts.DISAGREES, "words": str(error)}
    except compat.CapabilityError as error:
        return {"verdict": verdicts.NOT_TAKEN, "words": str(error)}
    except Exception as error:  # a compiler, a driver or a kernel may fail in any way: that is the verdict
        frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
        compiling = "triton.compiler.compiler" in frames or type(error).__name__ == "OutOfResources"
        kind = verdicts.DOES_NOT_COMPILE if compiling else verdicts.RAISES
        return {"verdict": kind, "words": in_words(error), "traceback": traceback.format_exc()}
    return {"verdict": verdicts.AGREES, "words": ""}


if __name__ == "__main__":
    main()
