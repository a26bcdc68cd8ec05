"""Each variant of the sparse logits against the formula in float64, of lists, windows, caches and schedules of every kind."""

import pytest
import torch

from capgate.kernels import (
    apply_candidate_mask,
    fp8_mqa_logits,
    fp8_paged_mqa_logits,
    paged_sparse_mqa_logits,
    select_candidate_blocks,
    select_from_logits,
    sparse_mqa_logits,
    sparse_mqa_schedule,
    sparse_mqa_workers,
)
from capgate.kernels.common.schedule import operands, operation
from support import judge, paged, schedules, sparse

WINDOWS = [(0, 70), (3, 60), (-5, 300), (20, 20), (9, 1000), (90, 40)]  # of 150 keys: inverted, empty and overhanging ones


@pytest.mark.dealt("relative", "heads")
@pytest.mark.parametrize(("block", "heads", "dim"), [(8, 16, 32), (16, 33, 64), (64, 3, 128)])
@pytest.mark.parametrize("relative", [True, False], ids=["relative", "absolute"])
def test_packed_keys_agree(variant: str, block: int, heads: int, dim: int, relative: bool) -> None:
    call = sparse.make_call(WINDOWS, 6, 150, 9, block, heads, dim, relative=relative)
    sparse.check(call, variant, block, relative=relative, clean_logits=block == 8)
    sparse.check(sparse.poisoned(call, block, relative=relative), variant, block, relative=relative)


@pytest.mark.parametrize(
    ("page", "block", "next_n", "layout"),
    [(64, 8, 1, "flat"), (1, 8, 2, "flat"), (48, 32, 1, "flat"), (16, 8, 2, "preshuffled")],
)
def test_cached_keys_agree(variant: str, page: int, block: int, next_n: int, layout: str) -> None:
    call = sparse.make_paged_call([70, 0, 133], 9, block, next_n, block_of_cache=page, gap=12, layout=layout)
    sparse.check(call, variant, block, layout=layout, clean_logits=next_n == 2)
    sparse.check(sparse.poisoned(call, block, layout=layout), variant, block, layout=layout)


def test_only_listed_blocks_are_read(variant: str) -> None:
    """Keys that no row lists are NaN, in bytes and in scales: the logits are bit for bit those of a call where they are not."""
    call = sparse.make_call([(0, 150), (8, 90)], 2, 150, 4)
    cached = sparse.make_paged_call([150, 90], 4)
    for some in (call, cached):
        poisoned = sparse.poisoned(some, 8)
        keys = "kv_cache" if some is cached else "k"
        assert not torch.equal(getattr(some, keys).view(torch.uint8), getattr(poisoned, keys).view(torch.uint8))
        one, other = sparse.check(some, variant, clean_logits=True), sparse.check(poisoned, variant, clean_logits=True)
        assert torch.equal(one.view(torch.int32), other.view(torch.int32))
        assert one.isfinite().any(1).all()


def test_blocks_that_are_not_there_score_minus_infinity(variant: str) -> None:
    """Numbers that no window has, also before a shorter row's last entry; and blocks that the cache lacks."""
    call = sparse.make_call([(0, 150), (17, 60)], 2, 150, 6)
    call.candidates[0, 1::2] = torch.tensor([-1, 2**31 - 1, 19], dtype=torch.int32)
    call.candidates[1, :3] = torch.tensor([-(2**31), 6, 1], dtype=torch.int32)
    assert sparse.check(call, variant).isneginf().sum() >= 5 * 8
    absolute = call._replace(
        candidates=torch.tensor([[0, 18, -1, 19, 3, 2**31 - 1], [1, 2, 8, 0, -(2**31), 7]], dtype=torch.int32)
    )
    sparse.check(absolute, variant, relative=False)
    cached = sparse.make_paged_call([150, 90], 30)
    lost = paged.without_blocks(paged.PagedCall(*cached[:5]))
    assert sparse.check(cached._replace(block_table=lost.block_table), variant).isneginf().any()


@pytest.mark.dealt("heads")
@pytest.mark.parametrize("heads", [16, 100])
def test_rows_share_lists(variant: str, heads: int) -> None:
    """Several rows and one of a program; rows that begin at one key, at others, and the last of a list without keys."""
    windows = [(0, 70), (9, 0), (0, 150), (9, 109), (9, 40), (3, 3)]
    call = sparse.make_call(windows, 6, 150, 7, heads=heads)
    for lists in (call.candidates[2:3], call.candidates[2:4], call.candidates[[2, 3, 2]]):
        shared = call._replace(candidates=lists.contiguous())
        sparse.check(shared, variant, clean_logits=len(lists) == 2)
    sparse.check(shared, variant, relative=False)
    cached = sparse.make_paged_call([[70, 0, 5], [0, 0, 0], [1, 2, 200]], 9, 8, 3, heads=heads)
    cached = cached._replace(candidates=sparse.lists([70, 0, 200], 9, 8))
    sparse.check(sparse.poisoned(cached, 8), variant)


def test_weights_and_logits_of_bfloat16_and_any_strides(variant: str) -> None:
    call = sparse.make_call([(0, 70), (5, 60)], 2, 80, 5)
    call = call._replace(
        q=judge.laid_out(call.q, (0, 2, 1), gap=3),
        k=judge.laid_out(call.k, (1, 0), gap=1),
        k_scale=judge.laid_out(call.k_scale, step=3),
        weights=judge.laid_out(call.weights.bfloat16(), (1, 0)),
        starts=judge.laid_out(call.starts, step=2),
        candidates=judge.laid_out(call.candidates, (1, 0), gap=2),
    )
    sparse.check(call, variant, out=judge.sentinels(2, 40, dtype=torch.bfloat16))
    sparse.check(call, variant, out=judge.sentinels(2, 40, order=(1, 0), gap=3))


