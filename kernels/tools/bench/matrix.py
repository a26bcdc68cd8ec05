"""The matrix of history lengths: what select_keys does by itself held against two steps, ours and peers', cell by cell."""

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from capgate.compat.terminal import console as plain_console
from capgate.compat.terminal import print_whole
from capgate.compat.thirdparty import Raised, ask

from ..workloads.batch import Call
from ..workloads.matrix import Cell, Matrix
from .measure import Plan, Row, in_turns, key_peers, tracked
from .tables import empty, note, range_of

TWO, FUSED = "two_steps", "fused"
WORDS = (
    "Rows of queries behind a history of keys. fused: both in one kernel, where that is taken; x two steps, x a peer: how many "
    "times as long as ours those take, ours being the fused call where it is taken and two steps otherwise; a peer's are two "
    "steps with its logits and our selection."
)


def matrix_rows(plan: Plan, matrices: Sequence[Matrix]) -> list[Row]:
    """A row for each cell: ``ms`` are the medians of ``two_steps``, of ``fused`` where that is taken and of peers by name, one
    for each round; ``fused`` is its variant, or None, and ``why_two_steps`` then says why there is none. A cell for which there
    is no memory has ``skipped``, which says so, and no times; otherwise that is None."""
    rows = []
    for cell in tracked([cell for matrix in matrices for cell in matrix.cells()], "timing the matrix"):
        row = ask(partial(_row_of, plan, cell))
        if isinstance(row, Raised):
            plan.remark(cell, (False, TWO), row.words)
        else:
            rows.append(row)
    return rows


def _row_of(plan: Plan, cell: Cell) -> Row:
    row: Row = {"workload": cell.matrix.name, "cell": cell.name, **cell.facts(), "skipped": None}
    try:
        return row | _times_of(plan, cell)
    except torch.OutOfMemoryError as error:
        words = str(error).splitlines()[0]
    if plan.timer.device.type == "cuda":
        torch.cuda.empty_cache()  # for the cells that follow
    return row | {"ms": {}, "fused": None, "why_two_steps": None, "skipped": words}


def _times_of(plan: Plan, cell: Cell) -> Row:
    choice = cell.make(plan.timer.device, plan.dtype)
    calls: dict[str, Call] = {TWO: partial(choice.select, fused=False)}
    keys = choice.select(fused=False)  # outside of ask, so that no memory is no other failure
    if choice.fused_variant:
        calls[FUSED] = partial(choice.select, fused=choice.fused)
        if not torch.equal(choice.select(fused=choice.fused), keys):
            plan.remark(cell, (False, choice.fused_variant), "its keys are not those of two steps", measured=True)
    del keys
    timings, raised = in_turns(plan, {**calls, **key_peers(plan, cell, choice)})
    for name, words in raised.items():
        plan.remark(cell, (False, (choice.fused_variant or FUSED) if name == FUSED else name), words)
    medians = {name: [timing.median for timing in rounds] for name, rounds in timings.items()}
    return {"ms": medians, "fused": choice.fused_variant, "why_two_steps": choice.why_two_steps}


def gains(row: Row) -> dict[str, float]:
    """How many times as long as ours ``two_steps`` and each peer take, by the medians of the rounds; nothing of a cell without
    our time."""
    taken = {name: statistics.median(rounds) for name, rounds in row["ms"].items()}
    ours = taken.pop(FUSED, None) if row["fused"] else taken.get(TWO)
    return {} if ours is None else {name: took / ours for name, took in taken.items()}


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """What the cells come to.

    ``cells``, and of them ``in_two_steps`` and ``skipped``; ``gains`` has, for two steps and for each peer, the geometric mean
    over the cells that have both times, how many those are, and the ``worst`` with its cell.
    """
    found: dict[str, Any] = {}
    by_cell = {row["cell"]: gains(row) for row in rows}
    for name in dict.fromkeys(name for each in by_cell.values() for name in each):
        of_cells = {cell: each[name] for cell, each in by_cell.items() if name in each}
        worst = min(of_cells, key=lambda cell: of_cells[cell])
        mean = statistics.geometric_mean(of_cells.values())
        found[name] = {"geometric_mean": mean, "cells": len(of_cells), "worst": of_cells[worst], "worst_cell": worst}
    skipped = sum(row["skipped"] is not None for row in rows)
    two = sum(row["skipped"] is None and row["fused"] is None for row in rows)
    return {"cells": len(rows), "in_two_steps": two, "skipped": skipped, "gains": found}


def show(results: dict[str, Any]) -> None:
    """Print a table of the cells, what they come to, and why cells take two steps or were skipped."""
    console = plain_console()
    rows, total = results["matrix"]["rows"], results["matrix"]["summary"]
    against = list(total["gains"])
    peers = [name for name in against if name != TWO]
    columns = ("queries", "history", "two steps", "fused", *peers, *(f"x {_words(name)}" for name in against), "noise")
    table = empty("The matrix of history lengths (ms)", columns)
    for row in rows:
        if row["skipped"] is not None:
            table.add_row(str(row["queries"]), str(row["history"]), "skipped")
            continue
        if not row["ms"]:
            continue  # a remark says why
        times = {name: statistics.median(rounds) for name, rounds in row["ms"].items()}
        gained = gains(row)
        table.add_row(
            str(row["queries"]),
            str(row["history"]),
            *(f"{times[name]:.4g}" if name in times else "" for name in (TWO, FUSED, *peers)),
            *(f"{gained[name]:.3f}" if name in gained else "" for name in against),
            range_of(row["ms"].get(FUSED) or next(iter(row["ms"].values()))),
        )
    print_whole(console, table)
    for name, gain in total["gains"].items():
        console.print(
            f"{_words(name)} / ours: geometric mean {gain['geometric_mean']:.3f} of {gain['cells']} cells, worst "
            f"{gain['worst']:.3f} ({gain['worst_cell']})",
            soft_wrap=True,
            highlight=False,
        )
    skipped = f", {total['skipped']} skipped" if total["skipped"] else ""
    console.print(f"{total['in_two_steps']} of {total['cells']} cells take two steps{skipped}", soft_wrap=True, highlight=False)
    note(console, f"{WORDS} Medians of {results['repeats']} calls and {results['rounds']} rounds.")
    for key, words in (("why_two_steps", "not fused"), ("skipped", "skipped")):
        places: dict[str, list[str]] = {}
        for row in rows:
            if row[key]:
                places.setdefault(row[key], []).append(f"{row['queries']}x{row['history']}")
        for reason, cells in places.items():
            note(console, f"{words}: {reason} ({', '.join(cells)})")


def _words(name: str) -> str:
    return "two steps" if name == TWO else name
