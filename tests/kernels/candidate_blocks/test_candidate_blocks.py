"""Candidate blocks and masks against a statement of them in Python, row by row."""

import re
from typing import Any

import pytest
import torch

from capgate.kernels import apply_candidate_mask, select_candidate_blocks
from support import judge

INFINITY = float("inf")
WINDOWS = [(0, 100), (3, 90), (-7, 300), (40, 40), (50, 10), (99, 100)]  # of 100 columns


def make_logits(rows: int, columns: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


def windows_of(pairs: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    starts, ends = torch.tensor(pairs, dtype=torch.int32).unbind(1)
    return starts.contiguous(), ends.contiguous()


def chosen(row: torch.Tensor, start: int, end: int, block: int, top: int) -> list[int]:
    """The blocks of one row, ascending: the best by their largest logit, NaN and the newest first, then lower numbers."""
    first, last = max(start, 0), min(end, len(row))
    values = row[first:last].float().tolist() if first < last else []
    blocks = [values[at : at + block] for at in range(0, len(values), block)]
    scores = [INFINITY if any(x != x for x in some) else max(some) for some in blocks]
    if scores:
        scores[-1] = INFINITY
    best = sorted(range(len(scores)), key=lambda number: (-scores[number], number))[:top]
    return sorted(number for number in best if scores[number] != -INFINITY)


@pytest.mark.parametrize(("dtype", "block", "top"), [(torch.float32, 8, 5), (torch.bfloat16, 16, 3), (torch.float32, 8, 40)])
def test_the_blocks_with_the_largest_logits_are_chosen(variant: str, dtype: torch.dtype, block: int, top: int) -> None:
    logits, (starts, ends) = make_logits(6, 100, dtype), windows_of(WINDOWS)
    logits[0, 17], logits[0, 20:40], logits[1, :] = float("nan"), -INFINITY, -INFINITY
    out = torch.full((6, top + 2), 7, dtype=torch.int32)[:, :top]
    assert select_candidate_blocks(logits, starts, ends, top_blocks=top, candidate_block=block, out=out, variant=variant) is out
    for row, (start, end) in enumerate(WINDOWS):
        found = out[row].tolist()
        assert [number for number in found if number >= 0] == chosen(logits[row], start, end, block, top), row
        assert all(number == -1 for number in found if number < 0)


def test_rows_share_windows_and_begin_at_0_without_starts(variant: str) -> None:
    logits, ends = make_logits(6, 700), torch.tensor([650, 9], dtype=torch.int32)
    out = select_candidate_blocks(logits, None, ends, top_blocks=4, variant=variant)
    assert [chosen(logits[row], 0, ends[row // 3], 8, 4) for row in range(3)] == out[:3].tolist()
    assert out[3:].tolist() == [[0, 1, -1, -1]] * 3


def masked(row: torch.Tensor, start: int, end: int, listed: list[int], block: int) -> torch.Tensor:
    column = torch.arange(len(row))
    local = column - max(start, 0)
    kept = torch.tensor([at >= 0 and at // block in listed for at in local.tolist()]) & (column < end)
    return torch.where(kept, row, -INFINITY)


@pytest.mark.parametrize(("dtype", "block"), [(torch.float32, 8), (torch.bfloat16, 16)])
def test_a_mask_keeps_listed_blocks_and_their_bits(variant: str, dtype: torch.dtype, block: int) -> None:
    logits, (starts, ends) = make_logits(6, 100, dtype), windows_of(WINDOWS)
    memory = judge.sentinels(6, 100, dtype=dtype)
    memory.copy_(logits)
    before = judge.storage_of(memory, judge.WORDS[dtype]).clone()
    lists = torch.tensor([[0, 3, -1, 2**31 - 1, 12], [5, 5, 1, -(2**31), 0]], dtype=torch.int32)  # each of three rows
    assert apply_candidate_mask(memory, starts, ends, lists, candidate_block=block, variant=variant) is memory
    for row, (start, end) in enumerate(WINDOWS):
        assert torch.equal(memory[row], masked(logits[row], start, end, lists[row // 3].tolist(), block)), row
    after = judge.storage_of(memory, judge.WORDS[dtype])
    address = torch.arange(after.numel()).as_strided(memory.shape, memory.stride(), memory.storage_offset())
    around = torch.ones_like(after, dtype=torch.bool)
    around[address] = False
    assert torch.equal(after[around], before[around]), "words round the logits changed"


def test_no_rows_need_no_windows_and_no_lists() -> None:
    logits, none = make_logits(0, 100), torch.zeros(0, dtype=torch.int32)
    assert select_candidate_blocks(logits, None, none, top_blocks=3).shape == (0, 3)
    assert select_candidate_blocks(logits, none, none, top_blocks=3, out=torch.zeros(0, 3, dtype=torch.int32)).shape == (0, 3)
    assert apply_candidate_mask(logits, none, none, none.view(0, 1)) is logits


def test_masks_of_several_programs(variant: str) -> None:
    """A program looks at 256 blocks."""
    logits, ends = make_logits(2, 4300), torch.tensor([4290], dtype=torch.int32)
    lists = torch.arange(0, 537, 7, dtype=torch.int32).repeat(2, 1)
    result = apply_candidate_mask(logits.clone(), None, ends, lists, variant=variant)
    for row in range(2):
        assert torch.equal(result[row], masked(logits[row], 0, 4290, lists[row].tolist(), 8))


@pytest.mark.any_triton
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"ends": torch.zeros(4, dtype=torch.int32), "starts": None},
            "ends: got shape (4,), needs a first size that divides",
        ),
        ({"logits": torch.zeros(6, 1).expand(6, 65535 * 2048 + 1)}, "logits: got 134215681 columns, needs 134215680 at most"),
        ({"candidate_block": 12}, "candidate_block: got 12, needs 8, 16, 32 or 64"),
        ({"top_blocks": 0}, "top_blocks: got 0, needs 1 or more"),
        ({"out": torch.zeros(6, 4, dtype=torch.int32)}, "out: got shape (6, 4), needs [6, 3]"),
        ({"variant": "gluon_hopper"}, "variant: select_candidate_blocks has no variant 'gluon_hopper'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(options: dict[str, Any], words: str) -> None:
    starts, ends = windows_of(WINDOWS)
    arguments = {"logits": make_logits(6, 100), "starts": starts, "ends": ends, "top_blocks": 3, **options}
    with pytest.raises(ValueError, match=re.escape(words)):
        select_candidate_blocks(**arguments)


@pytest.mark.any_triton
def test_operators_pass_opcheck_and_compile() -> None:
    logits, (starts, ends) = make_logits(6, 100), windows_of(WINDOWS)
    out, lists = torch.zeros(6, 3, dtype=torch.int32), torch.zeros(2, 3, dtype=torch.int32)
    torch.library.opcheck(torch.ops.capgate.select_candidate_blocks, (logits, starts, ends, 3, 8, None))
    torch.library.opcheck(torch.ops.capgate.select_candidate_blocks_out, (logits, None, ends, out, 8, None))
    torch.library.opcheck(torch.ops.capgate.apply_candidate_mask, (logits, starts, ends, lists, 8, None))

    def step(logits: torch.Tensor) -> torch.Tensor:
        blocks = select_candidate_blocks(logits, starts, ends, top_blocks=3)
        return apply_candidate_mask(logits * 1, starts, ends, blocks)

    torch._dynamo.reset()
    assert torch.equal(torch.compile(step, backend="eager", fullgraph=True)(logits), step(logits))
