"""``capgate demo``: the indexer's logits of a serving-shaped batch, through every branch that runs here."""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from capgate import compat
from capgate.compat import targets, versions

# Which Gluon capability a reader looks for on each target of the table of stacks; the last one is a machine without a GPU.
TARGETS = {"hip:gfx942": "gluon_cdna4", "hip:gfx950": "gluon_cdna4", "cuda:90": "gluon_hopper", "cpu": "gluon"}

ON_GPU = (1024,) * 16  # 16384 tokens: what the seed's serving stack puts into one prefill batch at most
ON_CPU = (512, 256, 128, 128)
CHUNK_ROWS = 64  # of a call on the CPU, so that a progress bar can move


class Outcome(NamedTuple):
    """What one branch did with the batch: milliseconds, calc_diff to float64, and cells outside windows that changed."""

    variant: str
    clean: bool
    milliseconds: float
    difference: float
    disturbed: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``capgate demo``."""
    parser.add_argument(
        "--stack",
        action="append",
        default=[],
        metavar="FOLDER",
        help="a folder with another Triton (pip install --no-deps --target FOLDER triton==3.5.1) for the table of stacks",
    )
    parser.add_argument("--json", metavar="FILE", help="also write the outcomes and the table of stacks")


def run(arguments: argparse.Namespace) -> int:
    """Score the batch and print what happened; returns 1 when a branch disagrees with float64."""
    from rich.console import Console

    console = Console(highlight=False)
    import torch

    if not torch.cuda.is_available() and "triton" not in sys.modules:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it when imported: the classic branch runs on the CPU
    outcomes = _score(console)
    table = _stacks(arguments.stack)
    _show_stacks(console, table)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"outcomes": [outcome._asdict() for outcome in outcomes], "stacks": table}, file, indent=2)
    failed = [outcome.variant for outcome in outcomes if outcome.difference > 5e-6 or outcome.disturbed]
    if failed:
        print(f"capgate: disagreement in {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _score(console: Any) -> list[Outcome]:
    import torch
    from rich import box
    from rich.table import Table

    from .bench.timing import this_device
    from .bench.workloads import make, serving
    from .mqa_logits import reference
    from .mqa_logits.operation import example, operation

    device = this_device()
    lengths = ON_GPU if device.type == "cuda" else ON_CPU
    workload, problem = serving(lengths), example(device)
    batch = make(workload, device, getattr(torch, problem.dtype))
    console.print(
        f"[bold]{workload.words}[/] of {', '.join(map(str, dict.fromkeys(lengths)))} tokens, as DeepSeek-V4-Flash prefills:"
    )
    console.print(
        f"{workload.rows} query rows x {workload.keys} keys, {workload.heads} heads of {workload.dim}, {problem.dtype}"
    )
    where = (
        "the CPU" if device.type == "cpu" else f"{torch.cuda.get_device_name(device)} ({compat.capabilities(device).target})"
    )
    console.print(f"on {where} with Triton {versions.find('triton').found} and torch {torch.__version__}\n")

    q, k, k_scale, weights, starts, ends = batch
    exact = torch.full((workload.rows, workload.keys), float("nan"), device=device, dtype=torch.float64)
    operands = (q, k, k_scale, weights, starts, ends, exact)
    reference.launch(*operands, clean_logits=False, compressed=False, accumulate=torch.float64)

    outcomes, notes = [], []
    for name in operation.variants:
        trace = operation.explain(problem, name)
        if trace.variant != name:
            notes += [f"{step.variant} does not run here: {step.reason}" for step in trace.steps if step.variant == name]
            continue
        outcomes += [_run_branch(batch, exact, name, clean) for clean in (True, False)]

    chosen = operation.explain(problem).variant
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title="Branches on this machine", title_justify="left", title_style="bold"
    )
    for column in ("branch", "clean", "ms", "calc_diff to float64", "cells disturbed"):
        table.add_column(column, justify="left" if column == "branch" else "right")
    for outcome in outcomes:
        name = f"{outcome.variant} (default)" if outcome.variant == chosen else outcome.variant
        table.add_row(
            name,
            "yes" if outcome.clean else "no",
            f"{outcome.milliseconds:.4g}",
            f"{outcome.difference:.1e}",
            str(outcome.disturbed),
        )
    console.print(table)
    for note in notes:
        console.print(note)
    if device.type == "cpu":
        console.print("[dim]On the CPU the classic branch runs in Triton's interpreter: its time says nothing about a GPU.[/]")
    cells, inside = workload.rows * workload.keys, batch.cells
    console.print(
        f"clean_logits=False writes {_mebibytes(4 * inside)} of logits instead of {_mebibytes(4 * cells)}: "
        f"{100 * (1 - inside / cells):.0f} % of the memory traffic saved."
    )
    window = int((batch.ends - batch.starts).max())
    console.print(
        f"Compressed output (max_window={window}) needs a buffer of {_mebibytes(4 * workload.rows * window)} "
        f"instead of {_mebibytes(4 * cells)}.\n"
    )
    return outcomes


def _run_branch(batch: Any, exact: Any, variant: str, clean: bool) -> Outcome:
    """Time one branch on the batch, and compare it with float64 inside the windows (NaN outside), with a sentinel outside."""
    import torch
    from rich.progress import track

    from .bench.timing import Timer
    from .mqa_logits import fp8_mqa_logits

    sentinel, rows, device = -12345.0, batch.q.shape[0], batch.q.device
    logits = torch.full((rows, batch.k.shape[0]), sentinel, device=device)
    chunk = rows if device.type == "cuda" else CHUNK_ROWS
    timer = Timer(device, repeats=10, flush_bytes=10**9) if device.type == "cuda" else Timer(device, repeats=1, warmup=0)

    q, k, k_scale, weights, starts, ends = batch

    def score(block: slice) -> None:
        rows_of = (q[block], k, k_scale, weights[block], starts[block], ends[block])
        fp8_mqa_logits(*rows_of, clean_logits=clean, out=logits[block], variant=variant)

    blocks = [slice(first, first + chunk) for first in range(0, rows, chunk)]
    shown = track(blocks, f"{variant}, clean_logits={clean}", transient=True, disable=not sys.stdout.isatty())
    milliseconds = sum(timer(partial(score, block)).median for block in shown)

    inside = ~exact.isnan()
    disturbed = int((logits[~inside] != (float("-inf") if clean else sentinel)).sum())
    return Outcome(variant, clean, milliseconds, calc_diff(logits[inside], exact[inside]), disturbed)


def calc_diff(logits: Any, exact: Any) -> float:
    """DeepGEMM's measure, in float64: ``1 - 2 sum(x y) / sum(x x + y y)``; 0 where there is nothing to compare."""
    logits, exact = logits.double(), exact.double()
    denominator = float((logits * logits + exact * exact).sum())
    return 1 - 2 * float((logits * exact).sum()) / denominator if denominator else 0.0


