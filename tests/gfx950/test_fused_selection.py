"""The gfx950 code of the fused selections, executed instruction by instruction, selects what sorting does, key for key."""

from typing import Any

import pytest
import torch
from triton.compiler import ASTSource

from capgate.compat import Launch, capabilities
from capgate.compat.offline.child import describe
from capgate.kernels import paged_mqa_schedule
from capgate.kernels.fused_selection import tunings
from capgate.kernels.fused_selection.operation import Problem, dense, example_paged_call, example_paged_problem, paged
from capgate.kernels.fused_selection.tunings import Tuning
from capgate.kernels.key_selection.operands import Dense, Paged
from emulator import Program, Result, parse, run
from emulator.hazards import hazards
from support import fused_selection as fused
from support import selection
from support.emulated_mqa import TARGET
from support.emulated_paged_mqa import VARIANTS, paged_launch
from support.emulation import bound, compile_launch
from support.paged import make_call, without_blocks
from support.steady_loop import busiest_loop, check_copies_stay_in_flight, check_steady_loop
from support.wait_states import check_wait_states, wait_states

TOP_K = 40
# One wave, and lists of 256 entries, which are looked at after every tile of 64 keys. Two programs share the last rows.
SHORT = Tuning(64, 32, num_warps=1, num_stages=2, resident=2, block_entries=256, planes=4)
# Four waves with a row of 64 heads each, in one program.
FOUR_WAVES = Tuning(128, 256, num_warps=4, num_stages=3, resident=1, block_entries=512, planes=4)
PAGED = dict(tunings.GLUON_CDNA4_PAGED)  # as it is
GLUON = pytest.mark.skipif(not capabilities(TARGET).gluon_cdna4, reason=capabilities(TARGET).why("gluon_cdna4"))


@pytest.fixture(autouse=True)
def _short_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    for table in (tunings.CLASSIC, tunings.CLASSIC_PAGED):
        monkeypatch.setitem(table, TARGET.label, SHORT)
    for table in (tunings.GLUON_CDNA4, tunings.GLUON_CDNA4_PAGED):
        monkeypatch.setitem(table, 16, SHORT._replace(num_stages=3))
    monkeypatch.setitem(tunings.GLUON_CDNA4, 64, FOUR_WAVES)
    monkeypatch.setitem(tunings.GLUON_CDNA4_PAGED, 32, FOUR_WAVES._replace(block_keys=64, columns=128, resident=2))
    monkeypatch.setitem(tunings.GLUON_CDNA4_PAGED, 64, FOUR_WAVES._replace(block_keys=64, resident=2))


