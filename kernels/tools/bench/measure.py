"""Times and accuracy of the variants on workloads, as rows of JSON types."""

import statistics
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch

from capgate.compat.thirdparty import Raised, ask

from ..workloads.accuracy import Accuracy
from ..workloads.batch import Batch, Call, Workload
from ..workloads.selection import Choice, DecodeSelection, Selection
from ..workloads.serving import Sample, Serving, Share
from .ceilings import Ceilings
from .other_libraries import PEERS
from .timing import Timer, Timing
from .trial import SAME_OPERANDS, Trial, difference, try_peer

Row = dict[str, Any]
K = TypeVar("K", bound=Hashable)


class Remark(NamedTuple):
    """What there is to say of one variant's or peer's calls: why there is no time, or that its logits are others.

    operation : the one that was timed, "" for a workload of several
    measured : whether there is a time all the same
    """

    workload: str
    operation: str
    variant: str
    clean_logits: bool
    measured: bool
    words: str


@dataclass(frozen=True)
class Plan:
    """How to measure.

    variants : the variants and peers of each operation
    cleans : values of clean_logits
    rounds : how often each median is taken; all variants take turns, so that a GPU that gets warmer slows them alike
    remarks : what was found on the way: a call that fails is left out, and the others are measured
    """

    timer: Timer
    dtype: torch.dtype
    variants: dict[str, list[str]]
    cleans: Sequence[bool]
    rounds: int
    remarks: list[Remark] = field(default_factory=list)

    def variants_of(self, operations: Iterable[Any]) -> list[str]:
        """The variants and peers that every one of the operations has."""
        first, *others = [self.variants[operation.name] for operation in operations]
        return [name for name in first if all(name in names for names in others)]

    def remark(self, workload: Any, key: tuple[bool, str], words: str, measured: bool = False) -> None:
        """Say something of the variant and clean_logits that ``key`` is."""
        clean, variant = key
        operation = workload.operation.name if hasattr(workload, "operation") else ""
        self.remarks.append(Remark(workload.name, operation, variant, clean, measured, words))


class Taken(NamedTuple):
    """One variant's timings, a round each: of the call, and of what a serving step does once for all its layers, if at all."""

    call: list[Timing]
    shared: list[Timing]


def take(plan: Plan, workload: Workload, variants: list[str]) -> tuple[Batch, dict[tuple[bool, str], Taken]]:
    """The workload's batch, and the timings of each variant and peer whose call runs, by clean_logits and name."""
    batch, peers = workload.make(plan.timer.device, plan.dtype), PEERS[workload.operation.name]
    keys = [(clean, name) for clean in plan.cleans for name in variants]
    calls = _calls(plan, workload, batch, keys)
    turns: dict[tuple[tuple[bool, str], str], Call] = {}
    for key, call in calls.items():
        clean, name = key
        once = None if name in peers else ask(partial(batch.prepare, name, clean))
        if isinstance(once, Raised):
            plan.remark(workload, key, once.words)
            continue
        turns[key, "call"] = call
        if once:
            turns[key, "shared"] = once
    timings, raised = in_turns(plan, turns)
    failed = {key: words for (key, _), words in raised.items()}
    for key, words in failed.items():
        plan.remark(workload, key, words)
    timed = [key for key, part in timings if part == "call" and key not in failed]
    return batch, {key: Taken(timings[key, "call"], timings.get((key, "shared"), [])) for key in timed}


def _calls(plan: Plan, workload: Workload, batch: Batch, keys: list[tuple[bool, str]]) -> dict[tuple[bool, str], Call]:
    """What to time: ours into a buffer that is kept and shared, a peer's with the buffer that it allocates."""
    peers, out = PEERS[workload.operation.name], batch.output()
    logits = _logits(batch, out) if any(name in peers for _, name in keys) else None
    calls: dict[tuple[bool, str], Call] = {}
    for key in keys:
        clean, name = key
        found: Call | Trial | Raised | None
        found = try_peer(peers[name], batch, clean, out) if name in peers else ask(partial(batch.call, name, clean, out))
        if isinstance(found, Trial):
            if logits is not None and not (apart := difference(batch, logits, found.logits)) <= SAME_OPERANDS:
                words = f"its logits are not ours: calc_diff {apart:.1e}, where {SAME_OPERANDS:g} at most is the same"
                plan.remark(workload, key, words, measured=True)
            calls[key] = found.call
        elif isinstance(found, Raised):
            plan.remark(workload, key, found.words)
        elif found is not None:
            calls[key] = found
    return calls


