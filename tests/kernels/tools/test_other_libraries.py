"""Other libraries in the benchmark: what one of them cannot do is said, and everything else is measured."""

import json
import re
import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch

from capgate.kernels import cli, fp8_mqa_logits, fp8_paged_mqa_logits
from capgate.kernels.mqa_logits.operation import operation as dense
from capgate.kernels.tools.bench import command, other_libraries, tables
from capgate.kernels.tools.bench.matrix import gains, matrix_rows
from capgate.kernels.tools.bench.measure import Plan, kernel_rows, key_peers, selection_rows, serving_rows
from capgate.kernels.tools.bench.timing import Timer
from capgate.kernels.tools.bench.trial import difference
from capgate.kernels.tools.workloads.catalogue import SMALL
from capgate.kernels.tools.workloads.decode import Decode, given
from capgate.kernels.tools.workloads.matrix import Matrix
from capgate.kernels.tools.workloads.prefill import Prefill, causal
from capgate.kernels.tools.workloads.selection import DecodeSelection, Selection
from capgate.kernels.tools.workloads.serving import Serving

CPU, FN = torch.device("cpu"), torch.float8_e4m3fn
PREFILL = Prefill("tiny", "", 5, 16, 4, 32, causal(5, 16))
DECODE = Decode("tiny-decode", "", 3, given([1, 20, 33]), heads=4, next_n=2, block=16, dim=32)

pytestmark = pytest.mark.usefixtures("no_gpu")


class DeepGemm(ModuleType):
    """A library of that name, whose functions are ours behind its signatures; ``version`` says what it takes."""

    def __init__(self, version: str = "2.3") -> None:
        super().__init__("deep_gemm")
        self.version = version
        self.lengths: list[torch.Size] = []

    def fp8_mqa_logits(self, q, kv, weights, cu_seq_len_k_start, cu_seq_len_k_end, clean_logits=True, max_seqlen_k=0):
        operands = (q, *kv, weights, cu_seq_len_k_start, cu_seq_len_k_end)
        return fp8_mqa_logits(*operands, clean_logits=clean_logits, max_window=max_seqlen_k or None)

    def get_paged_mqa_logits_metadata(self, context_lens, block_kv, num_sms):
        self.lengths.append(context_lens.shape)
        if self.version == "2.6" and context_lens.dim() != 2:
            raise RuntimeError("Assertion error (csrc/apis/attention.hpp:158): context_lens.dim() == 2")
        return torch.zeros((num_sms + 1, 2), dtype=torch.int32)

    def fp8_paged_mqa_logits(
        self, q, kv_cache, weights, context_lens, block_table, schedule_meta, max_context_len, clean_logits=False
    ):
        if self.version == "2.6" and clean_logits:
            raise RuntimeError("Assertion error (csrc/apis/attention.hpp:210): not clean_logits")
        operands = (q, kv_cache, weights, context_lens, block_table)
        return fp8_paged_mqa_logits(*operands, max_context_len=max_context_len, clean_logits=clean_logits)


@pytest.fixture
def deep_gemm(monkeypatch) -> DeepGemm:
    made = DeepGemm()
    monkeypatch.setitem(sys.modules, "deep_gemm", made)
    return made


def plan(*names: str, cleans: tuple[bool, ...] = (False, True), rounds: int = 2) -> Plan:
    timer = Timer(CPU, repeats=1, warmup=0)
    variants = {operation: list(names) for operation in ("fp8_mqa_logits", "fp8_paged_mqa_logits", "select_keys")}
    return Plan(timer, FN, variants, cleans, rounds)


def measured(rows: list[dict[str, Any]]) -> set[tuple[str, bool]]:
    return {(row["variant"], row["clean_logits"]) for row in rows}


BOTH = {("reference", False), ("reference", True)}


@pytest.mark.parametrize("workload", [PREFILL, DECODE], ids=lambda workload: workload.name)
def test_a_peer_is_timed_beside_ours(deep_gemm, workload):
    asked = plan("reference", "deep_gemm")
    rows = kernel_rows(asked, None, [workload])
    assert measured(rows) == BOTH | {("deep_gemm", False), ("deep_gemm", True)}
    assert all(len(row["medians_ms"]) == 2 for row in rows)
    assert asked.remarks == []


