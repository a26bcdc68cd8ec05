"""Times of the branches on workloads, round after round, as rows of JSON types."""

import statistics
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .batch import Batch, Call, Workload
from .ceilings import Ceilings
from .peers import PEERS
from .timing import Timer, Timing

Row = dict[str, Any]


def measure_rows(
    timer: Timer,
    ceilings: Ceilings | None,
    workloads: Sequence[Workload],
    variants: dict[str, list[str]],
    cleans: Sequence[bool],
    dtype: torch.dtype,
    rounds: int,
) -> list[Row]:
    """A row for each workload, clean_logits and branch that has such a call.

    variants : the branches and peers of each operation
    rounds : how often each median is taken; the branches take turns, so that a GPU that gets warmer slows all alike

    ``median_ms`` is the median of ``medians_ms``, one for each round; ``low_ms`` and ``high_ms`` are those of the quartiles.
    ``schedule_ms`` is the time of what a serving step does once for all layers, None where there is nothing.
    """
    from rich.progress import track

    rows = []
    asked = [(workload, clean) for workload in workloads for clean in cleans]
    for workload, clean in track(asked, "timing", transient=True, disable=not sys.stderr.isatty()):
        batch = workload.make(timer.device, dtype)
        calls = dict(_calls(workload, batch, variants[workload.operation.name], clean))
        taken: dict[str, list[Timing]] = {variant: [] for variant in calls}
        for _ in range(rounds):
            for variant, call in calls.items():
                taken[variant].append(timer(call))
        for variant, timings in taken.items():
            shared = None if variant in PEERS[workload.operation.name] else batch.prepare(variant, clean)
            rows.append(
                {
                    "workload": workload.name,
                    "operation": workload.operation.name,
                    "variant": variant,
                    "clean_logits": clean,
                    "size": workload.size,
                    **workload.facts(),
                    **_work(workload, batch, clean, ceilings),
                    **{f"{name}_ms": statistics.median(getattr(t, name) for t in timings) for name in Timing._fields},
                    "medians_ms": [timing.median for timing in timings],
                    "schedule_ms": timer(shared).median if shared else None,
                }
            )
        del batch, calls
    return rows


def _calls(workload: Workload, batch: Batch, variants: list[str], clean: bool) -> Iterator[tuple[str, Call]]:
    """What to time: ours into a buffer that is kept and shared, a peer's with the buffer that it allocates."""
    out, peers = batch.output(), PEERS[workload.operation.name]
    for variant in variants:
        peer = peers.get(variant)
        call = peer.bind(peer.find(), batch, clean) if peer else batch.call(variant, clean, out)
        if call is not None:
            yield variant, call


def _work(workload: Workload, batch: Batch, clean: bool, ceilings: Ceilings | None) -> Row:
    flops, bytes_ = batch.flops, batch.least_bytes(clean)
    floor = ceilings.floor_ms(flops, bytes_, workload.moves) if ceilings else None
    return {"flops": flops, "least_bytes": bytes_, "floor_ms": floor}