def _logits(batch: Batch, out: torch.Tensor) -> torch.Tensor | None:
    """Ours, in ``out``, to hold peers' against; None where we have none."""
    call = ask(partial(batch.call, None, False, out))
    done = call if call is None or isinstance(call, Raised) else ask(call)
    return None if call is None or isinstance(done, Raised) else out


def in_turns(plan: Plan, calls: Mapping[K, Call]) -> tuple[dict[K, list[Timing]], dict[K, str]]:
    """The timings of each call that runs, a round each, in which all take turns, and what the others raised."""
    timings: dict[K, list[Timing]] = {key: [] for key in calls}
    raised: dict[K, str] = {}
    for _ in range(plan.rounds):
        for key in list(timings):
            timing = ask(partial(plan.timer, calls[key]))
            if isinstance(timing, Raised):
                raised[key] = timing.words
                del timings[key]
            else:
                timings[key].append(timing)
    return timings, raised


def _each(plan: Plan, workloads: Iterable[Any], rows_of: Callable[[Any], list[Row]]) -> list[Row]:
    """The rows of every workload; one that fails as a whole, for want of memory say, leaves the others."""
    rows: list[Row] = []
    for workload in workloads:
        found = ask(partial(rows_of, workload))
        if isinstance(found, Raised):
            for key in ((clean, name) for clean in plan.cleans for name in plan.variants_of(workload.operations)):
                plan.remark(workload, key, found.words)
        else:
            rows += found
    return rows


def kernel_rows(plan: Plan, ceilings: Ceilings | None, workloads: Sequence[Workload]) -> list[Row]:
    """A row for each workload, clean_logits and variant.

    ``median_ms`` is the median of ``medians_ms``, one for each round; ``low_ms`` and ``high_ms`` are those of the quartiles.
    ``schedule_ms`` is the time of what a serving step does once for all layers, None where there is nothing.
    """

    def rows_of(workload: Workload) -> list[Row]:
        batch, taken = take(plan, workload, plan.variants[workload.operation.name])
        rows = []
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
        return rows

    return _each(plan, tracked(workloads, "timing kernels"), rows_of)


def selection_rows(plan: Plan, ceilings: Ceilings | None, workloads: Sequence[Selection | DecodeSelection]) -> list[Row]:
    """A row for each workload and variant: ``NAME_ms`` are the medians of what :meth:`SelectionBatch.calls` names, one for each
    round, and ``peers_ms`` those of peers' whole calls; ``read_ms`` is the time of a read of the logits, and ``peak_bytes`` by
    name memory besides operands and result. ``fused`` is the variant of the fused call, or None, and ``why_two_steps`` then
    says why there is none; ``counts`` are those of the fused call, None where nothing counts. A variant that is not for such
    rows has none, unless no other is asked for, which is remarked."""
    unclean = replace(plan, cleans=(False,))

    def rows_of(workload: Selection | DecodeSelection) -> list[Row]:
        batch = workload.make(plan.timer.device, plan.dtype)
        peers = key_peers(plan, workload, batch.choice)
        asked = [name for name in plan.variants_of(workload.operations) if name not in PEERS["select_keys"]]
        variants = [name for name in asked if batch.takes(name)] or asked
        calls = {variant: batch.calls(variant) for variant in variants}
        turns = {(variant, name): call for variant, named in calls.items() for name, call in named.items()}
        timings, raised = in_turns(plan, {**turns, **{(peer, "whole"): call for peer, call in peers.items()}})
        failures: dict[str, list[str]] = {}
        for (owner, name), words in raised.items():
            failures.setdefault(owner, []).append(f"{name}: {words}")
        for owner, failed in failures.items():
            plan.remark(workload, (False, owner), "; ".join(failed))
        of_peers = {peer: [timing.median for timing in timings[peer, "whole"]] for peer in peers if peer not in failures}
        counts = ask(batch.choice.counting) if variants else None
        if isinstance(counts, Raised):
            plan.remark(workload, (False, batch.choice.fused_variant or ""), f"not counted: {counts.words}", measured=True)
            counts = None
        rows = []
        for variant in (variant for variant in calls if variant not in failures):
            medians = {name: [timing.median for timing in timings[variant, name]] for name in calls[variant]}
            wholes = {"select_keys": "whole", "select_keys fused": "fused"}
            rows.append(
                {
                    "workload": workload.name,
                    "variant": variant,
                    "clean_logits": False,
                    "size": workload.size,
                    **workload.facts(),
                    **{f"{name}_ms": values for name, values in medians.items()},
                    "peers_ms": of_peers,
                    "read_ms": ceilings.floor_ms(0, batch.least_bytes, "read") if ceilings else None,
                    "peak_bytes": batch.peak_bytes(variant),
                    "fused": batch.choice.fused_variant,
                    "why_two_steps": batch.choice.why_two_steps,
                    "counts": counts._asdict() if counts else None,
                    "metrics": {
                        f"{words}, rows/s": [1e3 * workload.rows / median for median in medians[name]]
                        for words, name in wholes.items()
                        if name in medians
                    },
                }
            )
        return rows

    return _each(unclean, tracked(workloads, "timing selections"), rows_of)


