"""The indexer's share of a serving run: its schedule, what is timed of it, the arithmetic, and the accuracy beside it."""

import json
from dataclasses import replace

import pytest
import torch

from capgate.kernels import cli
from capgate.kernels.mqa_logits.operation import operation as dense
from capgate.kernels.tools.bench.measure import Plan, accuracy_rows, serving_rows
from capgate.kernels.tools.bench.timing import Timing
from capgate.kernels.tools.workloads.accuracy import Accuracy
from capgate.kernels.tools.workloads.catalogue import SMALL, WORKLOADS
from capgate.kernels.tools.workloads.serving import Serving, Share
from support import judge

CPU, FN = torch.device("cpu"), torch.float8_e4m3fn
TINY = Serving("tiny", "", 8, 5, requests=3, batch_tokens=20, layers=2, heads=4, dim=32, bucket=1)
TINY_RECALL = Accuracy("recall", "", 64, 2, rows=3, requests=2, context_tokens=48, top_k=4, heads=8, dim=32)


pytestmark = pytest.mark.usefixtures("no_gpu")


def test_prompts_come_first_packed_whole_and_then_all_requests_decode_in_step():
    steps = [(step.prompts, step.contexts) for step in TINY.schedule()]
    assert steps == [((8, 8), ()), ((8,), ()), *(((), (context,) * 3) for context in (9, 10, 11, 12))]


def test_the_runs_of_published_comparisons():
    in_out, prompts_only = list(WORKLOADS["1k1k"].schedule()), list(WORKLOADS["8k1"].schedule())
    assert [step.prompts for step in prompts_only] == [(8192, 8192)] * 32
    assert [step.prompts for step in in_out[:5]] == [(1024,) * 16] * 4 + [()]
    assert [step.contexts[0] for step in in_out[4:]] == list(range(1025, 2048))
    assert all(step.contexts == (step.contexts[0],) * 64 for step in in_out[4:])


