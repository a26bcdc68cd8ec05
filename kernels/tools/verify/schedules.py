"""Schedules of DeepGEMM for sm90, written in plain Python as their format is described; nothing of capgate is used.

capgate's tests judge by them, too.

A batch is the list of how many units of keys each request has.
"""

from collections.abc import Sequence

Place = tuple[int, int]  # a request, and a unit of it


def units_of(lens: Sequence[int] | Sequence[Sequence[int]], unit_keys: int) -> list[int]:
    """The units of each request: of the last of its lengths, where each row has one."""
    last: list[int] = [request if isinstance(request, int) else request[-1] for request in lens]
    return [-(-max(length, 0) // unit_keys) for length in last]


def places(units: Sequence[int]) -> list[Place]:
    """All units in their order."""
    return [(request, unit) for request, count in enumerate(units) for unit in range(count)]


def cut(units: Sequence[int], starts: Sequence[int]) -> list[Place]:
    """The schedule whose workers begin at these units, counted through the batch in rising order; its end is the batch's."""
    found = [*places(units), (len(units), 0)]
    return [found[start] for start in (*starts, len(found) - 1)]


def even(units: Sequence[int], workers: int) -> list[Place]:
    """The schedule of so many workers: the last of them have one unit more where the units do not come out even."""
    share, more = divmod(sum(units), workers)
    sizes = [share + (worker >= workers - more) for worker in range(workers)]
    return cut(units, [sum(sizes[:worker]) for worker in range(workers)])