def key_peers(plan: Plan, workload: Any, choice: Choice) -> dict[str, Call]:
    """The calls of the plan's peers that run and return the keys of a selection."""
    calls: dict[str, Call] = {}
    for name in plan.variants_of(workload.operations):
        if name in PEERS["select_keys"]:
            found = try_peer(PEERS["select_keys"][name], choice, False, choice.output())
            if isinstance(found, Trial):
                calls[name] = found.call
            elif isinstance(found, Raised):
                plan.remark(workload, (False, name), found.words)
    return calls


def serving_rows(plan: Plan, runs: Sequence[Serving]) -> list[Row]:
    """A row for each run, clean_logits and variant: seconds of the share and tokens per second, a figure for each round."""

    def rows_of(run: Serving) -> list[Row]:
        steps, variants = replace(plan, remarks=[]), plan.variants_of(run.operations)
        samples = tracked(run.samples(), f"timing {run.name}")
        measured = [(sample, take(steps, sample.workload, variants)[1]) for sample in samples]
        for remark in steps.remarks:
            plan.remarks.append(remark._replace(workload=run.name, operation="", words=f"{remark.workload}: {remark.words}"))
        rows = []
        for clean, variant in (key for key in measured[0][1] if all(key in by_key for _, by_key in measured)):
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

    return _each(plan, runs, rows_of)


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
    """A row for each workload, clean_logits and variant of ours: both recalls in prefill and in decode."""

    def rows_of(workload: Accuracy) -> list[Row]:
        cases, rows = workload.cases(plan.timer.device, plan.dtype), []
        names = [name for name in plan.variants_of(workload.operations) if name in workload.operations[0].variants]

        def metrics_of(clean: bool, variant: str) -> dict[str, list[float]]:
            metrics = {}
            for kind, case in cases.items():
                recalls = [case.recall(variant, clean, workload.top_k) for _ in range(plan.rounds)]
                metrics[f"top keys, {kind}"] = [recall.keys for recall in recalls]
                metrics[f"their attention, {kind}"] = [recall.mass for recall in recalls]
            return metrics

        for clean, variant in tracked([(clean, name) for clean in plan.cleans for name in names], "top keys"):
            metrics = ask(partial(metrics_of, clean, variant))
            if isinstance(metrics, Raised):
                plan.remark(workload, (clean, variant), metrics.words)
            else:
                rows.append({"workload": workload.name, "variant": variant, "clean_logits": clean, "metrics": metrics})
        return rows

    return _each(plan, workloads, rows_of)


def tracked(things: Sequence[Any], words: str) -> Iterable[Any]:
    from rich.console import Console
    from rich.progress import track

    return track(things, words, transient=True, disable=not sys.stderr.isatty(), console=Console(stderr=True))
