"""A run of ``capgate verify``: what is to be done on this machine, and what was found so far."""

import datetime
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from capgate import compat
from capgate.compat.spelling import nearest

from ..bench.ceilings import Ceilings
from ..bench.environment import describe
from ..bench.timing import this_device
from . import catalogue, document
from .document import CPU, GPU, INTERPRETER, Run, without_names
from .jobs import Job, Runner, dealt, groups_of
from .progress import alarm, progress
from .timed import timed
from .tuning import Place, tune
from .verdicts import Row

REFERENCE = "reference"
MOST_WORKERS = 16  # processes at once
WORKER_BYTES = 3 * 2**30  # of the GPU's memory that one of them may hold: its context, and the formula's float64 values
TOGETHER = 5  # cases that one process compiles and judges
TOGETHER_IN_TORCH = 40  # where nothing is compiled, starting a process takes longer than what it judges
FLUSH_BYTES = 8 * 10**9  # before each timed call, as capgate bench has it
MOST_FLUSHED = 1 / 8  # of the GPU's memory


def where() -> torch.device:
    """The current GPU; the CPU where there is none, and where kernels are interpreted."""
    return torch.device("cpu") if compat.capabilities("cpu").interpreter else this_device()


class Verification:
    """A run: what is to be done, and what was found so far.

    operations, variants : names of those that are meant; all of them where none is
    quick : a few cases of each operation
    timed : whether times are taken, which takes a GPU

    Raises ValueError for names that do not exist here.
    """

    def __init__(self, operations: Sequence[str], variants: Sequence[str], *, quick: bool, timed: bool) -> None:
        self.device = where()
        on_gpu = self.device.type == "cuda"
        self._cases = catalogue.cases(small=not on_gpu, quick=quick)
        every = {case.operation.name: case.operation for case in self._cases}
        for name in operations:
            if name not in every:
                raise ValueError(f"operation: no operation {name!r}; {nearest(name, every)}")
        self._operations = {name: each for name, each in every.items() if not operations or name in operations}
        known = {name for operation in self._operations.values() for name in operation.variants}
        for name in variants:
            if name not in known:
                raise ValueError(f"--variants: no variant {name!r}; {nearest(name, known)}")
        self._variants = set(variants) or known
        self._timed = timed and on_gpu
        self._cases_found: dict[tuple[str, ...], Row] = {}
        self._tracebacks: dict[tuple[str, ...], str] = {}
        self._began = time.perf_counter()
        interpreted = bool(compat.capabilities(self.device).interpreter)
        stack = {name: value for name, value in describe(self.device).items() if name != "serial"}  # which tells a machine
        self.found: Run = {
            "verify": 1,
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "executed": GPU if on_gpu else INTERPRETER if interpreted else CPU,
            "quick": quick,
            "complete": False,
            "seconds": 0.0,
            "stack": stack,
            "variants": list(self._rows_of_variants()),
            "cases": [],
            "asked": [],
            "ceilings": None,
            "times": [],
            "tuned": [],
            "first_failure": None,
        }

    def runner(self, timeout: float) -> Runner:
        """What runs its jobs, each for so many seconds at most."""
        return Runner(str(self.device), flush_bytes=self._flush_bytes(), timeout=timeout)

    def go_on(self, runner: Runner, workers: int) -> Iterator[Run]:
        """Judge, so many processes side by side, then time; gives what is known each time that something was found."""
        yield from self._judge(runner, workers)
        if self._timed:
            yield from self._time(runner)
        self.found["complete"] = True
        self._note()

    def tune(self, runner: Runner, workers: int) -> Iterator[Row]:
        """The tunings of this GPU that are faster than the tables', row by row; they are in what was found, too."""
        places = [
            Place(variant, each)
            for operation, variant in self._taken()
            for each in timed(self.found["quick"])
            if each.where and each.operation.name == operation and variant != REFERENCE
        ]

        def cases(place: Place) -> list[str]:
            return [case.name for case in self._cases if case.operation is place.timed.operation and not case.asks]

        with progress("tuning", len(places)):
            for row in tune(runner, workers, places, cases):
                self.found["tuned"].append(row)
                self._note()
                yield row

    def tunings(self) -> Row:
        """What was tuned, as CAPGATE_TUNINGS loads it."""
        stack = self.found["stack"]
        names = {"target": stack["target"], "device": stack["device"], "triton": stack["triton"]}
        return {"tunings": 1, **names, "rows": self.found["tuned"]}

    def usual_workers(self) -> int:
        """How many processes judge side by side: one for each core, and no more than the GPU has memory for."""
        room = [len(os.sched_getaffinity(0)), MOST_WORKERS]
        if self.device.type == "cuda":
            room.append(self._gpu_bytes() // WORKER_BYTES)
        return max(1, min(room))

    def _rows_of_variants(self) -> Iterator[Row]:
        for operation in self._operations.values():
            for variant in operation.variants:
                if variant not in self._variants:
                    continue
                trace = operation.explain(operation.example(self.device) if operation.example else None, variant)
                step = next(step for step in trace.steps if step.variant == variant)
                reason = without_names(step.reason)[: document.WORDS]
                yield {"operation": operation.name, "variant": variant, "taken": step.accepted, "reason": reason}

    def _taken(self) -> list[tuple[str, str]]:
        return [(row["operation"], row["variant"]) for row in self.found["variants"] if row["taken"]]

    def _judge(self, runner: Runner, workers: int) -> Iterator[Run]:
        jobs: list[Job] = []
        for operation, variant in self._taken():
            names = {"operation": operation, "variant": variant}
            jobs += [
                {"what": "judge", **names, "case": case.name}
                for case in self._cases
                if case.operation.name == operation and self._is_of(case, variant)
            ]
            jobs += [{"what": "prepare", **names, "call": call} for call in self._calls(operation, variant)]
        on_gpu = self.device.type == "cuda"
        places = [_place(job) for job in jobs if job["what"] == "judge"]
        groups = groups_of(jobs, _together) if on_gpu else dealt(jobs, workers)
        with progress("compiling and judging", len(jobs)) as advance:
            for job, row in runner.side_by_side(groups, workers):
                advance(f"{job['operation']} {job['variant']}", alarm(job, row))
                if job["what"] == "judge":
                    self._keep(job, row)
                    self.found["cases"] = [self._cases_found[place] for place in places if place in self._cases_found]
                    self._note()
                    yield self.found
        asks = {(case.operation.name, case.name): case.asks for case in self._cases if case.asks}
        self.found["asked"] = document.answers(self.found["cases"], asks, self.found["executed"])

    def _is_of(self, case: catalogue.Case, variant: str) -> bool:
        """Whether a case is a variant's; one that asks about a capability is, where that may hold."""
        if not case.asks:
            return True
        with compat.override(enable=[case.asks]):
            return variant in case.asked_of and bool(compat.capabilities(self.device)[case.asks])

    def _keep(self, job: Job, row: Row) -> None:
        """Note a verdict; a later one of the same case counts."""
        names = {name: job[name] for name in ("operation", "variant", "case")}
        said = {"verdict": row["verdict"], "words": without_names(row["words"])[: document.WORDS]}
        self._cases_found[_place(job)] = {**names, **said, "seconds": row.get("seconds")}
        self._tracebacks[_place(job)] = without_names(row.get("traceback", ""))

    def _note(self) -> None:
        self.found["seconds"] = round(time.perf_counter() - self._began, 1)
        self.found["first_failure"] = document.first_failure(self.found["cases"], self._tracebacks)

    def _calls(self, operation: str, variant: str) -> list[str]:
        """What is timed of a variant: nothing of a last resort on a GPU, which may take a thousand times as long as others."""
        if not self._timed or variant == REFERENCE:
            return []
        return [each.name for each in timed(self.found["quick"]) if each.operation.name == operation]

    def _time(self, runner: Runner) -> Iterator[Run]:
        jobs = [
            {"what": "time", "operation": operation, "variant": variant, "call": call}
            for operation, variant in self._taken()
            for call in self._calls(operation, variant)
        ]
        with progress("timing", len(jobs) + 1) as advance:
            first: Job = {"what": "ceilings", "operation": "ceilings", "variant": ""}
            for job, row in runner.in_order([first, *jobs]):
                if job["what"] == "ceilings":
                    self.found["ceilings"] = row.get("ceilings")
                else:
                    self.found["times"].append(_time_of(job, row, self.found["ceilings"]))
                advance(f"{job['operation']} {job['variant']}", alarm(job, row))
                self._note()
                yield self.found

    def _flush_bytes(self) -> int:
        return min(FLUSH_BYTES, int(MOST_FLUSHED * self._gpu_bytes())) if self._timed else 0

    def _gpu_bytes(self) -> int:
        return int(torch.cuda.get_device_properties(self.device).total_memory)


def _place(job: Job) -> tuple[str, ...]:
    return job["operation"], job["variant"], job["case"]


def _time_of(job: Job, row: Row, known: Any) -> Row:
    figures = {name: row.get(name) for name in ("median_ms", "low_ms", "high_ms")}
    floor = None
    if known and row.get("median_ms") is not None and (row["flops"] or row["bytes"]):
        floor = Ceilings(**known).floor_ms(row["flops"], row["bytes"], row["moves"])
    names = {name: job[name] for name in ("operation", "variant", "call")}
    work = {name: row.get(name) for name in ("flops", "bytes", "moves")}
    return {**names, "words": without_names(row["words"])[: document.WORDS], **figures, "floor_ms": floor, **work}


def _together(job: Job) -> int:
    return TOGETHER_IN_TORCH if job["variant"] == REFERENCE else TOGETHER
