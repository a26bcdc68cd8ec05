"""What a variant did with a batch, held against float64, and the table of all variants."""

from typing import Any, NamedTuple

import torch

from ..bench.timing import Timer

# DeepGEMM's limits of calc_diff: to the same operands as they are in fp8, and to the activations that they were made from.
SAME_OPERANDS = 5e-6
ACTIVATIONS = 1e-3
SENTINEL = -12345.0


class Outcome(NamedTuple):
    """What one variant did with a batch.

    difference : calc_diff to float64 on the same fp8 operands
    end_to_end : calc_diff to float64 on the bfloat16 activations, None where there are none
    disturbed : cells that a row does not see and that are not as they should be: -inf, or as they were
    """

    operation: str
    variant: str
    clean: bool
    milliseconds: float
    difference: float
    end_to_end: float | None
    disturbed: int

    @property
    def failed(self) -> bool:
        return self.difference > SAME_OPERANDS or (self.end_to_end or 0) > ACTIVATIONS or self.disturbed > 0


def calc_diff(logits: torch.Tensor, exact: torch.Tensor) -> float:
    """DeepGEMM's measure, in float64: ``1 - 2 sum(x y) / sum(x x + y y)``; 0 where there is nothing to compare."""
    logits, exact = logits.double(), exact.double()
    denominator = float((logits * logits + exact * exact).sum())
    return 1 - 2 * float((logits * exact).sum()) / denominator if denominator else 0.0


def timer_of(device: torch.device) -> Timer:
    """For figures of a demo and not of a benchmark: few repeats, one on the CPU, where a call may take seconds."""
    return Timer(device, repeats=10, flush_bytes=10**9) if device.type == "cuda" else Timer(device, repeats=1, warmup=0)


def runnable(operation: Any, problem: Any) -> tuple[list[str], list[str]]:
    """The variants that can take a problem when they are named, and in words why the others cannot."""
    names, notes = [], []
    for name in operation.variants:
        trace = operation.explain(problem, name)
        if trace.variant == name:
            names.append(name)
        else:
            notes += [f"{name} does not run here: {step.reason}" for step in trace.steps if step.variant == name]
    return names, notes


def count_disturbed(logits: torch.Tensor, inside: torch.Tensor, clean: bool) -> int:
    """How many cells outside differ from what a call into SENTINEL leaves there."""
    return int((logits[~inside] != (float("-inf") if clean else SENTINEL)).sum())


def show(console: Any, title: str, outcomes: list[Outcome], default: str | None, notes: list[str]) -> None:
    """Print the outcomes of one operation, the variant that runs by default marked, and the notes."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="bold")
    end_to_end = any(outcome.end_to_end is not None for outcome in outcomes)
    columns = ("variant", "clean", "time", "diff", *(("from bf16",) if end_to_end else ()), "disturbed")
    for column in columns:
        table.add_column(column, justify="left" if column == "variant" else "right")
    for outcome in outcomes:
        table.add_row(
            f"{outcome.variant} (default)" if outcome.variant == default else outcome.variant,
            "yes" if outcome.clean else "no",
            duration(outcome.milliseconds),
            f"{outcome.difference:.1e}",
            *((f"{outcome.end_to_end:.1e}",) if end_to_end else ()),
            str(outcome.disturbed),
        )
    console.print(table)
    for note in notes:
        console.print(note)


def duration(milliseconds: float) -> str:
    """Three digits and the unit that people read them in."""
    for unit, size in (("s", 1000.0), ("ms", 1.0)):
        if milliseconds / size >= 0.9995:  # which has the digits of 1.00
            return f"{milliseconds / size:.3g} {unit}"
    return f"{milliseconds * 1000:.3g} us"


def mebibytes(size: int) -> str:
    return f"{size / 2**20:.2f} MiB"
