"""Calls of the fused selections whose logits are chosen, to the bit, and a model of what the kernels do with them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from capgate import compat
from capgate.kernels.common.logits import FP8
from capgate.kernels.fused_selection import tunings
from capgate.kernels.fused_selection.operation import Problem, dense
from capgate.kernels.fused_selection.operation import paged as cached
from capgate.kernels.fused_selection.tunings import Tuning
from capgate.kernels.key_selection.operands import Dense, Paged
from capgate.kernels.tools.verify.exact import DIM, HEADS, logits_of, make_call, make_paged_call

from . import judge, paged, selection

__all__ = ["DIM", "HEADS", "logits_of", "make_call", "make_paged_call"]  # of the judge

MOST_ROWS = DIM // 2
COUNTS = 4  # of a program, as device.lists has them; the last one is of gluon_hopper alone


def tuned(resident: int = 1, *, block_entries: int = 64, block_keys: int = 16, rows: int = 8, planes: int = 4) -> Tuning:
    """Lists as short as tests want them: of 64 entries with tiles of 16 keys, which are looked at after every tile."""
    columns = 16 * rows
    return Tuning(block_keys, columns, 1, 1, resident, block_entries=block_entries, planes=planes)


@contextmanager
def tables(row: Tuning) -> Iterator[None]:
    """The row in the place of those for any target."""
    with pytest.MonkeyPatch.context() as patch:
        for table in (tunings.CLASSIC, tunings.CLASSIC_PAGED):
            patch.setitem(table, "", row)
        yield


def run(
    call: judge.Call, top_k: int, target: str | None = None, **options: Any
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """(indices, scores, counts but for the last one) of the classic kernels, in memory that is full of NaN before.

    target : whose kernels are launched, if not this machine's
    """
    placed = {name: options.pop(name, None) for name in ("offsets", "page_table", "requests")}
    inputs = Dense(*call, *placed.values())
    rows, heads, dim = call.q.shape
    device = call.q.device if target is None else compat.capabilities(target).target
    problem = Problem(device, heads, dim, FP8[call.q.dtype], top_k, rows, len(call.k))
    return _run(dense, problem, inputs, {"max_window": None, "relative": False} | options)


def run_paged(
    call: paged.PagedCall, top_k: int, target: str | None = None, **options: Any
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """As :func:`run` of a paged call."""
    placed = {name: options.pop(name, None) for name in ("offsets", "page_table", "requests")}
    inputs = Paged(*call, *placed.values())
    requests, next_n, heads, dim = call.q.shape
    rows, keys = requests * next_n, options["max_context_len"]
    device = call.q.device if target is None else compat.capabilities(target).target
    problem = Problem(device, heads, dim, FP8[call.q.dtype], top_k, rows, keys, next_n, call.kv_cache.shape[1])
    return _run(cached, problem, inputs, options)


def _run(
    operation: compat.Operation[Problem], problem: Problem, inputs: Any, options: Any
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    indices = torch.full((problem.rows, problem.top_k), -7, dtype=torch.int32)
    scores = torch.full((problem.rows, problem.top_k), float("nan"))
    memory = torch.full((2**20,), 0xFF, dtype=torch.uint8)
    counters = torch.zeros((64, COUNTS), dtype=torch.int32)
    kernel = operation.load(operation.variants["classic"])
    for launch in kernel.prepare(problem, inputs, indices, scores, memory=memory, counters=counters, **options):
        launch()
    return indices, scores, counters.sum(0).tolist()[:3]


# --- the model --------------------------------------------------------------------------------------------------------------


def select(entries: list[tuple[float, int]], top_k: int) -> list[tuple[float, int]]:
    """Exactly top_k entries, the largest, of equal ones the first, in the order of their keys."""
    logits = torch.tensor([[value for value, _ in entries]])
    chosen, _ = selection.expected(logits, None, torch.tensor([len(entries)]), top_k)
    return [entries[place] for place in chosen[0].tolist()]


def is_tied(entries: Sequence[tuple[float, int]], top_k: int) -> bool:
    """Whether the least that is kept has an equal that is dropped; NaN and inf are told apart late, too."""
    ordered = sorted((float("inf") if value != value else value for value, _ in entries), reverse=True)
    return ordered[top_k - 1] == ordered[top_k]


def scan(logits: torch.Tensor, begin: int, end: int, top_k: int, tune: Tuning) -> tuple[list[tuple[float, int]], list[int]]:
    """(entries, counts): what a program leaves of the keys [begin, end) of a row, whose tiles begin at multiples, and how many
    selections made room, met equals, and closed the row."""
    segment = tune.block_keys * tune.segment_tiles
    entries: list[tuple[float, int]] = []
    threshold, counts = float("nan"), [0, 0, 0]

    def selected() -> list[tuple[float, int]]:
        counts[1] += is_tied(entries, top_k)
        return select(entries, top_k)

    for first in range(begin // tune.block_keys * tune.block_keys, end, segment):
        for key in range(max(begin, first), min(end, first + segment)):
            value = float(logits[key])
            if not value <= threshold:
                entries.append((value, key))
        assert len(entries) <= tune.block_entries, "a list overflows"
        if len(entries) > tune.block_entries - segment:
            entries = selected()
            counts[0] += 1
            kept = [value for value, _ in entries if value == value]
            threshold = min(kept, default=float("inf"))
            if not kept:
                counts[2] += 1
                break
    return (selected() if len(entries) > top_k else entries), counts