def _stacks(folders: list[str]) -> list[dict[str, Any]]:
    """The reports of this Triton and of those in ``folders`` for each of TARGETS, by child processes."""
    asked = [(folder, target) for folder in [*folders, ""] for target in TARGETS]

    def report(question: tuple[str, str]) -> dict[str, Any]:
        folder, target = question
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        path = environment.get("PYTHONPATH", "")
        environment["PYTHONPATH"] = os.pathsep.join(part for part in (folder and os.path.abspath(folder), path) if part)
        command = [sys.executable, "-m", "capgate.compat", "--json", "--target", target]
        answer: dict[str, Any] = json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)
        return answer

    with ThreadPoolExecutor(max_workers=2) as pool:
        reports = pool.map(report, asked)
    rows = [
        {
            "triton": found["triton"],
            "target": found["target"],
            "operation": "fp8_mqa_logits",
            **found["operations"]["fp8_mqa_logits"],
            "gluon": {"capability": TARGETS[found["target"]], **found["capabilities"][TARGETS[found["target"]]]},
        }
        for found in reports
    ]
    return sorted(rows, key=lambda row: versions.parse_release(row["triton"] or ""))


def _show_stacks(console: Any, rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True, show_lines=False)
    table.title, table.title_justify, table.title_style = "Which branch would run, and could it be Gluon", "left", "bold"
    for column in ("Triton", "target", "branch"):
        table.add_column(column, no_wrap=True)
    table.add_column("why", ratio=1)
    for row in rows:
        gluon, target = row["gluon"], targets.parse(row["target"])
        taken = next((step["reason"] for step in row["trace"] if step["variant"] == row["variant"]), "nothing accepts it")
        passed_over = [f"not {step['variant']}: {step['reason']}" for step in row["trace"] if not step["accepted"]]
        used = any(step["variant"] == gluon["capability"] for step in row["trace"])
        can = "does not hold" if not gluon["available"] else "holds" if used else "holds, but no branch uses it yet"
        why = "\n".join([taken, *passed_over, f"{gluon['capability']} {can}: {gluon['reason']}"])
        table.add_row(row["triton"] or "none", target.label, row["variant"] or "none", why)
        table.add_section()
    console.print(table)


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.2f} MiB"
