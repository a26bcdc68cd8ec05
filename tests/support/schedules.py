"""Schedules of DeepGEMM for sm90, written by the judge of ``capgate verify`` and read as their format is described."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from capgate.kernels.tools.verify.schedules import Place, cut, even, places, units_of

__all__ = ["cut", "even", "places", "read", "units_of"]


def read(schedule: Sequence[Sequence[int]], units: Sequence[int]) -> Iterator[list[Place]]:
    """What each worker takes, one unit at a time until it stands on its end; AssertionError where it passes the batch."""
    for begin, end in pairwise(schedule):
        request, unit, taken = *begin, []
        while (request, unit) != tuple(end):
            assert request < len(units), f"from {begin} on, a worker passes the batch and never meets {end}"
            taken.append((request, unit))
            unit += 1
            if unit >= units[request]:
                request, unit = request + 1, 0
                while request < len(units) and units[request] == 0:
                    request += 1
        yield taken
