"""A packed prefill batch, as DeepSeek-V4-Flash's serving stack makes one, through every variant that runs here."""

from functools import partial
from typing import Any

import torch

from ...mqa_logits import fp8_mqa_logits, reference
from ...mqa_logits.operation import example, operation
from ..workloads.prefill import PrefillBatch, prompts
from .agreement import SENTINEL, Outcome, calc_diff, count_disturbed, mebibytes, runnable, show, timer_of
from .working import working

ON_GPU = (1024,) * 16  # 16384 tokens: what such a serving stack puts into one prefill batch at most
ON_CPU = (128, 64, 64)  # Triton's interpreter takes ten seconds for it, on one core


def score(console: Any, device: torch.device) -> list[Outcome]:
    """Score the batch, and print the outcomes and what an unclean and a compressed output save."""
    from rich.text import Text

    lengths = ON_GPU if device.type == "cuda" else ON_CPU
    workload, problem = prompts(lengths), example(device)
    batch = workload.make(device, getattr(torch, problem.dtype))
    sizes = (
        f" of {_each(lengths)} tokens, as DeepSeek-V4-Flash prefills: {workload.rows} query rows "
        f"x {workload.keys} keys, {workload.heads} heads of {workload.dim}, {problem.dtype}"
    )
    console.print(Text.assemble((f"Prefill: {workload.words}", "bold"), sizes))
    exact = torch.full((workload.rows, workload.keys), float("nan"), device=device, dtype=torch.float64)
    with working("float64"):
        reference.launch(batch.operands, exact, clean_logits=False, compressed=False, accumulate=torch.float64)

    names, notes = runnable(operation, problem)
    outcomes = [_run_variant(batch, exact, name, clean) for name in names for clean in (True, False)]
    show(console, operation.name, outcomes, operation.explain(problem).variant, notes)
    cells, inside = workload.rows * workload.keys, batch.cells
    clean, unclean = batch.least_bytes(True), batch.least_bytes(False)
    console.print(
        f"clean_logits=False writes {mebibytes(4 * inside)} of logits instead of {mebibytes(4 * cells)}. With every operand "
        f"read once, a call then moves {mebibytes(unclean)} instead of {mebibytes(clean)}: {1 - unclean / clean:.0%} less."
    )
    window = int((batch.ends - batch.starts).max())
    console.print(
        f"Compressed output (max_window={window}) needs a buffer of {mebibytes(4 * workload.rows * window)} "
        f"instead of {mebibytes(4 * cells)}.\n"
    )
    return outcomes


def _each(lengths: tuple[int, ...]) -> str:
    """As many lengths as there are prompts: "16 x 1024", or "256, 128, 64, 64"."""
    return f"{len(lengths)} x {lengths[0]}" if len(set(lengths)) == 1 else ", ".join(map(str, lengths))


def _run_variant(batch: PrefillBatch, exact: torch.Tensor, variant: str, clean: bool) -> Outcome:
    """Time one variant on the batch, and compare it with float64 inside the windows (NaN outside), with a sentinel outside."""
    device, rows = batch.q.device, batch.q.shape[0]
    logits = torch.full((rows, batch.k.shape[0]), SENTINEL, device=device)
    call = partial(fp8_mqa_logits, *batch.operands, clean_logits=clean, out=logits, variant=variant)
    with working(f"{variant}, clean_logits={clean}"):
        milliseconds = timer_of(device)(call).median

    inside = ~exact.isnan()
    difference = calc_diff(logits[inside], exact[inside])
    return Outcome(operation.name, variant, clean, milliseconds, difference, None, count_disturbed(logits, inside, clean))