def test_a_peer_that_wants_other_lengths_gets_them_and_says_what_it_has_not(deep_gemm):
    """DeepGEMM 2.6 takes the keys of each row, and cleans nothing then."""
    deep_gemm.version = "2.6"
    asked = plan("reference", "deep_gemm")
    assert measured(kernel_rows(asked, None, [DECODE])) == BOTH | {("deep_gemm", False)}
    assert deep_gemm.lengths == [(3,), (3, 2)] * 2
    (remark,) = asked.remarks
    assert (remark.workload, remark.variant, remark.clean_logits, remark.measured) == ("tiny-decode", "deep_gemm", True, False)
    assert "context_lens.dim() == 2" in remark.words
    assert "not clean_logits" in remark.words


class Current(ModuleType):
    """DeepGEMM 2.8: queries and keys are pairs, rows begin with their windows, and nothing is cleaned."""

    @staticmethod
    def fp8_fp4_mqa_logits(q, kv, weights, cu_seq_len_k_start, cu_seq_len_k_end, max_seqlen_k, schedule_meta=None):
        queries, none = q
        assert none is None
        operands = (queries, *kv, weights, cu_seq_len_k_start, cu_seq_len_k_end)
        return fp8_mqa_logits(*operands, clean_logits=False, max_window=max_seqlen_k)

    @staticmethod
    def get_paged_mqa_logits_metadata(context_lens, block_kv, num_sms, indices=None):
        assert context_lens.ndim == 2
        return torch.zeros((num_sms + 1, 2), dtype=torch.int32)

    @staticmethod
    def fp8_fp4_paged_mqa_logits(q, kv_cache, weights, context_lens, block_table, schedule_meta, max_context_len):
        return fp8_paged_mqa_logits(q[0], kv_cache, weights, context_lens, block_table, max_context_len=max_context_len)


@pytest.mark.parametrize("workload", [PREFILL, DECODE], ids=lambda workload: workload.name)
def test_deep_gemm_2_8_is_timed_where_it_has_the_call(workload, monkeypatch):
    monkeypatch.setitem(sys.modules, "deep_gemm", Current("deep_gemm"))
    asked = plan("reference", "deep_gemm")
    assert measured(kernel_rows(asked, None, [workload])) == BOTH | {("deep_gemm", False)}
    assert [remark for remark in asked.remarks if remark.measured] == []


KEYS = Selection(PREFILL, 3, budget=2 * 4 * 256)  # two rows of logits at a time
CACHED_KEYS = DecodeSelection(DECODE, 3)


@pytest.mark.parametrize("workload", [KEYS, CACHED_KEYS], ids=lambda workload: workload.name)
@pytest.mark.parametrize("library", [DeepGemm("2.3"), DeepGemm("2.6"), Current("deep_gemm")], ids=["2.3", "2.6", "2.8"])
def test_two_steps_with_a_peers_logits_select_the_same_keys(library, workload, monkeypatch):
    monkeypatch.setitem(sys.modules, "deep_gemm", library)
    asked = plan("reference", "deep_gemm")
    choice = workload.make(CPU, FN).choice
    calls = key_peers(asked, workload, choice)
    assert asked.remarks == []
    assert torch.equal(calls["deep_gemm"](), choice.select())
    (row,) = selection_rows(asked, None, [workload])
    assert (row["variant"], len(row["peers_ms"]["deep_gemm"])) == ("reference", 2)


def test_a_peer_that_has_no_room_for_its_logits_is_left_out(deep_gemm):
    asked = plan("reference", "deep_gemm")
    for workload in (replace(KEYS, budget=1023), replace(CACHED_KEYS, budget=6 * 1024 - 1)):
        assert key_peers(asked, workload, workload.make(CPU, FN).choice) == {}
    assert asked.remarks == []