def execute(
    operation: Any, problem: Problem, inputs: Any, variant: str = "classic", landing: str = "late", **options: Any
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """(indices, scores, counts but for gluon_hopper's own) of a call, in memory that is full of NaN before."""
    indices = torch.full((problem.rows, TOP_K), -7, dtype=torch.int32)
    scores = torch.full((problem.rows, TOP_K), float("nan"))
    memory = torch.full((2**18,), 0xFF, dtype=torch.uint8)
    counters = torch.zeros((16, fused.COUNTS), dtype=torch.int32)
    kernel = operation.load(operation.variants[variant])
    for launch in kernel.prepare(problem, inputs, indices, scores, memory=memory, counters=counters, **options):
        launched(launch, landing)
    return indices, scores, counters.sum(0).tolist()[:3]


def launched(launch: Launch, landing: str = "late", measure: bool = False) -> tuple[Program, Result]:
    """A launch's compiled kernel, and what executing it counted."""
    compiled = compile_launch(launch, source_of(launch.kernel))
    program = parse(compiled.asm["amdgcn"])
    assert not hazards(program)
    arguments, lds_bytes = bound(compiled, launch.arguments), compiled.metadata.shared
    return program, run(program, launch.grid, arguments, lds_bytes=lds_bytes, landing=landing, measure=measure)


def source_of(kernel: Any) -> Any:
    """The kind of source that a kernel is."""
    if not kernel.is_gluon():
        return ASTSource
    from capgate.compat.gluon import GluonASTSource

    return GluonASTSource


@pytest.mark.dealt
@pytest.mark.parametrize("variant", ["classic", pytest.param("gluon_cdna4", marks=GLUON)])
def test_packed_keys(variant: str) -> None:
    """Rising, equal and random logits, of rows that a program has alone and of one that two share; windows of few keys, none
    and all."""
    key = torch.arange(700)
    random = torch.randint(0, 256, (700,), generator=torch.Generator().manual_seed(0))
    numbers = torch.stack([random, key % 256, random % 3, key // 3, random, torch.full((700,), 9)])
    windows = (
        torch.tensor([0, 0, 3, 5, 90, -4], dtype=torch.int32),
        torch.tensor([700, 691, 9999, 66, 20, 400], dtype=torch.int32),
    )
    weights = torch.ones(6)
    call = fused.make_call(numbers, weights, torch.ones(700), windows)
    problem = Problem(TARGET, fused.HEADS, fused.DIM, "float8_e4m3fn", TOP_K, 6, 700)
    found, scores, (refreshed, tied, _) = execute(dense, problem, Dense(*call), variant, max_window=None, relative=False)
    right, right_scores = selection.expected(fused.logits_of(numbers, weights, torch.ones(700)), call.starts, call.ends, TOP_K)
    assert torch.equal(found, right)
    assert selection.same(scores, right_scores)
    assert refreshed > 4
    assert tied > 2


@GLUON
def test_logits_that_are_no_numbers() -> None:
    """Of both signs: infinite, denormal, zeros, NaN that come late, and so many NaN that rows are closed."""
    generator = torch.Generator().manual_seed(1)
    scales = torch.randn((700,), generator=generator)
    scales[50:90] = torch.tensor([float("inf"), -float("inf"), 0.0, -0.0, 1e-40]).repeat(8)
    scales[600:630] = float("nan")
    weights = torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0, 1.0])
    numbers = torch.ones(6, 700)
    closed_rows = 0
    for many in (scales, torch.where(torch.arange(700) % 9 == 0, float("nan"), scales)):
        call = fused.make_call(numbers, weights, many)
        problem = Problem(TARGET, fused.HEADS, fused.DIM, "float8_e4m3fn", TOP_K, 6, 700)
        found, scores, (refreshed, _, closed) = execute(
            dense, problem, Dense(*call), "gluon_cdna4", "early", max_window=None, relative=False
        )
        right, right_scores = selection.expected(fused.logits_of(numbers, weights, many), call.starts, call.ends, TOP_K)
        assert torch.equal(found, right)
        assert selection.same(scores, right_scores)
        assert refreshed > 4
        closed_rows += closed
    assert closed_rows >= 6


@GLUON
def test_waves_with_a_row_each() -> None:
    """64 heads of 128 dims, integers that every sum has exactly; the last tile of 128 keys overlaps the one before."""
    generator = torch.Generator().manual_seed(2)
    q = torch.randint(-2, 3, (4, 64, 128), generator=generator).float()
    k = torch.randint(-2, 3, (1100, 128), generator=generator).float()
    weights = torch.randint(-3, 4, (4, 64), generator=generator).float()
    windows = torch.tensor([0, 0, 130, 900], dtype=torch.int32), torch.tensor([1100, 1023, 1090, 930], dtype=torch.int32)
    logits = torch.einsum("shk,sh->sk", torch.einsum("shd,kd->shk", q, k).relu(), weights)
    inputs = Dense(q.to(torch.float8_e4m3fn), k.to(torch.float8_e4m3fn), torch.ones(1100), weights, *windows)
    problem = Problem(TARGET, 64, 128, "float8_e4m3fn", TOP_K, 4, 1100)
    found, scores, (refreshed, _, _) = execute(dense, problem, inputs, "gluon_cdna4", max_window=None, relative=False)
    right, right_scores = selection.expected(logits, *windows, TOP_K)
    assert torch.equal(found, right)
    assert selection.same(scores, right_scores)
    assert refreshed > 2


@pytest.mark.dealt
@pytest.mark.parametrize("variant", ["classic", pytest.param("gluon_cdna4", marks=GLUON)])
def test_cached_keys(variant: str) -> None:
    """A request of one worker, an empty one, and one that both workers have, whose equal logits lie on both sides."""
    lens = [130, 0, 600]
    numbers = [torch.arange(130), torch.zeros(1), torch.arange(600) % 5]
    call = fused.make_paged_call(numbers, lens, 1)
    problem = Problem(TARGET, fused.HEADS, fused.DIM, "float8_e4m3fn", TOP_K, 3, 600, 1)
    found, scores, (refreshed, tied, _) = execute(paged, problem, Paged(*call), variant, max_context_len=600)
    logits = torch.stack([torch.nn.functional.pad(number.float(), (0, 600 - len(number))) for number in numbers])
    right, right_scores = selection.expected(logits, None, call.context_lens, TOP_K)
    assert torch.equal(found, right)
    assert selection.same(scores, right_scores)
    assert refreshed > 0
    assert tied > 0


@GLUON
def test_cached_logits_that_are_no_numbers() -> None:
    """As of packed keys: those of a request that both workers have, and of two that one has."""
    generator = torch.Generator().manual_seed(1)
    lens = [90, 900, 400]
    closed_rows = 0
    for many in (False, True):
        scales = [torch.randn((length,), generator=generator) for length in lens]
        for scale in scales:
            scale[5:30] = torch.tensor([float("inf"), -float("inf"), 0.0, -0.0, 1e-40]).repeat(5)
            scale[60:80] = float("nan")
            scale[:: 9 if many else 10**4] = float("nan")
        call = fused.make_paged_call([torch.ones(length) for length in lens], lens, 1, scales=scales)
        weights = torch.tensor([1.0, -1.0, 1.0])
        call = call._replace(weights=call.weights * weights[:, None])
        problem = Problem(TARGET, fused.HEADS, fused.DIM, "float8_e4m3fn", TOP_K, 3, 900, 1)
        found, scores, (refreshed, _, closed) = execute(
            paged, problem, Paged(*call), "gluon_cdna4", "early", max_context_len=900
        )
        logits = torch.stack(
            [
                torch.nn.functional.pad(scale * weight, (0, 900 - len(scale)))
                for scale, weight in zip(scales, weights, strict=True)
            ]
        )
        right, right_scores = selection.expected(logits, None, call.context_lens, TOP_K)
        assert torch.equal(found, right)
        assert selection.same(scores, right_scores)
        assert refreshed > 2
        closed_rows += closed
    assert closed_rows >= 2


@GLUON
@pytest.mark.dealt
@pytest.mark.parametrize(("heads", "landing"), [(64, "late"), (32, "early")])
def test_cached_keys_are_those_of_two_steps(heads: int, landing: str) -> None:
    """Three rows of a request, each in a wave of its own, as slots of a page table: of random keys in blocks of 16, some of
    which the cache does not have, in two shares. The logits' waves have two rows of 32 heads."""
    lens = [[900, 300, 0], [0, 0, 0], [70, 41, 40], [330, 700, 695]]
    call = without_blocks(make_call(lens, 3, heads, 128, 16, layout="preshuffled"), 5)
    logits = torch.full((12, 900), float("nan"))
    launched(
        paged_launch(
            VARIANTS["gluon_cdna4"].kernel, call, paged_mqa_schedule(call.context_lens, 64, 2), logits, False, "preshuffled"
        )
    )
    table = torch.randperm(64, dtype=torch.int32).repeat(2, 1)
    placed = {
        "offsets": torch.arange(12, dtype=torch.int32),
        "page_table": table,
        "requests": torch.arange(12, dtype=torch.int32) % 3,
    }
    problem = Problem(TARGET, heads, 128, "float8_e4m3fn", TOP_K, 12, 900, 3, 16, "preshuffled")
    found, scores, (refreshed, tied, _) = execute(
        paged,
        problem,
        Paged(*call, *placed.values()),
        "gluon_cdna4",
        landing,
        max_context_len=900,
        page_size=16,
        layout="preshuffled",
    )
    right, right_scores = selection.expected(logits, None, call.seen.flatten().int(), TOP_K)
    assert torch.equal(found, selection.placed(right, placed["offsets"], table, 16, placed["requests"]))
    assert selection.same(scores, right_scores)
    assert refreshed > 2
    assert tied > 0


@GLUON
@pytest.mark.dealt
@pytest.mark.parametrize(("next_n", "block"), [(1, 64), (2, 16)])
def test_steady_loop_of_cached_keys(monkeypatch: pytest.MonkeyPatch, next_n: int, block: int) -> None:
    """No bank conflict, no barrier but between the waves of a program, no spilled register, and two tiles in flight whenever
    one is scored."""
    monkeypatch.setitem(tunings.GLUON_CDNA4_PAGED, 64, PAGED[64])
    problem = Problem(TARGET, 64, 128, "float8_e4m3fn", TOP_K, next_n, 4096, next_n, block)
    workers = tunings.gluon_cdna4_paged(problem).resident
    keys = workers * 4 * 3 * 64  # four turns of each, for which its lists have room: it enters the loop once
    selected = torch.empty((next_n, TOP_K), dtype=torch.int32), torch.empty((next_n, TOP_K))
    inputs = Paged(*make_call([keys], next_n, 64, 128, block))
    schedule, scan, _merge = paged.load(paged.variants["gluon_cdna4"]).prepare(problem, inputs, *selected, max_context_len=keys)
    assert scan.grid == (workers, 1)
    launched(schedule)
    program, result = launched(scan, measure=True)
    texts = [program.instructions[index].text for index in busiest_loop(program, result.executed, next_n * workers)]
    check_steady_loop(texts)
    check_copies_stay_in_flight(texts, passes=3)
    assert sum(text == "s_barrier" for text in texts) == (3 if next_n > 1 else 0)  # one for each tile of a turn
    assert sum(text.startswith("v_mfma") for text in texts) == 3 * 8
    assert result.counters.lds_cycles == result.counters.lds_ideal_cycles > 0


@GLUON
@pytest.mark.dealt
@pytest.mark.parametrize(
    ("heads", "dim", "next_n", "block"), [(64, 128, 4, 48), (16, 128, 1, 64), (32, 64, 8, 16), (48, 32, 3, 1)]
)
def test_rows_and_blocks_of_cached_keys_fit(
    monkeypatch: pytest.MonkeyPatch, heads: int, dim: int, next_n: int, block: int
) -> None:
    """No vector register spills, a CU holds as many programs as the tuning says, and no wait state is missing."""
    for padded, row in PAGED.items():
        monkeypatch.setitem(tunings.GLUON_CDNA4_PAGED, padded, row)
    problem = example_paged_problem(TARGET, heads, dim, "scores")._replace(next_n=next_n, block_size=block)
    call = example_paged_call(problem)
    inputs, *selected = call.operands
    apart = -(-block * (dim + 4) // 16) * 16
    cache = torch.empty((len(inputs.kv_cache), apart), dtype=torch.uint8, device="meta").as_strided(
        inputs.kv_cache.shape, (apart, dim + 4, dim + 4, 1)
    )
    kernel = paged.load(paged.variants["gluon_cdna4"])
    *_, scan, _merge = kernel.prepare(problem, inputs._replace(kv_cache=cache), *selected, **call.options)
    compiled = compile_launch(scan, source_of(scan.kernel))
    row = {**describe(compiled, TARGET, call, ""), **wait_states(compiled.asm["amdgcn"])}
    check_wait_states(row)
    tune = tunings.gluon_cdna4_paged(problem)
    assert row["scratch_bytes"] == row["agprs"] == 0
    assert tune.resident * tune.num_warps <= row["waves_per_simd"] * 4