@pytest.mark.parametrize("name", ["1k1k", "8k1"])
def test_what_is_timed_stands_for_every_step(name):
    run = WORKLOADS[name]
    samples = run.samples()
    steps = list(run.schedule())
    assert sum(sample.steps for sample in samples) == len(steps)
    assert len(samples) <= 10, "so that a run takes seconds"
    decode = [sample for sample in samples if sample.workload.name == "decode"]
    keys = sum(sample.steps * int(sample.workload.lens().sum()) for sample in decode)
    exact = sum(context // 4 for step in steps for context in step.contexts)
    assert keys == pytest.approx(exact, rel=2e-3), "the sampled contexts have the keys of all of them"
    prefill = [sample for sample in samples if sample.workload.name == "prefill"]
    assert sum(sample.steps * sample.workload.rows for sample in prefill) == 64 * run.input_tokens


def test_samples_are_the_same_in_every_run():
    described = [[(s.workload.name, s.workload.facts(), s.steps) for s in WORKLOADS["1k1k"].samples()] for _ in range(2)]
    assert described[0] == described[1]


def test_decode_has_one_key_for_four_tokens_and_the_columns_of_the_longest_context():
    decode = [sample for sample in TINY.samples() if sample.workload.name == "decode"]
    assert [(sample.workload.lens().tolist(), sample.steps) for sample in decode] == [([2] * 3, 3), ([3] * 3, 1)]
    batch = decode[0].workload.make(CPU, FN)
    assert (batch.max_context_len, tuple(batch.q.shape)) == (13 // 4, (3, 1, 4, 32))


def test_tokens_per_second_count_every_token_of_the_run():
    assert Share(prefill=1.0, decode=0.5).tokens_per_second(TINY) == {
        "output tok/s": 3 * 5 / 1.5,
        "total tok/s": 3 * (5 + 8) / 1.5,
    }


class FixedTimes:
    """Stands for a Timer: a schedule takes 1 ms, a prefill of one prompt 10 ms, all else 100 ms; the second round doubles."""

    device = CPU

    def __init__(self) -> None:
        self.calls: dict[object, int] = {}

    def __call__(self, function) -> Timing:
        self.calls[function] = round_ = self.calls.get(function, 0) + 1
        operands = function.args
        milliseconds = 100.0 if len(function.keywords) else 1.0
        if len(operands) == 6 and len(operands[0]) == 8:
            milliseconds = 10.0
        return Timing(milliseconds * round_, 0.0, 0.0)


def test_a_share_is_every_steps_layers_and_its_schedule_once():
    plan = Plan(FixedTimes(), FN, {"fp8_mqa_logits": ["reference"], "fp8_paged_mqa_logits": ["reference"]}, (False,), 2)
    (row,) = serving_rows(plan, [TINY])
    assert (row["workload"], row["variant"], row["clean_logits"]) == ("tiny", "reference", False)
    prefill, decode = 2 * (0.1 + 0.01), 4 * (2 * 0.1 + 0.001)
    assert row["prefill_s"] == pytest.approx([prefill, 2 * prefill])
    assert row["decode_s"] == pytest.approx([decode, 2 * decode])
    assert row["metrics"]["total tok/s"] == pytest.approx([39 / (prefill + decode), 39 / (prefill + decode) / 2])
    assert [(step["kind"], step["steps"]) for step in row["steps"]] == [
        ("prefill", 1),
        ("prefill", 1),
        ("decode", 3),
        ("decode", 1),
    ]


def test_a_run_needs_its_variant_in_every_operation():
    plan = Plan(None, FN, {"fp8_mqa_logits": ["gluon", "classic"], "fp8_paged_mqa_logits": ["classic"]}, (False,), 1)
    assert plan.variants_of(WORKLOADS["1k1k"].operations) == ["classic"]
    assert plan.variants_of(WORKLOADS["8k1"].operations) == ["gluon", "classic"]


def test_a_variant_that_a_run_leaves_out_is_named(monkeypatch, capsys):
    monkeypatch.setitem(dense.variants, "hasty", dense.variants["reference"])
    monkeypatch.setitem(SMALL, "1k1k", replace(TINY, name="1k1k"))
    arguments = ["bench", "--workload", "1k1k", "--variants", "hasty,reference", "--repeats", "1", "--rounds", "1"]
    monkeypatch.setattr("capgate.kernels.tools.bench.command._why_not", lambda *asked: None)
    assert cli.main([*arguments, "--json", "-"]) == 0
    said = capsys.readouterr()
    assert "capgate: 1k1k leaves out hasty: only fp8_mqa_logits has it here" in said.err
    assert {row["variant"] for row in json.loads(said.out)["serving"]} == {"reference"}


def test_the_command_says_that_it_is_no_serving_engine(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(SMALL, "1k1k", replace(TINY, name="1k1k"))
    monkeypatch.setitem(SMALL, "recall", TINY_RECALL)
    arguments = ["bench", "--workload", "1k1k,recall", "--variants", "reference", "--repeats", "1", "--rounds", "2"]
    assert cli.main([*arguments, "--json", str(tmp_path / "s.json")]) == 0
    said = json.loads((tmp_path / "s.json").read_text())
    assert (said["rows"], said["ceilings"]) == ([], None)
    assert [len(row["metrics"]["output tok/s"]) for row in said["serving"]] == [2, 2]
    assert said["workloads"]["1k1k"]["share"] == "logits"
    shown = " ".join(capsys.readouterr().out.split())
    assert "Not a serving engine" in shown
    assert "3 requests in flight, 8 tokens in and 5 out, 2 indexer layers" in shown


# Accuracy


@pytest.mark.parametrize("kind", ["prefill", "decode"])
@pytest.mark.parametrize("clean_logits", [False, True])
def test_a_variant_finds_most_of_the_top_keys(variant, kind, clean_logits):
    recall = TINY_RECALL.cases(CPU, FN)[kind].recall(variant, clean_logits, TINY_RECALL.top_k)
    assert 0.75 < recall.keys <= 1
    assert 0.97 < recall.mass <= 1.001


def test_every_variant_finds_the_same_keys(interpreter):
    plan = Plan(
        FixedTimes(),
        FN,
        {name: ["classic", "reference"] for name in ("fp8_mqa_logits", "fp8_paged_mqa_logits")},
        (False, True),
        1,
    )
    rows = accuracy_rows(plan, [TINY_RECALL])
    assert len(rows) == 4
    for row in rows:
        for name, values in row["metrics"].items():
            assert values == pytest.approx(rows[0]["metrics"][name], abs=1e-6)


@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_the_float32_logits_are_those_of_the_same_activations(kind):
    """Within what quantising costs: upstream's limit for unquantised inputs."""
    case = TINY_RECALL.cases(CPU, FN)[kind]
    logits = torch.full_like(case.exact, float("nan"))
    case.call("reference", False, logits)
    inside = ~case.exact.isneginf()
    assert torch.equal(inside, ~logits.isnan())
    assert judge.calc_diff(logits[inside], case.exact[inside]) < 1e-3


@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_recall_tells_wrong_logits_from_right_ones(kind):
    case = TINY_RECALL.cases(CPU, FN)[kind]
    perfect = case._replace(call=lambda variant, clean, out: out.copy_(case.exact))
    assert perfect.recall("", True, 4) == (1.0, pytest.approx(1.0))
    opposite = case._replace(call=lambda variant, clean, out: out.copy_(-case.exact.nan_to_num(neginf=0)))
    recall = opposite.recall("", False, 4)
    assert recall.keys < 0.5
    assert recall.mass < 0.9


def test_rows_see_more_keys_than_are_looked_for_and_only_their_prompts():
    case = TINY_RECALL.cases(CPU, FN)["prefill"]
    inside = ~case.exact.isneginf()
    assert inside.shape == (6, 32)
    assert (inside.sum(1) > TINY_RECALL.top_k).all()
    assert not inside[:3, 16:].any()
    assert not inside[3:, :16].any()
    assert inside[2, :16].all(), "the last position sees every key of its prompt"


def test_the_top_keys_carry_most_of_the_attention():
    """What LEANING was chosen for, at the real numbers of keys; fewer rows."""
    small = Accuracy("recall", "", rows=8, requests=1, prompts=1, heads=64)
    exact = small.cases(CPU, FN)["prefill"].exact
    carried = exact.softmax(1).topk(512, dim=1).values.sum(1)
    assert 0.6 < float(carried[-1]) < 0.95
