"""What the formats of queries and keys cost and keep of the same activations: bytes read, and float32's top keys.

Computed on the CPU by the quantisers and the reference variants that everything else is held against: no GPU is asked.
"""

import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from ...common.key_formats import FORMATS, SCALE_BYTES
from ..workloads.accuracy import LEANING, RULES, TOPICS, Accuracy
from .tables import Line

NAMES = ("fp8", "mxfp8", "mxfp4")
BASE = NAMES[0]  # what deltas are to
SEEDS = 3
FIRST_SEED = 1  # bench's of the same workload
CPU = torch.device("cpu")


class Figure(NamedTuple):
    """A row: of each format a value for each draw of the activations.

    is_part : whether it is a part of 1, of which more is better; otherwise it is a number of bytes
    """

    name: str
    values: dict[str, list[float]]
    is_part: bool = False


def figures(workload: Accuracy, seeds: int = SEEDS) -> list[Figure]:
    """Every row of a workload, whose activations are drawn with as many seeds."""
    found: dict[str, Figure] = {}

    def add(row: str, name: str, value: float, *, is_part: bool = False) -> None:
        found.setdefault(row, Figure(row, {}, is_part)).values.setdefault(name, []).append(value)

    for name in NAMES:
        add("bytes of a key and its scales", name, FORMATS[name].key_bytes(workload.dim) + SCALE_BYTES)
    for draw in range(seeds):
        for name in NAMES:
            cases = workload.cases(CPU, torch.float8_e4m3fn, name, FIRST_SEED + 2 * draw)  # prefill and decode have one each
            for kind, case in cases.items():
                if draw == 0:
                    add(f"bytes read, {kind}", name, case.read_bytes)
                recall = case.recall("reference", True, workload.top_k)
                add(f"top keys, {kind}", name, recall.keys, is_part=True)
                add(f"their attention, {kind}", name, recall.mass, is_part=True)
    return sorted(found.values(), key=lambda row: row.is_part)


def lines(rows: Sequence[Figure]) -> Iterator[Line]:
    """Every row, and below it the deltas to fp8: draw by draw, since all formats have the same activations."""
    for row in rows:
        form = ".4f" if row.is_part else ",.0f"
        yield Line(row.name, [f"{statistics.median(row.values[name]):{form}}" for name in NAMES], False, [False] * len(NAMES))
        deltas = [_delta(row, name) for name in NAMES if name != BASE]
        yield Line(f"vs {BASE}", ["", *deltas], True, [not row.is_part] * len(NAMES))


def _delta(row: Figure, name: str) -> str:
    """The median of a format's deltas, and half the distance between the lowest and the highest."""
    pairs = zip(row.values[name], row.values[BASE], strict=True)
    if not row.is_part:
        return f"{statistics.median(value / base - 1 for value, base in pairs):+.1%}"
    changes = [value - base for value, base in pairs]
    noise = f"{(max(changes) - min(changes)) / 2:.4f}" if len(changes) > 1 else "?"
    return f"{statistics.median(changes):+.4f} ±{noise}"


def notes(workload: Accuracy, seeds: int = SEEDS) -> list[str]:
    """What the figures mean, in sentences."""
    rules = " and ".join(f"{name} as {rule} does" for name, rule in RULES.items())
    return [
        "Computed on the CPU by the quantisers and the reference variants. Queries and keys are in the format; "
        f"{rules}, with a scale for each 32 values; fp8 keys have one that is a power of two, and fp8 queries one that their "
        "weights hold.",
        f"prefill: {workload.prompts} prompts of {workload.prompt_tokens} tokens, {workload.rows} rows of each; decode: "
        f"{workload.requests} requests of {workload.context_tokens} tokens; a key for {workload.ratio} tokens, "
        f"{workload.heads} heads of {workload.dim}. bytes read: each operand of the call once.",
        f"top keys: the part of float32's top {workload.top_k} keys that the format's hold, and of the attention (softmax of "
        "the float32 logits) that they carry: means over the rows.",
        f"Activations are synthetic, in bfloat16: normal queries and keys, each with {LEANING} of one of {TOPICS} normal "
        "topics added, and magnitudes of normal numbers as weights. "
        f"Seeds {FIRST_SEED} to {FIRST_SEED + 2 * seeds - 1}; medians over {seeds} draws. A model's own activations may have "
        "outliers, which these have not: measure with those before you choose.",
        f"vs {BASE}: of the same draw. ±: half the distance between the lowest and the highest of the draws; ±? where there "
        "was one.",
    ]
