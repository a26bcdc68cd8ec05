"""Jobs of ``capgate verify`` in processes of their own: many at once where results are judged, one where times are taken.

A job is of JSON types: ``what`` ("judge", "prepare", "time", "ceilings", "candidates"), ``operation``, ``variant``, ``case`` or
``call``, their name, and ``tuning``, a row as CAPGATE_TUNINGS loads it, if not the table's is meant.
"""

import os
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from capgate.compat.offline.answers import TIMEOUT, Answers, environment

from . import verdicts
from .verdicts import Row

Job = dict[str, Any]

MOST_BREAKS = 3  # of the processes of one group of jobs, and of jobs one after the other that are tried alone


class Runner:
    """Runs jobs on a device.

    device : "cuda:0", "cpu"
    flush_bytes : written before each timed call
    timeout : seconds for one job
    """

    def __init__(self, device: str, *, flush_bytes: int = 0, timeout: float = TIMEOUT) -> None:
        self._request = {"device": device, "flush_bytes": flush_bytes}
        self._timeout = timeout
        self._stopped = False
        self._threads = len(os.sched_getaffinity(0))  # of a process's own arithmetic on the CPU

    def in_order(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Row]]:
        """Each job with its row, one after the other, in as few processes as they leave alive."""
        left, breaks = list(jobs), 0
        while left and not self._stopped:
            if breaks == MOST_BREAKS:
                yield from ((job, _lost(job, f"after {breaks} processes that broke")) for job in left)
                return
            with Answers(f"{__package__}.child", {**self._request, "jobs": left}, self._environment(), "process") as child:
                usable = True
                while left and usable and not self._stopped:
                    answer = child.answer(self._timeout)
                    usable = answer.get("usable", True) and not child.gone
                    job = left.pop(0)
                    yield job, _row(job, answer)
                breaks += not usable

    def side_by_side(self, groups: Sequence[Sequence[Job]], workers: int) -> Iterator[tuple[Job, Row]]:
        """Each job with its row, groups side by side; a case whose process broke comes again, alone, and then counts."""
        done: queue.SimpleQueue[tuple[Job, Row] | BaseException | None] = queue.SimpleQueue()

        def run(group: Sequence[Job]) -> None:
            try:
                for pair in self.in_order(group):
                    done.put(pair)
                done.put(None)
            except BaseException as error:  # of a thread: it is raised where the rows are asked for
                done.put(error)

        broken: list[Job] = []
        self._threads = max(1, len(os.sched_getaffinity(0)) // workers)
        with ThreadPoolExecutor(workers) as pool:
            try:
                left = len([pool.submit(run, group) for group in groups])
                while left:
                    found = done.get()
                    if isinstance(found, BaseException):
                        raise found
                    if found is None:
                        left -= 1
                        continue
                    if found[1].get("verdict") in verdicts.BROKEN:
                        broken.append(found[0])
                    yield found
            finally:
                self._stopped = left > 0  # nobody asks any more: what has not begun does not
                pool.shutdown(wait=False, cancel_futures=True)
        yield from self._alone(broken)

    def _alone(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Row]]:
        in_a_row = 0
        for job in jobs:
            if in_a_row == MOST_BREAKS:
                return  # the GPU is gone: what the first try found stays
            for found in self.in_order([job]):
                yield found
                in_a_row = in_a_row + 1 if found[1].get("verdict") in verdicts.BROKEN else 0

    def _environment(self) -> Mapping[str, str]:
        kept = {name: os.environ[name] for name in ("TRITON_INTERPRET",) if name in os.environ}
        return {"OMP_NUM_THREADS": str(self._threads), **environment(), **kept}


def dealt(jobs: Sequence[Job], groups: int) -> list[Sequence[Job]]:
    """Jobs that differ little, in so many groups."""
    return [jobs[first::groups] for first in range(groups)]


def groups_of(jobs: Sequence[Job], size_of: Callable[[Job], int]) -> list[list[Job]]:
    """The jobs of each operation's variants; those with most jobs first.

    size_of : how many jobs like one are together at most
    """
    by_variant: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        by_variant.setdefault((job["operation"], job["variant"]), []).append(job)
    chunks = []
    for group in by_variant.values():
        size = size_of(group[0])
        chunks += [group[first : first + size] for first in range(0, len(group), size)]
    return sorted(chunks, key=len, reverse=True)


def _row(job: Job, answer: Row) -> Row:
    row = {name: value for name, value in answer.items() if name not in ("began", "compiled", "usable", "error")}
    if not answer["compiled"]:
        return _lost(job, answer["error"], verdicts.DIES)
    if answer["usable"]:
        return row
    if row.get("verdict") in (None, verdicts.AGREES):
        row["words"] = "the GPU takes no more work of the process afterwards"
    return {**row, **({"verdict": verdicts.FAULTS} if "verdict" in row else {})}


def _lost(job: Job, words: str, verdict: str = verdicts.NOT_JUDGED) -> Row:
    return {"words": words, **({"verdict": verdict} if job["what"] == "judge" else {})}
