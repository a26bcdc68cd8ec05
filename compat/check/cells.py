"""The compiles of a check: every subject on every Triton for every target, in processes of their own, on all cores."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from ..offline.answers import Answers, environment
from ..offline.occupancy import shared_limit
from ..targets import Target
from .results import Results
from .subjects import Subject
from .tritons import Overlay

Row = dict[str, Any]
FEWEST = 8  # subjects for which another process is worth its start, which takes as long as some compiles


class Work(NamedTuple):
    """What one process after the other compiles: some subjects, by number, for one target on one Triton."""

    triton: Overlay
    target: Target
    numbers: tuple[int, ...]


class Check(NamedTuple):
    """What is compiled, and how.

    path : folders that recorded modules are imported from, behind Python's own path
    root : the folder that files are named from
    timeout : seconds for one compile
    results : where results are kept; None for nowhere
    """

    subjects: Sequence[Subject]
    tritons: Sequence[Overlay]
    targets: Sequence[Target]
    path: Sequence[str]
    root: Path
    timeout: float
    results: Path | None

    def rows(self, processes: int, done: Callable[[Row], None] = lambda row: None) -> list[Row]:
        """A row for each subject, target and Triton, ordered so; ``done`` is told of each when it is there.

        A row has ``subject`` (its number), ``triton``, ``target``, ``applies`` (whether the target could take it on that
        Triton), ``compiled``, ``error`` (why not), the figures of ``capgate compile`` where it compiled, and ``cached``
        (whether it was known from before).
        """
        works = list(self._works(processes))
        rows: list[Row] = []
        lock = threading.Lock()

        def work(one: Work, scratch: str) -> None:
            for row in self._of(one, scratch):
                with lock:
                    rows.append(row)
                    done(row)

        with TemporaryDirectory(prefix="capgate-check-") as scratch, ThreadPoolExecutor(processes) as pool:
            futures = [pool.submit(work, one, scratch) for one in works]
            try:
                for future in futures:
                    future.result()
            except BaseException:  # such as Ctrl-C: what has not begun does not begin
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        tritons = [triton.name for triton in self.tritons]
        targets = [str(target) for target in self.targets]
        return sorted(rows, key=lambda row: (row["subject"], targets.index(row["target"]), tritons.index(row["triton"])))

    def _works(self, processes: int) -> Iterator[Work]:
        """For each pair of a Triton and a target the subjects that a process can share, in parts where cores are free."""
        groups: dict[str, list[int]] = {}
        for number, subject in enumerate(self.subjects):
            groups.setdefault(repr((subject.child, subject.request)), []).append(number)
        shares = len(self.tritons) * len(self.targets) * len(groups)
        for triton in self.tritons:
            for target in self.targets:
                for numbers in groups.values():
                    parts = max(1, min(-(-processes // shares), len(numbers) // FEWEST))
                    yield from (Work(triton, target, tuple(numbers[part::parts])) for part in range(parts))

    def _of(self, work: Work, scratch: str) -> Iterator[Row]:
        first = self.subjects[work.numbers[0]]
        request = {
            **first.request,
            "target": str(work.target),
            "build": work.triton.build,
            "path": list(self.path),
            "root": str(self.root),
            "results": str(self.results) if self.results else None,
        }
        results = Results(self.results)
        left = list(work.numbers)
        while left:  # a process that dies or hangs takes one subject with it
            jobs = [self.subjects[number].job for number in left]
            with Answers(first.child, {**request, "jobs": jobs}, _environment(work.triton, scratch)) as child:
                for number in list(left):
                    answer = child.answer(self.timeout)
                    left.remove(number)
                    applies = answer.pop("accepted", True) is not False and answer.pop("kernel", True)
                    key, cached = answer.pop("key", None), answer.pop("cached", False)
                    if key and not cached and not _passing(answer):
                        results.put(key, answer)
                    yield {
                        "subject": number,
                        "triton": work.triton.name,
                        "target": str(work.target),
                        "applies": applies,
                        "compiled": False,
                        "error": None,
                        "cached": cached,
                        **answer,
                        **_too_large(answer, work.target),
                    }
                    if child.gone:
                        break


def _too_large(answer: Row, target: Target) -> Row:
    """Of a kernel that compiles, and for which no block of the target has the memory, the failure that its launch would be."""
    needs, has = answer.get("lds_bytes") or 0, shared_limit(target.backend, target.arch)
    if not answer.get("compiled") or has is None or needs <= has:
        return {}
    return {"compiled": False, "error": f"compiles, and cannot be launched: needs {needs} bytes of shared memory, found {has}"}


def _passing(answer: Row) -> bool:
    """Whether another try may end otherwise: limits of time, and what the machine lacked, are not kept."""
    error = answer["error"] or ""
    return "no result within" in error or "SIGKILL" in error or "No space left" in error or "Cannot allocate" in error


def _environment(triton: Overlay, scratch: str) -> dict[str, str]:
    """A process's environment: its Triton first on the path, and a cache of Triton's own that nobody reads again."""
    told = environment()
    if triton.folder is not None:
        told["PYTHONPATH"] = os.pathsep.join([str(triton.folder), told["PYTHONPATH"]])
    return {
        **told,
        "TRITON_CACHE_DIR": scratch,
        "TRITON_ALWAYS_COMPILE": "1",  # a cached result comes without ptxas' log
        "TRITON_DUMP_PTXAS_LOG": "1",
    }
