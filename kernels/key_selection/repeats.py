"""Selections that repeat: kernels whose launches are kept run at once, in memory made as the long way makes it."""

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import torch

from capgate import compat

from .results import ALIGNMENT, Results, Selected, results_or_new

MOST = 256  # sets of addresses in which a call's results were found apart, as many as its launches remember
MADE = ("buffer", "scratch", "row_ends", "out", "out_scores")  # what a call may make itself, in the order of their addresses


class Step(NamedTuple):
    """One of a call's kernels: its kept launches, and which tensors they get, in order: those given, or some of MADE."""

    bound: compat.Bound
    names: list[str]


class Memory(NamedTuple):
    """What lies between the steps of a call.

    buffer : bytes of a new one for logits and candidates, None where none is made
    behind : where the room for candidates begins in it or in a workspace, in bytes behind the logits; None without such room
    """

    buffer: int | None = None
    behind: int | None = None


class Kept:
    """What is kept of calls that are alike.

    given : by name the tensors of one of them, in the order in which it was looked at, the last ones being written
    written : how many those are
    """

    def __init__(self, given: dict[str, torch.Tensor], written: int, steps: Sequence[Step], memory: Memory) -> None:
        made = {name: len(given) + number for number, name in enumerate(MADE)}
        place = {name: number for number, name in enumerate(given)} | made  # results that are given stand among both
        self._steps = [(step.bound, itemgetter(*(place[name] for name in step.names))) for step in steps]
        self._memory = memory
        self._extents = [compat.extent(tensor) for tensor in given.values()]
        self._written = range(len(given) - written, len(given))
        self._apart: dict[tuple[int, ...], None] = {}

    def launch(self, addresses: Sequence[int], wanted: tuple[Any, ...], row_ends: torch.Tensor | None) -> Selected | None:
        """The results of a call of these addresses; None where it must go the long way.

        wanted : as results_or_new takes it
        row_ends : how many keys each row sees, where that is worked out anew in each call
        """
        if self._written and not self._are_apart(tuple(addresses)):
            return None
        results = results_or_new(*wanted)
        out, scores, workspace = results
        size, behind = self._memory
        buffer = None if size is None else torch.empty(size, dtype=torch.uint8, device=out.device)
        base = 0 if buffer is None else buffer.data_ptr()
        if behind is not None and workspace is not None:
            base = workspace.data_ptr()
            base += -base % ALIGNMENT
        ends = 0 if row_ends is None else row_ends.data_ptr()
        line = (*addresses, base, base + (behind or 0), ends, out.data_ptr(), 0 if scores is None else scores.data_ptr())
        for bound, places in self._steps:
            if not bound(places(line)):
                return None
        return results.selected

    def _are_apart(self, addresses: tuple[int, ...]) -> bool:
        """Whether what is written shares no byte with anything else."""
        if addresses in self._apart:
            return True
        spans = [(start, start + size) for start, size in zip(addresses, self._extents, strict=True)]
        for place in self._written:
            begin, end = spans[place]
            if any(number != place and begin < last and first < end for number, (first, last) in enumerate(spans)):
                return False
        while len(self._apart) >= MOST:
            self._apart.pop(next(iter(self._apart)), None)
        self._apart[addresses] = None
        return True


def given_of(inputs: Any, results: Results) -> tuple[dict[str, torch.Tensor], int]:
    """The tensors of a call that the caller gives, by name, and how many of them are written."""
    found = {**inputs._asdict(), **results._asdict()}
    tensors = {name: tensor for name, tensor in found.items() if tensor is not None}
    return tensors, sum(name in tensors for name in results._fields)
