"""The benchmark of the selection: what is timed of it, the figures, and where they are shown."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from capgate import compat
from capgate.kernels import cli
from capgate.kernels.fused_selection.calls import Counts
from capgate.kernels.key_selection.operators import problem_of
from capgate.kernels.tools.bench.ceilings import Ceilings
from capgate.kernels.tools.bench.measure import Plan, selection_rows
from capgate.kernels.tools.bench.timing import Timer, Timing
from capgate.kernels.tools.workloads import selection as workloads
from capgate.kernels.tools.workloads.catalogue import SMALL, WORKLOADS, select
from capgate.kernels.tools.workloads.decode import Decode, given
from capgate.kernels.tools.workloads.prefill import Prefill, causal, full
from capgate.kernels.tools.workloads.selection import Choice, DecodeSelection, Ordered, Selection, in_step
from support import fused_selection as fusing
from support import judge, paged

CPU, FN = torch.device("cpu"), torch.float8_e4m3fn
TINY = Selection(Prefill("tiny", "", 20, 40, 4, 32, causal(20, 40)), 8, budget=8 * 64 * 4)
TINY_DECODE = DecodeSelection(Decode("tiny-decode", "", 3, given([40, 70, 9]), 4, 2, 64, 32), 8)
VARIANTS = {"select_keys": ["reference"]}

pytestmark = pytest.mark.usefixtures("no_gpu")


@pytest.mark.parametrize("workload", [TINY, TINY_DECODE])
def test_what_is_timed_selects_the_same_keys(workload, variant):
    batch = replace(workload, fused=True).make(CPU, FN)
    before = batch.logits.clone()
    calls = batch.calls(variant)
    calls["logits"]()
    assert torch.equal(batch.logits, before), "cells outside the windows stay -inf, as torch.topk needs them"
    keys = calls["selection"]()
    assert torch.equal(calls["whole"](), keys)
    assert torch.equal(calls["fused"](), keys)
    enough = (keys >= 0).all(1)  # of other rows torch.topk returns keys that they do not see
    assert torch.equal(calls["topk"]().indices.sort(1).values.int()[enough], keys[enough])


def test_a_batch_reads_its_windows_once():
    assert TINY.make(CPU, FN).least_bytes == 4 * sum(range(21, 41))
    assert TINY_DECODE.make(CPU, FN).least_bytes == 4 * (40 + 39 + 70 + 69 + 9 + 8)


def test_logits_lie_in_the_order_that_a_workload_says():
    logits = {each.name: each.make(CPU, FN) for each in select(["orders"], SMALL)}
    rows = logits["top2048-64k-equal"].logits[:, :225]  # what every row sees
    assert (rows == rows[:, :1]).all()
    rows = logits["top2048-64k-ascending"].logits[:, :225]
    assert (rows.diff() > 0).all()
    quarters = logits["top2048-64k-in-step"].logits.view(-1, 4, 64)
    assert (quarters.transpose(1, 2).flatten(1).diff() > 0).all()
    rows = logits["top2048-64k-rising"].logits[:, :225]
    assert (rows[:, -50:].mean(1) > 1.5 * rows[:, :50].mean(1)).all()
    assert (rows.diff() < 0).any()


def test_keys_that_are_no_four_quarters_ascend_in_step():
    odd = Ordered(Prefill("odd", "", 4, 22, 4, 32, full(4, 22)), 8, arrange=in_step)
    scales = odd.make(CPU, FN).choice.inputs.k_scale
    assert scales.argsort().tolist() == [0, 6, 12, 18, 1, 7, 13, 19, 2, 8, 14, 20, 3, 9, 15, 21, 4, 10, 16, 5, 11, 17]


def test_counts_are_those_of_the_kernels(interpreter):
    """They are counted in a call of their own, which select_keys would do by itself where it is the fused one."""
    longer = Selection(Prefill("longer", "", 3, 300, 4, 32, causal(3, 300)), 8, budget=2**20)
    cached = DecodeSelection(Decode("cached", "", 1, given([300]), 4, 1, 64, 32), 8, budget=2**20)
    with fusing.tables(fusing.tuned(rows=8)):
        with compat.override(variant={"fp8_select_keys": "classic", "fp8_select_paged_keys": "classic"}):
            choices = [workload.make(CPU, FN).choice for workload in (longer, cached)]
            counts = [choice.counting() for choice in choices]
        dense, decode = (choice.inputs for choice in choices)
        *_, expected = fusing.run(judge.Call(*dense[:6]), 8)
        *_, expected_cached = fusing.run_paged(paged.PagedCall(*decode[:5]), 8, max_context_len=300)
    assert list(counts[0]) == [*expected, 0]
    assert list(counts[1]) == [*expected_cached, 0], "classic has no registers for lists"
    assert min(expected[0], expected_cached[0]) > 0, "lists of 64 entries had to make room"


def test_nothing_is_counted_where_there_are_no_lists():
    assert TINY.make(CPU, FN).choice.counting() is None, "two steps"
    assert replace(TINY_DECODE, fused=True).make(CPU, FN).choice.counting() is None, "the reference"


class FixedTimes:
    """Stands for a Timer: logits take 4 ms, the selection 1, torch.topk 8, all of it 5, fused 2; each round adds one."""

    device = CPU

    def __init__(self) -> None:
        self.rounds: dict[str, int] = {}

    def __call__(self, function) -> Timing:
        name = "fused" if function.keywords.get("fused") else function.func.__name__
        self.rounds[name] = number = self.rounds.get(name, -1) + 1
        base = {"fp8_mqa_logits": 4.0, "select_from_logits": 1.0, "topk": 8.0, "select_keys": 5.0, "fused": 2.0}[name]
        return Timing(base + number, 0.0, 99.0)


def test_a_row_has_the_medians_of_every_round():
    tiny = replace(TINY, fused=True)
    (row,) = selection_rows(Plan(FixedTimes(), FN, VARIANTS, (False, True), 2), Ceilings(1.0, 1.0, 1e6), [tiny])
    timed = {name: row[f"{name}_ms"] for name in ("logits", "selection", "topk", "whole", "fused")}
    assert timed == {"logits": [4, 5], "selection": [1, 2], "topk": [8, 9], "whole": [5, 6], "fused": [2, 3]}
    assert row["read_ms"] == pytest.approx(1e3 * 4 * sum(range(21, 41)) / 1e6)
    assert row["metrics"] == {
        "select_keys, rows/s": [20 / 5e-3, pytest.approx(20 / 6e-3)],
        "select_keys fused, rows/s": [20 / 2e-3, pytest.approx(20 / 3e-3)],
    }
    assert (row["fused"], row["why_two_steps"]) == ("reference", None)
    assert (row["workload"], row["variant"], row["top_k"], row["budget"]) == ("tiny", "reference", 8, 2048)
    assert row["peak_bytes"] is None, "torch counts no memory on the CPU"
    assert (row["counts"], row["peers_ms"]) == (None, {})


def test_a_variant_for_few_long_rows_is_timed_for_those_alone(monkeypatch):
    """Where no other is asked for, that it is not for such rows is said."""
    monkeypatch.setattr(workloads, "problem_of", partial(problem_of, device="cuda:sm90"))
    short, window = TINY.make(CPU, FN), torch.zeros(1, dtype=torch.int32, device="meta")
    long = short._replace(logits=torch.empty(1, 65536, device="meta"), starts=window, ends=window)
    hopper = compat.capabilities("cuda:sm90").gluon_hopper
    names = "gluon_hopper", "classic"
    assert [[batch.takes(name) for name in names] for batch in (short, long)] == [[False, True], [hopper, True]]
    both = Plan(FixedTimes(), FN, {"select_keys": ["gluon_hopper", "reference"]}, (False,), 1)
    assert [row["variant"] for row in selection_rows(both, None, [TINY])] == ["reference"]
    assert both.remarks == []
    alone = Plan(Timer(CPU, repeats=1), FN, {"select_keys": ["gluon_hopper"]}, (False,), 1)
    assert selection_rows(alone, None, [TINY]) == []
    (remark,) = alone.remarks
    assert "select_keys cannot run variant 'gluon_hopper'" in remark.words


def test_counts_stand_beside_the_fused_time(monkeypatch, capsys):
    monkeypatch.setattr(Choice, "counting", lambda self: Counts(12, 3, 45, 6))
    monkeypatch.setitem(SMALL, "top2048", TINY)
    arguments = ["bench", "--workload", "top2048", "--variants", "reference", "--repeats", "1", "--rounds", "1", "--fused"]
    assert cli.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "12 / 3 / 45 / 6" in line] == [line for line in lines if " fused  " in line]


def test_a_count_that_fails_leaves_the_times(monkeypatch):
    monkeypatch.setattr(Choice, "counting", lambda self: 1 / 0)
    plan = Plan(FixedTimes(), FN, VARIANTS, (False,), 1)
    (row,) = selection_rows(plan, None, [replace(TINY, fused=True)])
    assert (row["fused_ms"], row["counts"]) == ([2], None)
    (remark,) = plan.remarks
    assert (remark.measured, remark.words) == (True, "not counted: ZeroDivisionError: division by zero")


def test_the_workloads_are_those_of_the_models():
    shapes = {name: (w.prefill.rows, w.prefill.keys, w.top_k) for name, w in WORKLOADS.items() if type(w) is Selection}
    assert shapes == {
        "top2048": (8192, 8192, 2048),
        "top512": (8192, 8192, 512),
        "top2048-full": (8192, 8192, 2048),
        "top2048-64k": (4096, 65536, 2048),
        "top2048-256k": (2048, 262144, 2048),
        "top2048-128k": (8192, 131072, 2048),
        "top512-128k": (8192, 131072, 512),
        "top512-32k": (8192, 32768, 512),
    }
    decoded = {name: (w.size, w.top_k) for name, w in WORKLOADS.items() if isinstance(w, DecodeSelection)}
    assert decoded == {
        "decode-top2048-128k": ("64x1x131072", 2048),
        "decode-top512-32k": ("64x1x32768", 512),
        "decode-top2048-1m": ("1x1x1048576", 2048),
    }
    starts, ends = full(3, 5)()
    assert (starts.tolist(), ends.tolist()) == ([0, 0, 0], [5, 5, 5])


def test_the_command_shows_and_compares_selections(monkeypatch, tmp_path, capsys):
    file = str(tmp_path / "s.json")
    monkeypatch.setitem(SMALL, "top2048", TINY)
    arguments = ["bench", "--workload", "top2048", "--variants", "reference", "--repeats", "1", "--rounds", "2", "--json", file]
    assert cli.main(arguments) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "tiny logits" in shown
    assert "20x40 reference selection" in shown
    assert "top 8" in shown
    assert "both steps within the budget" in shown
    assert "found a budget of 2048 (tiny)" in shown, "why it is not fused"
    with open(file) as results:
        (row,) = json.load(results)["selection"]
    assert all(len(row[f"{name}_ms"]) == 2 and min(row[f"{name}_ms"]) > 0 for name in ("logits", "selection", "topk", "whole"))
    assert cli.main(["compare", file]) == 0
    assert "tiny, select_keys, rows/s" in capsys.readouterr().out


def test_fused_is_timed_where_it_is_asked_for(monkeypatch, capsys):
    monkeypatch.setitem(SMALL, "decode-top2048-128k", TINY_DECODE)
    arguments = ["bench", "--workload", "decode-selection", "--variants", "reference", "--repeats", "1", "--rounds", "1"]
    assert cli.main([*arguments, "--fused"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "tiny-decode logits" in shown
    assert "reference fused" in shown
    assert "not fused" not in shown


def test_selections_are_a_group(monkeypatch, capsys):
    for name in ("top2048", "top2048-full"):
        monkeypatch.setitem(SMALL, name, TINY)
    assert cli.main(["bench", "--workload", "selection", "--variants", "reference", "--repeats", "1", "--json", "-"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert ([row["workload"] for row in results["selection"]], results["rows"]) == (["tiny", "tiny"], [])