@pytest.mark.parametrize("chunk_keys", [128, 256])
def test_a_schedule_changes_no_logit(variant: str, chunk_keys: int) -> None:
    call = sparse.make_call([(0, 300), (5, 5), (100, 250), (0, 9)], 4, 300, 40)
    workers = sparse_mqa_workers(call.q, variant=variant)
    assert workers >= 1
    schedule = sparse_mqa_schedule(call.ends, 3, most_keys=320, starts=call.starts, chunk_keys=chunk_keys)
    units = schedules.units_of([300, 0, 150, 9], chunk_keys)
    assert list(map(tuple, schedule.tolist())) == schedules.even(units, 3)
    one = sparse.check(call, variant, schedule=schedule, schedule_chunk_keys=chunk_keys, clean_logits=True)
    other = sparse.check(call, variant, clean_logits=True)
    assert torch.equal(one.view(torch.int32), other.view(torch.int32))


def test_schedules_of_rows_and_of_last_rows_serve_shared_lists(variant: str) -> None:
    call = sparse.make_call([(0, 9), (0, 300), (5, 5), (0, 250), (0, 0), (3, 3)], 6, 300, 40)
    call = call._replace(candidates=call.candidates[1::2].contiguous())
    for ends, starts in ((call.ends, call.starts), (call.ends[1::2], call.starts[1::2])):
        schedule = sparse_mqa_schedule(ends, 3, most_keys=320, starts=starts)
        sparse.check(call, variant, schedule=schedule, clean_logits=True)
    cached = sparse.make_paged_call([[70, 0], [300, 0], [1, 200]], 9, 8, 2)
    cached = cached._replace(candidates=sparse.lists([70, 300, 200], 9, 8))
    for lens in (cached.context_lens, cached.context_lens[:, 1]):
        sparse.check(cached, variant, schedule=sparse_mqa_schedule(lens, 3, most_keys=72), clean_logits=True)


def test_schedules_count_what_rows_list(variant: str) -> None:
    def made(lens: torch.Tensor, starts: torch.Tensor | None = None, **options: int) -> list[tuple[int, int]]:
        out = torch.zeros(5, 2, dtype=torch.int32)
        inputs = operands.Inputs(lens, starts)
        operation.operation(operation.Problem(lens.device), inputs, out, variant=variant, **options)
        return [tuple(entry) for entry in out.tolist()]

    def even(keys: list[int]) -> list[tuple[int, int]]:
        return schedules.even(schedules.units_of(keys, 128), 4)

    lens = torch.tensor([700, 0, 1, 130], dtype=torch.int32)
    assert made(lens, rows=1, most=512) == even([512, 0, 1, 130])
    assert made(lens, rows=3, most=512) == even([512, 512, 512, 0, 0, 0, 0, 0, 1, 128, 129, 130])
    assert made(lens.view(2, 2), rows=2, most=512) == even([512, 0, 1, 130])
    starts = torch.tensor([-9, 2**31 - 1, 0, 129], dtype=torch.int32)
    ends = torch.tensor([2**31 - 1, -(2**31), 300, 131], dtype=torch.int32)
    assert made(ends, starts, rows=1, most=512) == even([512, 0, 300, 2])


def test_chosen_blocks_score_as_all_keys_do(variant: str) -> None:
    """The two levels together: scores of blocks that the first level chose are the dense ones, but for the order of sums."""
    call = judge.make_call(4, 200, 16, 32, "causal")
    whole = fp8_mqa_logits(*call, variant="reference")
    blocks = select_candidate_blocks(whole, call.starts, call.ends, top_blocks=6, variant="reference")
    logits = sparse_mqa_logits(*call, blocks, relative=True, variant=variant)
    for row in range(4):
        for entry, number in enumerate(blocks[row].tolist()):
            if number >= 0:
                keys = whole[row, number * 8 : number * 8 + 8]
                got = logits[row, entry * 8 : entry * 8 + len(keys)]
                assert torch.allclose(got, keys, rtol=1e-5, atol=1e-5)


def test_keys_selected_in_two_levels_are_those_of_masked_logits(variant: str) -> None:
    """As docs/operations.md does it: the listed blocks are the selection's pages."""
    call = sparse.make_paged_call([200, 77, 30, 5], 1)
    lens = call.context_lens
    whole = fp8_paged_mqa_logits(*call[:5], max_context_len=200, variant="reference", clean_logits=True)
    blocks = select_candidate_blocks(whole, None, lens, top_blocks=6)
    logits = paged_sparse_mqa_logits(*call._replace(candidates=blocks), variant=variant)
    cells = torch.minimum(lens, 6 * 8 - (-lens) % 8)
    keys = select_from_logits(logits, None, cells, top_k=20, page_table=blocks, page_size=8)
    masked = apply_candidate_mask(whole, None, lens, blocks)
    assert torch.equal(keys, select_from_logits(masked, None, lens, top_k=20))


def test_the_default_is_the_reference_on_the_cpu() -> None:
    call = sparse.make_paged_call([70], 4)
    assert torch.equal(paged_sparse_mqa_logits(*call), paged_sparse_mqa_logits(*call, variant="reference"))
