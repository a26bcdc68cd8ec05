"""The gfx950 code of the fused selections, executed instruction by instruction, selects what sorting does, key for key."""

from typing import Any

import pytest
import torch

from capgate.kernels.fused_selection import tunings
from capgate.kernels.fused_selection.operation import Problem, dense, paged
from capgate.kernels.fused_selection.tunings import Tuning
from capgate.kernels.key_selection.operands import Dense, Paged
from support import fused_selection as fused
from support import selection
from support.emulated_mqa import TARGET
from support.emulation import emulate

TOP_K = 40
# One wave, and lists of 256 entries, which are looked at after every tile of 64 keys. Two programs share the last rows.
SHORT = Tuning(64, 32, num_warps=1, num_stages=2, resident=2, block_entries=256, planes=4)


@pytest.fixture(autouse=True)
def _short_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    for table in (tunings.CLASSIC, tunings.CLASSIC_PAGED):
        monkeypatch.setitem(table, TARGET.label, SHORT)


def execute(operation: Any, problem: Problem, inputs: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """(indices, scores, counts) of a call, in memory that is full of NaN before."""
    indices = torch.full((problem.rows, TOP_K), -7, dtype=torch.int32)
    scores = torch.full((problem.rows, TOP_K), float("nan"))
    memory = torch.full((2**18,), 0xFF, dtype=torch.uint8)
    counters = torch.zeros((16, fused.COUNTS), dtype=torch.int32)
    kernel = operation.load(operation.variants["classic"])
    for launch in kernel.prepare(problem, inputs, indices, scores, memory=memory, counters=counters, **options):
        emulate(launch, [])
    return indices, scores, counters.sum(0).tolist()


def test_packed_keys() -> None:
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
    found, scores, (refreshed, tied, _) = execute(dense, problem, Dense(*call), max_window=None, relative=False)
    right, right_scores = selection.expected(fused.logits_of(numbers, weights, torch.ones(700)), call.starts, call.ends, TOP_K)
    assert torch.equal(found, right)
    assert selection.same(scores, right_scores)
    assert refreshed > 4
    assert tied > 2


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