def test_a_peer_that_stops_selecting_leaves_our_times(deep_gemm, monkeypatch):
    tired = iter(range(100))
    run = deep_gemm.fp8_mqa_logits
    monkeypatch.setattr(deep_gemm, "fp8_mqa_logits", lambda *q, **o: run(*q, **o) if next(tired) < 3 else 1 / 0)
    asked = plan("reference", "deep_gemm")
    (row,) = selection_rows(asked, None, [KEYS])
    assert (row["peers_ms"], len(row["whole_ms"])) == ({}, 2)
    assert [(remark.variant, remark.words) for remark in asked.remarks] == [
        ("deep_gemm", "whole: ZeroDivisionError: division by zero")
    ]


def test_a_peer_has_its_times_in_the_matrix_and_in_the_table(deep_gemm, monkeypatch, capsys):
    (row,) = matrix_rows(plan("reference", "deep_gemm"), [Matrix("tiny", "", 3, (20,), 4, heads=4, dim=32, budget=2**16)])
    assert (set(row["ms"]), set(gains(row))) == ({"two_steps", "deep_gemm"}, {"two_steps", "deep_gemm"})
    tables._show_selection(
        tables.plain_console(),
        {"selection": selection_rows(plan("reference", "deep_gemm"), None, [KEYS])} | {"repeats": 1, "rounds": 2},
    )
    assert " deep_gemm  whole " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda q, *, clean_logits, max_seqlen_k: q, "^TypeError: .* takes 1 positional argument but 5 "),
        (lambda *operands: 1 / 0, "^TypeError: .*unexpected keyword argument 'clean_logits'"),
        (lambda *operands, **options: 1 / 0, "^ZeroDivisionError: division by zero$"),
        (lambda *operands, **options: sys.exit(3), "^SystemExit: 3$"),
        (lambda *operands, **options: torch.zeros(5, 17), r"^ValueError: returned \[5, 17\] on cpu, needs \[5, 16\] on cpu$"),
        (lambda *operands, **options: torch.zeros(5, 16, device="meta"), r"on meta, needs \[5, 16\] on cpu$"),
        (lambda *operands, **options: (torch.zeros(5, 16),), "^TypeError: returned tuple, needs a tensor$"),
        (lambda *operands, **options: None, "^TypeError: returned NoneType, needs a tensor$"),
    ],
)
def test_a_peer_that_does_not_run_says_why(deep_gemm, function, words, monkeypatch):
    monkeypatch.setattr(deep_gemm, "fp8_mqa_logits", function)
    asked = plan("deep_gemm", "reference")
    assert measured(kernel_rows(asked, None, [PREFILL])) == BOTH
    assert {(remark.variant, remark.clean_logits) for remark in asked.remarks} == {("deep_gemm", False), ("deep_gemm", True)}
    for remark in asked.remarks:
        assert re.search(words, remark.words), remark.words


def test_a_peer_that_fails_in_a_later_round_loses_its_own_times_alone(deep_gemm, monkeypatch):
    calls = iter(range(100))
    run = deep_gemm.fp8_mqa_logits

    def tires(*operands: Any, **options: Any) -> torch.Tensor:
        if next(calls) == 2:
            raise RuntimeError("CUDA error: out of memory")
        return run(*operands, **options)

    monkeypatch.setattr(deep_gemm, "fp8_mqa_logits", tires)
    asked = plan("reference", "deep_gemm", cleans=(False,))
    assert measured(kernel_rows(asked, None, [PREFILL])) == {("reference", False)}
    assert [remark.words for remark in asked.remarks] == ["RuntimeError: CUDA error: out of memory"]


@pytest.mark.parametrize("value", [0.5, float("nan")])
@pytest.mark.parametrize("workload", [PREFILL, DECODE], ids=lambda workload: workload.name)
def test_logits_that_are_not_ours_are_said_beside_their_times(deep_gemm, workload, value, monkeypatch):
    name = workload.operation.name
    run = getattr(deep_gemm, name)

    def wrong(*operands: Any, **options: Any) -> torch.Tensor:
        logits = run(*operands, **options)
        logits[-1, 0] += value
        return logits

    monkeypatch.setattr(deep_gemm, name, wrong)
    asked = plan("reference", "deep_gemm", cleans=(False,))
    assert measured(kernel_rows(asked, None, [workload])) == {("reference", False), ("deep_gemm", False)}
    (remark,) = asked.remarks
    assert (remark.variant, remark.measured) == ("deep_gemm", True)
    assert remark.words.startswith("its logits are not ours: calc_diff ")


