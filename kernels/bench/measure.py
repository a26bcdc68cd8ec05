"""Times and accuracy of the branches on workloads, as rows of JSON types."""

import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from .accuracy import Accuracy
from .batch import Batch, Call, Workload
from .ceilings import Ceilings
from .peers import PEERS
from .selection import Selection
from .serving import Sample, Serving, Share
from .timing import Timer, Timing

Row = dict[str, Any]


class Plan(NamedTuple):
    """How to measure.

    variants : the branches and peers of each operation
    cleans : values of clean_logits
    rounds : how often each median is taken; all branches take turns, so that a GPU that gets warmer slows them alike
    """

    timer: Timer
    dtype: torch.dtype
    variants: dict[str, list[str]]
    cleans: Sequence[bool]
    rounds: int

    def variants_of(self, operations: Iterable[Any]) -> list[str]:
        """The branches and peers that every one of the operations has."""
        first, *others = [self.variants[operation.name] for operation in operations]
        return [name for name in first if all(name in names for names in others)]


class Taken(NamedTuple):
    """One branch's timings, a round each: of the call, and of what a serving step does once for all its layers, if anything."""

    call: list[Timing]
    shared: list[Timing]


def take(plan: Plan, workload: Workload, variants: list[str]) -> tuple[Batch, dict[tuple[bool, str], Taken]]:
    """The workload's batch, and the timings of each branch that has such a call, by clean_logits and name."""
    batch, peers = workload.make(plan.timer.device, plan.dtype), PEERS[workload.operation.name]
    out = batch.output()
    calls = {(clean, name): call for clean in plan.cleans for name, call in _calls(batch, peers, variants, clean, out)}
    shared = {key: None if key[1] in peers else batch.prepare(key[1], key[0]) for key in calls}
    turns: dict[Any, Call] = {}
    for key, call in calls.items():
        turns[key, "call"] = call
        if once := shared[key]:
            turns[key, "shared"] = once
    timings = _in_turns(plan, turns)
    return batch, {key: Taken(timings[key, "call"], timings.get((key, "shared"), [])) for key in calls}


def _in_turns(plan: Plan, calls: Mapping[Any, Call]) -> dict[Any, list[Timing]]:
    """The timings of each call, a round each."""
    timings: dict[Any, list[Timing]] = {key: [] for key in calls}
    for _ in range(plan.rounds):
        for key, call in calls.items():
            timings[key].append(plan.timer(call))
    return timings


def _calls(
    batch: Batch, peers: dict[str, Any], variants: list[str], clean: bool, out: torch.Tensor
) -> Iterator[tuple[str, Call]]:
    """What to time: ours into a buffer that is kept and shared, a peer's with the buffer that it allocates."""
    for variant in variants:
        peer = peers.get(variant)
        call = peer.bind(peer.find(), batch, clean) if peer else batch.call(variant, clean, out)
        if call is not None:
            yield variant, call


def kernel_rows(plan: Plan, ceilings: Ceilings | None, workloads: Sequence[Workload]) -> list[Row]:
    """A row for each workload, clean_logits and branch.

    ``median_ms`` is the median of ``medians_ms``, one for each round; ``low_ms`` and ``high_ms`` are those of the quartiles.
    ``schedule_ms`` is the time of what a serving step does once for all layers, None where there is nothing.
    """
    rows = []
    for workload in _track(workloads, "timing kernels"):
        batch, taken = take(plan, workload, plan.variants[workload.operation.name])
        for (clean, variant), (timings, shared) in taken.items():
            flops, bytes_ = batch.flops, batch.least_bytes(clean)
            rows.append(
                {
                    "workload": workload.name,
                    "operation": workload.operation.name,
                    "variant": variant,
                    "clean_logits": clean,
                    "size": workload.size,
                    **workload.facts(),
                    "flops": flops,
                    "least_bytes": bytes_,
                    "floor_ms": ceilings.floor_ms(flops, bytes_, workload.moves) if ceilings else None,
                    **{f"{name}_ms": statistics.median(getattr(t, name) for t in timings) for name in Timing._fields},
                    "medians_ms": [timing.median for timing in timings],
                    "schedule_ms": statistics.median(timing.median for timing in shared) if shared else None,
                }
            )
        del batch, taken
    return rows


