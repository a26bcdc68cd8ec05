"""The benchmark of the selection: what is timed of it, the figures, and where they are shown."""

import json

import pytest
import torch

from capgate.kernels import cli
from capgate.kernels.tools.bench.ceilings import Ceilings
from capgate.kernels.tools.bench.measure import Plan, selection_rows
from capgate.kernels.tools.bench.timing import Timing
from capgate.kernels.tools.workloads.catalogue import SMALL, WORKLOADS
from capgate.kernels.tools.workloads.prefill import Prefill, causal, full
from capgate.kernels.tools.workloads.selection import Selection

CPU, FN = torch.device("cpu"), torch.float8_e4m3fn
TINY = Selection(Prefill("tiny", "", 20, 40, 4, 32, causal(20, 40)), 8, budget=8 * 64 * 4)
VARIANTS = {"select_keys": ["reference"]}


pytestmark = pytest.mark.usefixtures("no_gpu")


def test_what_is_timed_selects_the_same_keys(variant):
    batch = TINY.make(CPU, FN)
    before = batch.logits.clone()
    calls = batch.calls(variant)
    calls["logits"]()
    assert torch.equal(batch.logits, before), "cells outside the windows stay -inf, as torch.topk needs them"
    keys = calls["selection"]()
    assert torch.equal(calls["whole"](), keys)
    assert torch.equal(calls["topk"]().indices.sort(1).values.int(), keys)


def test_a_batch_reads_its_windows_once():
    assert TINY.make(CPU, FN).least_bytes == 4 * sum(range(21, 41))


class FixedTimes:
    """Stands for a Timer: logits take 4 ms, the selection 1, torch.topk 8 and all of it 5; each round adds one."""

    device = CPU

    def __init__(self) -> None:
        self.rounds: dict[str, int] = {}

    def __call__(self, function) -> Timing:
        name = function.func.__name__
        self.rounds[name] = number = self.rounds.get(name, -1) + 1
        base = {"fp8_mqa_logits": 4.0, "select_from_logits": 1.0, "topk": 8.0, "select_keys": 5.0}[name]
        return Timing(base + number, 0.0, 99.0)


def test_a_row_has_the_medians_of_every_round():
    (row,) = selection_rows(Plan(FixedTimes(), FN, VARIANTS, (False, True), 2), Ceilings(1.0, 1.0, 1e6), [TINY])
    timed = {name: row[f"{name}_ms"] for name in ("logits", "selection", "topk", "whole")}
    assert timed == {"logits": [4, 5], "selection": [1, 2], "topk": [8, 9], "whole": [5, 6]}
    assert row["read_ms"] == pytest.approx(1e3 * 4 * sum(range(21, 41)) / 1e6)
    assert row["metrics"] == {"select_keys, rows/s": [20 / 5e-3, pytest.approx(20 / 6e-3)]}
    assert (row["workload"], row["variant"], row["top_k"], row["budget"]) == ("tiny", "reference", 8, 2048)
    assert row["peak_bytes"] is None, "torch counts no memory on the CPU"


def test_the_workloads_are_those_of_the_models():
    shapes = {name: (w.prefill.rows, w.prefill.keys, w.top_k) for name, w in WORKLOADS.items() if isinstance(w, Selection)}
    assert shapes == {
        "top2048": (8192, 8192, 2048),
        "top512": (8192, 8192, 512),
        "top2048-full": (8192, 8192, 2048),
        "top2048-64k": (4096, 65536, 2048),
    }
    starts, ends = full(3, 5)()
    assert (starts.tolist(), ends.tolist()) == ([0, 0, 0], [5, 5, 5])


def test_the_command_shows_and_compares_selections(monkeypatch, tmp_path, capsys):
    file = str(tmp_path / "s.json")
    monkeypatch.setitem(SMALL, "top2048", TINY)
    arguments = ["bench", "--workload", "top2048", "--variants", "reference", "--repeats", "1", "--rounds", "2", "--json", file]
    assert cli.main(arguments) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "tiny reference" in shown
    assert "20x40 top 8" in shown
    assert "select_keys within the budget" in shown
    with open(file) as results:
        (row,) = json.load(results)["selection"]
    assert all(len(row[f"{name}_ms"]) == 2 and min(row[f"{name}_ms"]) > 0 for name in ("logits", "selection", "topk", "whole"))
    assert cli.main(["compare", file]) == 0
    assert "tiny, select_keys, rows/s" in capsys.readouterr().out


def test_selections_are_a_group(monkeypatch, capsys):
    for name in ("top2048", "top2048-full"):
        monkeypatch.setitem(SMALL, name, TINY)
    assert cli.main(["bench", "--workload", "selection", "--variants", "reference", "--repeats", "1", "--json", "-"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert ([row["workload"] for row in results["selection"]], results["rows"]) == (["tiny", "tiny"], [])