def test_cells_that_no_row_sees_are_nobodys(deep_gemm, monkeypatch):
    run = deep_gemm.fp8_mqa_logits

    def scribbles(*operands: Any, **options: Any) -> torch.Tensor:
        logits = run(*operands, **options)
        return torch.where(torch.arange(16) < operands[4][:, None], logits, float("nan"))

    monkeypatch.setattr(deep_gemm, "fp8_mqa_logits", scribbles)
    asked = plan("reference", "deep_gemm", cleans=(False,))
    kernel_rows(asked, None, [PREFILL])
    assert asked.remarks == []


@pytest.mark.parametrize(
    "workload",
    [
        PREFILL,
        DECODE,
        replace(PREFILL, max_window=9, windows=lambda: (torch.arange(5).int() * 2, torch.arange(5).int() * 3 + 1)),
    ],
)
def test_a_difference_counts_the_cells_that_rows_see(workload):
    batch = workload.make(CPU, FN)
    ours = batch.output().fill_(1.0)
    first, end = batch.columns()
    cells = int((end - first).clamp(min=0).sum())
    inside = torch.zeros(ours.shape, dtype=torch.bool)
    for row, (begin, stop) in enumerate(zip(first.tolist(), end.tolist(), strict=True)):
        inside[row, begin:stop] = True
    assert int(inside.sum()) == cells == int(batch.flops // (2 * workload.heads * workload.dim))
    theirs = torch.where(inside, -1.0, 7.0)
    assert difference(batch, ours, theirs) == pytest.approx(2.0)
    assert difference(batch, ours, torch.where(inside, 1.0, 7.0)) == 0


# Libraries that are not as they should be


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise AssertionError", "AssertionError: no message"),
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("class Panic(BaseException): pass\nraise Panic('rust')", "Panic: rust"),
        ("def fp8_gemm(): pass", "deep_gemm has no function fp8_mqa_logits or fp8_fp4_mqa_logits"),
    ],
)
def test_a_library_that_does_not_start_says_why(source, words, tmp_path, monkeypatch):
    (tmp_path / "deep_gemm.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "deep_gemm", raising=False)
    assert other_libraries.installed() == {"deep_gemm": "unknown"}
    asked = plan("reference", "deep_gemm", cleans=(False,))
    assert measured(kernel_rows(asked, None, [PREFILL])) == {("reference", False)}
    assert [remark.words for remark in asked.remarks] == [words]
    monkeypatch.delitem(sys.modules, "deep_gemm", raising=False)


def test_a_library_that_is_not_there_is_not_offered(monkeypatch):
    monkeypatch.setitem(sys.modules, "deep_gemm", None)
    assert other_libraries.installed() == {}


def test_a_second_home_is_tried(monkeypatch):
    home = ModuleType("aiter.ops.triton.fp8_mqa_logits")
    home.fp8_mqa_logits = lambda *operands, clean_logits: fp8_mqa_logits(*operands, clean_logits=clean_logits)
    for name in ("aiter", "aiter.ops", "aiter.ops.triton"):
        package = ModuleType(name)
        package.__path__ = []
        monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setitem(sys.modules, home.__name__, home)
    assert other_libraries.PEERS["fp8_mqa_logits"]["aiter"].find() is home


# Ours


def test_a_variant_of_ours_that_fails_is_said_and_the_rest_measured(monkeypatch):
    def broken(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(dense.variants["reference"], "_implementation", broken)
    asked = plan("reference", cleans=(False,))
    assert measured(kernel_rows(asked, None, [PREFILL, DECODE])) == {("reference", False)}
    assert [(remark.workload, remark.words) for remark in asked.remarks] == [
        ("tiny", "RuntimeError: CUDA error: an illegal memory access was encountered")
    ]


def test_a_workload_without_memory_leaves_the_others(monkeypatch):
    def too_large(self: Any, device: Any, dtype: Any, seed: int = 0) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    asked = plan("reference")
    whole = Selection(replace(PREFILL, name="top"), 4)
    monkeypatch.setattr(Prefill, "make", too_large)
    assert measured(kernel_rows(asked, None, [PREFILL, DECODE])) == BOTH
    assert selection_rows(asked, None, [whole]) == []
    assert {(remark.workload, remark.clean_logits) for remark in asked.remarks} == {
        ("tiny", False),
        ("tiny", True),
        ("top", False),
    }


def test_a_run_needs_all_its_steps(deep_gemm):
    deep_gemm.version = "2.6"
    asked = plan("reference", "deep_gemm")
    rows = serving_rows(asked, [Serving("run", "", 8, 5, requests=3, batch_tokens=20, layers=2, heads=4, dim=32, bucket=8)])
    assert measured(rows) == BOTH | {("deep_gemm", False)}
    assert {(remark.workload, remark.variant, remark.clean_logits) for remark in asked.remarks} == {("run", "deep_gemm", True)}
    assert all(remark.words.startswith("decode: RuntimeError") for remark in asked.remarks)


# The command


@pytest.fixture
def bench(monkeypatch, deep_gemm) -> list[str]:
    """Arguments for a run of two tiny workloads with DeepGEMM offered, as it would be on a GPU."""
    monkeypatch.setitem(SMALL, "a", replace(PREFILL, name="a"))
    monkeypatch.setitem(SMALL, "decode-8k", replace(DECODE, name="decode-8k"))
    names = {operation: ["reference", "deep_gemm"] for operation in ("fp8_mqa_logits", "fp8_paged_mqa_logits")}
    monkeypatch.setattr(command, "_variants", lambda given, operations, device: names)
    return ["bench", "--workload", "a,decode-8k", "--repeats", "1", "--rounds", "1"]


def test_the_table_says_why_a_peer_has_no_time(bench, deep_gemm, tmp_path, capsys):
    deep_gemm.version = "2.6"
    assert cli.main([*bench, "--json", str(tmp_path / "b.json")]) == 0, "a peer's failure is not the command's"
    said = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert "deep_gemm yes none" in lines
    first = next(number for number, line in enumerate(lines) if line.startswith("decode-8k "))
    assert lines[first + 1].startswith("3x2x18 "), "the sizes stand below the name"
    assert any(re.search(r"\bdeep_gemm no [\d.]+ ", line) for line in lines[first:])
    assert any(
        line.startswith("deep_gemm, clean: not timed: RuntimeError: Assertion error (csrc/apis/attention.hpp:158)")
        and line.endswith("(decode-8k)")
        for line in lines
    )
    results = json.loads((tmp_path / "b.json").read_text())
    assert [(remark["variant"], remark["clean_logits"], remark["measured"]) for remark in results["remarks"]] == [
        ("deep_gemm", True, False)
    ]
    assert cli.main(["compare", str(tmp_path / "b.json")]) == 0


def test_words_of_a_peer_steer_no_terminal(bench, deep_gemm, monkeypatch, capsys):
    def fails(*operands: Any, **options: Any) -> None:
        print("[deep_gemm] compiling")
        raise RuntimeError("[red]failed[/]\x1b[31m\nin line 3")

    monkeypatch.setattr(deep_gemm, "fp8_mqa_logits", fails)
    assert cli.main([*bench, "--clean", "off"]) == 0
    said = capsys.readouterr()
    assert r"deep_gemm, unclean: not timed: RuntimeError: [red]failed[/]\x1b[31m in line 3 (a)" in said.out
    assert "compiling" in said.err
    assert "compiling" not in said.out


def test_the_command_fails_when_one_of_ours_does(bench, monkeypatch, capsys):
    monkeypatch.setattr(dense.variants["reference"], "_implementation", lambda *arguments, **options: 1 / 0)
    assert cli.main([*bench, "--clean", "off"]) == 1
    said = capsys.readouterr().out
    assert "reference, unclean: not timed: ZeroDivisionError: division by zero (a)" in said
    assert "decode-8k" in said


def test_results_without_remarks_are_shown(bench, capsys):
    assert cli.main([*bench, "--clean", "off", "--json", "-"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results.pop("remarks") == []
    tables.show(results)
    assert "decode-8k" in capsys.readouterr().out