def selection_rows(plan: Plan, ceilings: Ceilings | None, workloads: Sequence[Selection]) -> list[Row]:
    """A row for each workload and branch: ``NAME_ms`` are the medians of what :meth:`SelectionBatch.calls` names, one for each
    round; ``read_ms`` is the time of a read of the logits, and ``peak_bytes`` memory besides operands and result."""
    rows = []
    for workload in _track(workloads, "timing selections"):
        batch = workload.make(plan.timer.device, plan.dtype)
        calls = {variant: batch.calls(variant) for variant in plan.variants_of(workload.operations)}
        timings = _in_turns(plan, {(variant, name): call for variant, named in calls.items() for name, call in named.items()})
        for variant in calls:
            medians = {name: [timing.median for timing in timings[variant, name]] for name in calls[variant]}
            rows.append(
                {
                    "workload": workload.name,
                    "variant": variant,
                    "clean_logits": False,
                    "size": workload.size,
                    **workload.facts(),
                    **{f"{name}_ms": values for name, values in medians.items()},
                    "read_ms": ceilings.floor_ms(0, batch.least_bytes, "read") if ceilings else None,
                    "peak_bytes": batch.peak_bytes(variant),
                    "metrics": {"select_keys, rows/s": [1e3 * workload.prefill.rows / median for median in medians["whole"]]},
                }
            )
        del batch, calls
    return rows


def serving_rows(plan: Plan, runs: Sequence[Serving]) -> list[Row]:
    """A row for each run, clean_logits and branch: seconds of the share and tokens per second, a figure for each round."""
    rows = []
    for run in runs:
        variants = plan.variants_of(run.operations)
        samples = _track(run.samples(), f"timing {run.name}")
        measured = [(sample, take(plan, sample.workload, variants)[1]) for sample in samples]
        for clean, variant in measured[0][1]:
            taken = [(sample, by_key[clean, variant]) for sample, by_key in measured]
            shares = [_share(run, taken, number) for number in range(plan.rounds)]
            rates = [share.tokens_per_second(run) for share in shares]
            rows.append(
                {
                    "workload": run.name,
                    "variant": variant,
                    "clean_logits": clean,
                    "prefill_s": [share.prefill for share in shares],
                    "decode_s": [share.decode for share in shares],
                    "metrics": {name: [rate[name] for rate in rates] for name in rates[0]},
                    "steps": [_step(sample, timings) for sample, timings in taken],
                }
            )
    return rows


def _share(run: Serving, taken: list[tuple[Sample, Taken]], number: int) -> Share:
    """The share by the timings of one round."""
    seconds = {"prefill": 0.0, "decode": 0.0}
    for (workload, steps), (calls, shared) in taken:
        once = shared[number].median if shared else 0.0
        seconds[workload.name] += steps * (run.layers * calls[number].median + once) / 1e3
    return Share(**seconds)


def _step(sample: Sample, taken: Taken) -> Row:
    """What was timed for a sample: milliseconds of one layer's call, and of what all layers share."""
    call, shared = (statistics.median(timing.median for timing in timings) if timings else 0.0 for timings in taken)
    kind, size = sample.workload.name, sample.workload.size
    return {"kind": kind, "size": size, "steps": sample.steps, "layer_ms": call, "shared_ms": shared}


def accuracy_rows(plan: Plan, workloads: Sequence[Accuracy]) -> list[Row]:
    """A row for each workload, clean_logits and branch of ours: both recalls in prefill and in decode."""
    rows: list[Row] = []
    for workload in workloads:
        cases = workload.cases(plan.timer.device, plan.dtype)
        names = [name for name in plan.variants_of(workload.operations) if name in workload.operations[0].variants]
        for clean, variant in _track([(clean, name) for clean in plan.cleans for name in names], "top keys"):
            metrics: dict[str, list[float]] = {}
            for kind, case in cases.items():
                recalls = [case.recall(variant, clean, workload.top_k) for _ in range(plan.rounds)]
                metrics[f"top keys, {kind}"] = [recall.keys for recall in recalls]
                metrics[f"their attention, {kind}"] = [recall.mass for recall in recalls]
            rows.append({"workload": workload.name, "variant": variant, "clean_logits": clean, "metrics": metrics})
        del cases
    return rows


def _track(things: Sequence[Any], words: str) -> Iterable[Any]:
    from rich.console import Console
    from rich.progress import track

    return track(things, words, transient=True, disable=not sys.stderr.isatty(), console=Console(stderr=True))
