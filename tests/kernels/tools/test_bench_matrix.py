"""The benchmark's matrix of history lengths: what each cell times, and what the cells come to."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from capgate.kernels import cli, select_keys
from capgate.kernels.tools.bench import matrix as bench
from capgate.kernels.tools.bench.measure import Plan
from capgate.kernels.tools.bench.timing import Timer, Timing
from capgate.kernels.tools.workloads.catalogue import GROUPS, SMALL, WORKLOADS, select
from capgate.kernels.tools.workloads.matrix import Cell, Matrix
from capgate.kernels.tools.workloads.selection import Ordered

CPU, FN = torch.device("cpu"), torch.float8_e4m3fn
TINY = Matrix("tiny", "", 3, (5, 20), 4, heads=2, dim=32, budget=2**16)
VARIANTS = {"select_keys": ["reference"]}

pytestmark = pytest.mark.usefixtures("no_gpu")


def plan(timer=None, variants=VARIANTS, rounds=2) -> Plan:
    return Plan(timer or Timer(CPU, repeats=1, warmup=0), FN, variants, (False, True), rounds)


def row(cell: str, ms: dict[str, list[float]], variant: str | None = None, skipped: str | None = None) -> dict[str, object]:
    queries, history = cell.split("x")
    sizes = {"queries": int(queries), "history": int(history)}
    return {"cell": cell, **sizes, "ms": ms, "fused": variant, "why_two_steps": None, "skipped": skipped}


def test_the_matrix_has_19_lengths_for_each_of_four_query_counts():
    cells = [cell for each in select(["matrix"], WORKLOADS) for cell in each.cells()]
    histories = [cell.history for cell in cells if cell.matrix.queries == 8]
    assert (histories[0], histories[-1], len(set(histories))) == (4096, 2**20, 19)
    assert {(cell.matrix.queries, cell.history) for cell in cells} == {(q, h) for q in (8, 512, 2048, 8192) for h in histories}
    assert len(cells) == 76
    assert {cell.matrix.top_k for cell in cells} == {2048}


def test_who_asks_for_all_gets_no_matrix_and_no_orders():
    for known in (WORKLOADS, SMALL):
        left = set(known.values()) - set(select(["all"], known))
        assert left == {each for each in known.values() if type(each) in (Matrix, Ordered)}
        assert left == set(select(["matrix", "orders"], known))
    assert GROUPS["matrix"] == (Matrix,)


def test_queries_see_their_history_and_each_other_up_to_themselves():
    choice = Cell(TINY, 20).make(CPU, FN)
    assert (choice.inputs.starts.tolist(), choice.inputs.ends.tolist()) == ([0, 0, 0], [21, 22, 23])
    assert choice.inputs.k.shape == (23, 32)
    assert torch.equal(choice.select(), select_keys(*choice.inputs[:6], top_k=4))


class FixedTimes:
    """Stands for a Timer: two steps take 6 ms and the fused call 2; each round adds one."""

    device = CPU

    def __init__(self) -> None:
        self.calls: list[bool] = []

    def __call__(self, function: partial) -> Timing:
        fused = bool(function.keywords["fused"])
        self.calls.append(fused)
        return Timing((2.0 if fused else 6.0) + self.calls.count(fused) - 1, 0.0, 99.0)


def test_a_row_has_the_medians_of_every_round():
    timer = FixedTimes()
    (found,) = bench.matrix_rows(plan(timer), [replace(TINY, histories=(20,), fused=True)])
    assert timer.calls == [False, True, False, True], "calls take turns"
    assert found["ms"] == {"two_steps": [6, 7], "fused": [2, 3]}
    assert (found["workload"], found["cell"], found["fused"], found["why_two_steps"]) == ("tiny", "3x20", "reference", None)
    assert (found["queries"], found["history"], found["top_k"], found["skipped"]) == (3, 20, 4, None)
    assert bench.gains(found) == {"two_steps": pytest.approx(6.5 / 2.5)}


def test_a_cell_in_two_steps_says_why_and_is_timed_once():
    timer = FixedTimes()
    (found,) = bench.matrix_rows(plan(timer), [replace(TINY, histories=(20,))])
    assert timer.calls == [False, False]
    assert (found["fused"], bench.gains(found)) == (None, {"two_steps": 1.0})
    assert found["why_two_steps"]


def test_keys_that_are_not_those_of_two_steps_are_said(monkeypatch):
    wrong = lambda *operands, fused, **options: select_keys(*operands, fused=False, **options) - int(bool(fused))  # noqa: E731
    monkeypatch.setattr("capgate.kernels.tools.workloads.selection.select_keys", wrong)
    asked = plan()
    (found,) = bench.matrix_rows(asked, [replace(TINY, histories=(20,), fused=True)])
    assert set(found["ms"]) == {"two_steps", "fused"}
    (remark,) = asked.remarks
    assert (remark.workload, remark.variant, remark.measured) == ("3x20", "reference", True)
    assert remark.words == "its keys are not those of two steps"


def test_a_cell_without_memory_is_skipped_and_another_failure_is_a_remark(monkeypatch):
    made = Cell.make

    def make(self: Cell, *arguments):
        if self.history == 7:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 34 GiB.\nSee the docs")
        if self.history == 8:
            raise RuntimeError("no kernel")
        return made(self, *arguments)

    monkeypatch.setattr(Cell, "make", make)
    asked = plan()
    rows = bench.matrix_rows(asked, [replace(TINY, histories=(5, 7, 8, 20))])
    assert [(each["history"], each["skipped"]) for each in rows] == [
        (5, None),
        (7, "CUDA out of memory. Tried to allocate 34 GiB."),
        (20, None),
    ]
    assert [(remark.workload, remark.words) for remark in asked.remarks] == [("3x8", "RuntimeError: no kernel")]
    total = bench.summary(rows)
    assert (total["cells"], total["skipped"], total["in_two_steps"]) == (3, 1, 2)


def test_what_the_cells_come_to():
    rows = [
        row("8x16", {"two_steps": [4, 4, 8], "fused": [2, 2, 2], "peer": [16, 16, 16]}, "gluon"),  # 2 and 8
        row("8x32", {"two_steps": [1, 1, 1], "fused": [2, 2, 2], "peer": [4, 4, 4]}, "gluon"),  # 0.5 and 2
        row("8x64", {"two_steps": [3, 3, 3]}),  # 1, and no time of the peer
        row("8x128", {}, skipped="no memory"),
        row("8x256", {"two_steps": [9, 9, 9]}, "gluon"),  # whose fused call failed: no time of ours
    ]
    total = bench.summary(rows)
    assert (total["cells"], total["in_two_steps"], total["skipped"]) == (5, 1, 1)
    two, peer = total["gains"]["two_steps"], total["gains"]["peer"]
    assert two == {"geometric_mean": pytest.approx(1.0), "cells": 3, "worst": 0.5, "worst_cell": "8x32"}
    assert peer == {"geometric_mean": pytest.approx(4.0), "cells": 2, "worst": 2.0, "worst_cell": "8x32"}
    assert bench.summary([]) == {"cells": 0, "in_two_steps": 0, "skipped": 0, "gains": {}}


def test_the_table_shows_every_cell(capsys):
    rows = [
        row("8x16", {"two_steps": [4], "fused": [2], "deep_gemm": [16]}, "gluon"),
        row("8x64", {"two_steps": [3]}) | {"why_two_steps": "few keys"},
        row("8x128", {}, skipped="no memory"),
    ]
    bench.show({"matrix": {"rows": rows, "summary": bench.summary(rows)}, "repeats": 5, "rounds": 1})
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "queries history two steps fused deep_gemm x two steps x deep_gemm noise" in lines
    assert "8 16 4 2 16 2.000 8.000 0.0%" in lines
    assert "8 64 3 1.000 0.0%" in lines
    assert "8 128 skipped" in lines
    assert "two steps / ours: geometric mean 1.414 of 2 cells, worst 1.000 (8x64)" in lines
    assert "deep_gemm / ours: geometric mean 8.000 of 1 cells, worst 8.000 (8x16)" in lines
    assert "1 of 3 cells take two steps, 1 skipped" in lines
    assert "not fused: few keys (8x64)" in lines
    assert "skipped: no memory (8x128)" in lines


def test_the_command_writes_and_shows_a_matrix(monkeypatch, tmp_path, capsys):
    for name in ("matrix-2", "matrix-16"):
        monkeypatch.setitem(SMALL, name, replace(TINY, name=name, queries=int(name[7:])))
    file = tmp_path / "m.json"
    arguments = ["bench", "--workload", "matrix", "--variants", "reference", "--repeats", "1", "--rounds", "1", "--fused"]
    assert cli.main([*arguments, "--json", str(file)]) == 0
    assert "0 of 4 cells take two steps" in capsys.readouterr().out
    results = json.loads(file.read_text())
    assert [found["cell"] for found in results["matrix"]["rows"]] == ["2x5", "2x20", "16x5", "16x20"]
    assert results["matrix"]["summary"]["gains"]["two_steps"]["cells"] == 4
    assert results["selection"] == []
    assert cli.main(["bench", "--workload", "f", "--variants", "reference", "--repeats", "1", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["matrix"] is None
