"""One of several processes that share a GPU: it scores the same keys and looks at every cell, or is what it shares it with.

    python -m support.sharing clean|others|busy|passing DEVICE SECONDS

tests/gpu/test_shared_gpu.py starts it. It ends after so many seconds of calls ("busy" does not, "passing" after some kernels),
at the first wrong cell, and with the process that holds the other end of its standard input.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from typing import NamedTuple

import torch

from capgate.kernels import fp8_mqa_logits, fp8_paged_mqa_logits
from capgate.kernels.mqa_logits.operation import operation

from . import judge, paged

UNTOUCHED = 0x7FA0BEEF  # bits of a NaN that no kernel writes: every cell before a call
NEGATIVE_INFINITY = 0xFF800000
CHECKED_ROWS = 24  # of a workload's first result, held against the formula; every later one has to have the first one's bits


class Workload(NamedTuple):
    """Calls that write the same ``rows`` x ``columns`` logits into an output.

    formula : judge.Answer for some rows
    inside : which columns (given as a row of numbers) of some rows (as a slice) lie inside the windows
    """

    name: str
    rows: int
    columns: int
    clean_logits: bool
    call: Callable[..., torch.Tensor]
    formula: Callable[[list[int]], NamedTuple]
    inside: Callable[[torch.Tensor, slice], torch.Tensor]


def workloads(kind: str, device: str) -> Iterator[Workload]:
    """Of a kind: "clean" dense logits, whose -inf a tile in shared memory is the source of, or all "others"."""
    dtype = getattr(torch, operation.example(torch.device(device)).dtype) if device != "cpu" else torch.float8_e4m3fn
    shrink = 1 if device != "cpu" else 128  # where this file itself is tried out

    def dense(rows: int, keys: int, windows: str, clean_logits: bool) -> Workload:
        rows, keys = max(1, rows // shrink), keys // shrink
        call = judge.make_call(rows, keys, 64, 128, windows, dtype=dtype, device=device)
        return Workload(
            f"{rows} x {keys}, clean_logits={clean_logits}",
            *(rows, keys, clean_logits),
            partial(fp8_mqa_logits, *call, clean_logits=clean_logits),
            lambda some: judge.formula(call, rows=some),
            lambda column, some: (column >= call.starts[some, None]) & (column < call.ends[some, None]),
        )

    def decode(requests: int, context: int, clean_logits: bool) -> Workload:
        requests, context = max(2, requests // shrink), context // shrink
        lens = [context - 37 * request % (context // 2) for request in range(requests)]
        call = paged.make_call(lens, 2, 64, 128, dtype=dtype, device=device)

        def formula(some: list[int]) -> NamedTuple:
            answer = paged.formula(call, context)
            return judge.Answer(*(part[some] for part in answer))

        return Workload(
            f"paged, {requests} x 2 x {context}, clean_logits={clean_logits}",
            *(2 * requests, context, clean_logits),
            partial(fp8_paged_mqa_logits, *call, max_context_len=context, clean_logits=clean_logits),
            formula,
            lambda column, some: column < call.seen.flatten()[some, None],
        )

    if kind == "clean":
        yield dense(8192, 8192, "causal", True)
        yield dense(2048, 65536, "suffix", True)
    else:
        yield dense(8192, 8192, "causal", False)  # so many groups of rows that none is guessed
        yield dense(64, 8192, "full", False)  # and so few that the first is
        yield decode(64, 8192, False)
        yield decode(64, 8192, True)


def leave_with(name: str, rows: Sequence[int], found: torch.Tensor, expected: torch.Tensor, wrong: torch.Tensor) -> None:
    """Say what is wrong in these rows, and end; the tensors are [rows, columns], two of them int32 bits."""
    row, column = wrong.nonzero()[0].tolist()
    bits = [f"{int(which[row, column]) & 0xFFFFFFFF:#010x}" for which in (found, expected)]
    sys.exit(f"{name}: {int(wrong.sum())} wrong cells; the first, [{rows[row]}, {column}], holds {bits[0]} and not {bits[1]}")


def first_result(workload: Workload, device: str) -> torch.Tensor:
    """The bits of a result, int32 [rows, columns]; what lies outside the windows is looked at in all rows, the rest in some."""
    out = torch.empty(workload.rows, workload.columns, device=device)
    bits = out.view(torch.int32)
    bits.fill_(UNTOUCHED)
    workload.call(out=out)
    outside = NEGATIVE_INFINITY - 2**32 if workload.clean_logits else UNTOUCHED
    column = torch.arange(workload.columns, device=device)[None, :]
    for first in range(0, workload.rows, 1024):
        some = slice(first, first + 1024)
        wrong = ~workload.inside(column, some) & (bits[some] != outside)
        if wrong.any():
            expected = torch.full_like(bits[some], outside)
            leave_with(f"{workload.name}, first call", range(workload.rows)[some], bits[some], expected, wrong)
    rows = sorted({workload.rows * part // CHECKED_ROWS for part in range(CHECKED_ROWS)} | {workload.rows - 1})
    answer = workload.formula(rows)
    error = (out[rows].double() - answer.logits).abs()
    wrong = answer.inside & ~(error <= 1e-3 * answer.magnitude)  # what a stray word does is far beyond any rounding
    if wrong.any():
        expected = answer.logits.float().view(torch.int32)
        leave_with(f"{workload.name}, first call, inside", rows, bits[rows], expected, wrong)
    return bits


def score(kind: str, device: str, seconds: float) -> None:
    """Call after call for so many seconds, the workloads in turn."""
    todo = [(workload, first_result(workload, device)) for workload in workloads(kind, device)]
    outs = [torch.empty(workload.rows, workload.columns, device=device) for workload, _ in todo]
    wrongs = [torch.empty(out.shape, dtype=torch.bool, device=device) for out in outs]
    began, calls = time.monotonic(), 0
    while time.monotonic() - began < seconds or calls < 2 * len(todo):
        (workload, expected), out, wrong = todo[calls % len(todo)], outs[calls % len(todo)], wrongs[calls % len(todo)]
        bits = out.view(torch.int32)
        bits.fill_(UNTOUCHED)
        workload.call(out=out)
        torch.ne(bits, expected, out=wrong)
        calls += 1
        if wrong.any():
            name = f"{workload.name}, call {calls} after {time.monotonic() - began:.1f} s"
            leave_with(name, range(workload.rows), bits, expected, wrong)
    print(calls, "calls")


def keep_busy(device: str, rounds: int | None = None) -> None:
    """Long kernels, several of them waiting at any time; for so many rounds, or for ever."""
    matrix = torch.rand(16384 if device != "cpu" else 256, 16384 if device != "cpu" else 256, device=device).bfloat16()
    for _ in count() if rounds is None else range(rounds):
        for _ in range(4):
            matrix @ matrix
        if device != "cpu":
            torch.cuda.synchronize()


def end_with_the_parent() -> None:
    """Standard input ends when the parent closes it or dies; read without Python's buffer, whose lock would be held at exit."""
    os.read(0, 1)
    os._exit(3)


if __name__ == "__main__":
    threading.Thread(target=end_with_the_parent, daemon=True).start()
    what, where, limit = sys.argv[1:]
    if what in ("busy", "passing"):
        keep_busy(where, rounds=1 if what == "passing" else None)
    else:
        score(what, where, float(limit))
