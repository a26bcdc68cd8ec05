"""The gfx950 code of the fused selections, executed instruction by instruction, selects what sorting does, key for key."""

from typing import Any

import pytest
import torch
from triton.compiler import ASTSource

from capgate.compat import capabilities
from capgate.kernels.fused_selection import tunings
from capgate.kernels.fused_selection.operation import Problem, dense, paged
from capgate.kernels.fused_selection.tunings import Tuning
from capgate.kernels.key_selection.operands import Dense, Paged
from emulator import parse, run
from emulator.hazards import hazards
from support import fused_selection as fused
from support import selection
from support.emulated_mqa import TARGET
from support.emulation import bound, compile_launch

TOP_K = 40
# One wave, and lists of 256 entries, which are looked at after every tile of 64 keys. Two programs share the last rows.
SHORT = Tuning(64, 32, num_warps=1, num_stages=2, resident=2, block_entries=256, planes=4)
# Four waves with a row of 64 heads each, in one program.
FOUR_WAVES = Tuning(128, 256, num_warps=4, num_stages=3, resident=1, block_entries=512, planes=4)
GLUON = pytest.mark.skipif(not capabilities(TARGET).gluon_cdna4, reason=capabilities(TARGET).why("gluon_cdna4"))


@pytest.fixture(autouse=True)
def _short_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    for table in (tunings.CLASSIC, tunings.CLASSIC_PAGED):
        monkeypatch.setitem(table, TARGET.label, SHORT)
    monkeypatch.setitem(tunings.GLUON_CDNA4, 16, SHORT._replace(num_stages=3))
    monkeypatch.setitem(tunings.GLUON_CDNA4, 64, FOUR_WAVES)


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
        compiled = compile_launch(launch, source_of(launch.kernel))
        program = parse(compiled.asm["amdgcn"])
        assert not hazards(program)
        arguments = bound(compiled, launch.arguments)
        run(program, launch.grid, arguments, lds_bytes=compiled.metadata.shared, landing=landing, measure=False)
    return indices, scores, counters.sum(0).tolist()[:3]


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
def test_cached_keys() -> None:
    """A request of one worker, an empty one, and one that both workers have, whose equal logits lie on both sides."""
    lens = [130, 0, 600]
    numbers = [torch.arange(130), torch.zeros(1), torch.arange(600) % 5]
    call = fused.make_paged_call(numbers, lens, 1)
    problem = Problem(TARGET, fused.HEADS, fused.DIM, "float8_e4m3fn", TOP_K, 3, 600, 1)
    found, scores, (refreshed, tied, _) = execute(paged, problem, Paged(*call), max_context_len=600)
    logits = torch.stack([torch.nn.functional.pad(number.float(), (0, 600 - len(number))) for number in numbers])
    right, right_scores = selection.expected(logits, None, call.context_lens, TOP_K)
    assert torch.equal(found, right)
    assert selection.same(scores, right_scores)
    assert refreshed > 0
    assert tied > 0
