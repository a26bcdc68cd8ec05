"""Runs of ``capgate bench`` on several stacks beside each other: absolute values, and deltas with their noise."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from capgate.compat.foreign import POSITIVE, TEXT, Document, clipped, list_of, map_of, object_with, or_none, shown
from capgate.compat.releases import parse_release

from ..bench.tables import FORMS

Results = dict[str, Any]

# Of a stack's description: what has to be equal for times to be comparable.
SAME_GPU = ("device", "target", "multiprocessors", "serial")
# What a Triton did before this project: of the columns that a run has, the first of these is what others are held against.
BASELINES = (("classic", True), ("classic", False), ("reference", True), ("reference", False))


class Stack(NamedTuple):
    """A column: Triton's version, the variant, and clean_logits."""

    triton: str
    variant: str
    clean: bool

    def lines(self) -> tuple[str, str, str]:
        return f"Triton {self.triton}", self.variant, "clean on" if self.clean else "clean off"

    def __str__(self) -> str:
        return ", ".join(self.lines())


class Value(NamedTuple):
    """A figure of one stack: the median of its rounds, and from the lowest to the highest of them."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Value":
        return cls(statistics.median(values), min(values), max(values), len(values))

    @property
    def spread(self) -> float | None:
        """Half the distance between the highest and the lowest round; None where there was one round, which tells nothing."""
        return (self.high - self.low) / 2 if self.rounds > 1 else None


class Delta(NamedTuple):
    """How a figure differs from another, and the noise of that: the sum of both spreads, None where one is unknown."""

    change: float
    noise: float | None


class Metric(NamedTuple):
    """A row: one figure of one workload, which is better when it is higher.

    is_part : whether it is a part of 1, whose deltas are differences; those of rates are parts of the baseline's
    """

    workload: str
    name: str
    is_part: bool = False


class Comparison(NamedTuple):
    """What is shown.

    stacks : every column's description, as its run had it
    baselines : the columns that deltas are to, the newest Triton first
    values : by row and column; a column may lack a row
    """

    stacks: dict[Stack, dict[str, Any]]
    baselines: tuple[Stack, ...]
    values: dict[Metric, dict[Stack, Value]]

    def delta(self, metric: Metric, stack: Stack, baseline: Stack) -> Delta | None:
        """The delta of a column to a baseline; None where either lacks the row, of a baseline to itself, and of an older
        Triton to a newer one."""
        row = self.values[metric]
        older = parse_release(stack.triton) < parse_release(baseline.triton)
        if stack == baseline or older or stack not in row or baseline not in row:
            return None
        value, base = row[stack], row[baseline]
        known = value.spread is not None and base.spread is not None
        if metric.is_part:
            return Delta(value.median - base.median, (value.spread or 0) + (base.spread or 0) if known else None)
        ratio = value.median / base.median
        noise = ratio * ((value.spread or 0) / value.median + (base.spread or 0) / base.median)
        return Delta(ratio - 1, noise if known else None)


_COLUMN = {"variant": TEXT, "clean_logits": {"type": "boolean"}}  # which a row belongs to
_FIGURES = {**list_of(POSITIVE), "minItems": 1}  # one for each round
_PARTS = {**_FIGURES, "items": {"type": "number", "minimum": 0, "maximum": 1.01}}  # of 1, and what rounding adds


def _metrics(figures: dict[str, Any]) -> dict[str, Any]:
    """Rows with metrics by name."""
    return list_of(object_with(workload=TEXT, metrics=map_of(figures), **_COLUMN))


# What a comparison reads of a run; what else there is stays unread. Files of earlier versions have no "selection".
RUN = object_with(
    stack=object_with(
        **dict.fromkeys(("device", "target"), TEXT),
        **dict.fromkeys(("triton", "torch", "runtime", "driver", "python"), or_none(TEXT)),
    ),
    workloads=map_of({"type": "object"}),
    rows=list_of(
        object_with(
            workload=TEXT,
            operation={"enum": list(FORMS)},
            medians_ms=_FIGURES,
            flops=POSITIVE,
            least_bytes=POSITIVE,
            **_COLUMN,
        )
    ),
    serving=_metrics(_FIGURES),
    accuracy=_metrics(_PARTS),
)
RUN["properties"]["selection"] = _metrics(_FIGURES)
DOCUMENT = Document("capgate bench --json writes", RUN)


def load(files: Iterable[str]) -> dict[str, Results]:
    """What ``capgate bench --json`` wrote into each file. ValueError for a file that holds something else, OSError for none."""
    return {file: DOCUMENT.read(file) for file in files}


def compare(runs: dict[str, Results]) -> Comparison:
    """Put the runs beside each other.

    runs : what :func:`load` returned

    Raises ValueError when they are not of one GPU or not of the same workloads, when two hold the same stack, and when no
    stack can serve as a baseline.
    """
    _check_same(runs)
    stacks: dict[Stack, dict[str, Any]] = {}
    owners: dict[Stack, str] = {}
    values: dict[Metric, dict[Stack, Value]] = {}
    for file, results in runs.items():
        for stack, metric, figures in _figures(results):
            if owners.setdefault(stack, file) != file:
                raise ValueError(f"{file}: holds {stack}, as {owners[stack]} does")
            stacks[stack] = results["stack"]
            row = values.setdefault(metric, {})
            if stack in row:
                raise ValueError(f"{file}: holds {metric.workload}, {metric.name} of {stack} twice")
            row[stack] = Value.of(figures)
    ordered = sorted(stacks, key=_order)
    return Comparison({stack: stacks[stack] for stack in ordered}, _baselines(ordered), values)


def _check_same(runs: dict[str, Results]) -> None:
    (first, reference), *others = runs.items()
    for file, results in others:
        for name in SAME_GPU:
            if results["stack"].get(name) != reference["stack"].get(name):
                own, other = (_said(run["stack"], name) for run in (results, reference))
                raise ValueError(f"{file}: another GPU: {name} {own}, {first} has {other}")
        ours, theirs = reference["workloads"], results["workloads"]
        if ours.keys() != theirs.keys():
            raise ValueError(f"{file}: other workloads: {', '.join(theirs) or 'none'}; {first} has {', '.join(ours) or 'none'}")
        for name in ours:
            for fact in sorted(ours[name].keys() | theirs[name].keys()):
                if ours[name].get(fact) != theirs[name].get(fact):
                    own, other = (_said(facts[name], fact) for facts in (theirs, ours))
                    raise ValueError(f"{file}: another workload {name}: {fact} {own}, {first} has {other}")
        if results.get("flush_gb") != reference.get("flush_gb"):
            flushed = _said(results, "flush_gb"), _said(reference, "flush_gb")
            raise ValueError(f"{file}: flushed {flushed[0]} GB before a call, {first} {flushed[1]}")


def _said(facts: dict[str, Any], name: str) -> str:
    """A fact in an error, where strings stand without quotes."""
    value = facts.get(name)
    return clipped(value) if isinstance(value, str) else "none" if value is None else shown(value)


def _figures(results: Results) -> Iterable[tuple[Stack, Metric, list[float]]]:
    """Every figure of a run: column, row, and a value for each round."""
    triton = results["stack"]["triton"] or "none"
    for row in results["rows"]:
        form = FORMS[row["operation"]]
        rates = [form.rate({**row, "median_ms": median}) for median in row["medians_ms"]]
        yield Stack(triton, row["variant"], row["clean_logits"]), Metric(row["workload"], form.unit), rates
    for kind in ("selection", "serving", "accuracy"):
        for row in results.get(kind, []):
            stack = Stack(triton, row["variant"], row["clean_logits"])
            for name, values in row["metrics"].items():
                yield stack, Metric(row["workload"], name, is_part=kind == "accuracy"), values


def _order(stack: Stack) -> tuple[Any, ...]:
    """Older Tritons first; the baseline's variant first, the cleaning call before the other, as the flag came later."""
    return parse_release(stack.triton), stack.variant not in ("classic", "reference"), stack.variant, not stack.clean


def _baselines(stacks: Sequence[Stack]) -> tuple[Stack, ...]:
    found = []
    for triton in sorted({stack.triton for stack in stacks}, key=parse_release, reverse=True):
        candidates = (Stack(triton, variant, clean) for variant, clean in BASELINES)
        found += [stack for stack in candidates if stack in stacks][:1]
    if not found:
        raise ValueError("no run has the classic or the reference variant, which deltas are to")
    return tuple(found)
