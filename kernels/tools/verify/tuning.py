"""Tunings around those of the tables, tried on the GPU that is here: the best by median, judged before it is written."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from . import verdicts
from .jobs import Job, Runner, dealt
from .timed import Timed
from .verdicts import Row

Fields = dict[str, Any]

FASTER = 0.985  # of the table's time: less is within what medians of 20 calls differ by from one process to the next
ROUNDS = 3  # in which the best and the table's take turns
MOST_WARPS = 16
LEAST_KEYS = 16  # of a tile: a matrix instruction's
WAVES = "waves_per_eu"


def around(row: Any) -> list[Fields]:
    """Changes of a row of a tuning table: each of one thing, to the next values on both sides."""
    found: list[Fields] = []
    for name, steps in STEPS.items():
        value = getattr(row, name, None)
        if value is not None:
            found += [{name: other} for other in steps(value) if other != value]
    waves = dict(getattr(row, "options", ())).get(WAVES)
    if waves is not None:  # what a SIMD holds, and so what a CU does
        found = [fields for fields in found if "resident" not in fields]
        for other in (waves - 1, waves + 1):
            if other > 0:
                options = [[name, other if name == WAVES else value] for name, value in row.options]
                found.append({"options": options, "resident": max(1, row.resident * other // waves)})
    return found


STEPS: dict[str, Callable[[int], list[int]]] = {
    "num_stages": lambda stages: [number for number in (stages - 1, stages + 1, stages + 2) if number > 0],
    "resident": lambda programs: [number for number in (programs - 1, programs + 1, programs + 2) if number > 0],
    "block_keys": lambda keys: [number for number in (keys // 2, keys * 2) if number >= LEAST_KEYS],
    "num_warps": lambda warps: [number for number in (warps // 2, warps * 2) if 0 < number <= MOST_WARPS],
    "group_cost": lambda cost: [number for number in (cost - 2, cost + 2) if number > 0],
    "passes": lambda passes: [3 - passes] if passes in (1, 2) else [],
}


class Place(NamedTuple):
    """What is tuned: a variant, on a call that stands for the problems that its ``where`` means."""

    variant: str
    timed: Timed

    def job(self, what: str, fields: Fields | None = None, **more: Any) -> Job:
        """A job of the variant on this call, with some fields of its tuning changed."""
        names = {"operation": self.timed.operation.name, "variant": self.variant}
        row = {**names, "where": self.timed.where, "fields": fields}
        return {"what": what, **names, "call": self.timed.name, **({"tuning": row} if fields else {}), **more}


def tune(runner: Runner, workers: int, places: Sequence[Place], cases: Callable[[Place], Sequence[str]]) -> Iterator[Row]:
    """Rows of a file of tunings, for those places where a change is faster than the table and agrees with float64.

    cases : names of the cases that a place's variant has to agree in
    """
    asked = [place.job("candidates") for place in places]
    candidates = [row.get("candidates", []) for _, row in runner.in_order(asked)]
    prepared = [place.job("prepare", fields) for place, changes in zip(places, candidates, strict=True) for fields in changes]
    runs = [job for job, row in runner.side_by_side(dealt(prepared, workers), workers) if not row["words"]]
    for place, changes in zip(places, candidates, strict=True):
        usable = [fields for fields in changes if place.job("prepare", fields) in runs]
        yield from _best(runner, workers, place, usable, cases(place))


def _best(runner: Runner, workers: int, place: Place, changes: Sequence[Fields], cases: Sequence[str]) -> Iterator[Row]:
    """The row of a place; none where no change helps."""
    before, *times = _medians(runner, place, [None, *changes])
    if before is None:
        return
    faster = [(time, fields) for time, fields in zip(times, changes, strict=True) if time and time < FASTER * before]
    for _, fields in sorted(faster, key=lambda pair: pair[0]):
        turns = _medians(runner, place, [None, fields] * ROUNDS)
        table, changed = ([time for time in turns[first::2] if time] for first in (0, 1))
        if len(table) < ROUNDS or len(changed) < ROUNDS or max(changed) >= FASTER * min(table):
            continue
        judged = [place.job("judge", fields, case=case) for case in cases]
        said = {job["case"]: row["verdict"] for job, row in runner.side_by_side(dealt(judged, workers), workers)}
        if verdicts.AGREES not in said.values() or set(said.values()) - {verdicts.AGREES, verdicts.NOT_TAKEN}:
            continue
        figures = {"before_ms": statistics.median(table), "after_ms": statistics.median(changed)}
        yield {**place.job("", fields)["tuning"], **figures, "call": place.timed.name}
        return


def _medians(runner: Runner, place: Place, changes: Sequence[Fields | None]) -> list[float | None]:
    """Milliseconds of the call with each of these changes, one after the other; None for what could not be timed."""
    return [row.get("median_ms") for _, row in runner.in_order([place.job("time", fields) for fields in changes])]
