"""Logits of listed blocks, and the choice of blocks, on a GPU: agreement with float64, poisoned keys, and a graph's replay."""

from typing import Any

import pytest
import torch

from capgate.kernels import (
    apply_candidate_mask,
    mx_paged_sparse_mqa_logits,
    mx_sparse_mqa_logits,
    paged_sparse_mqa_logits,
    select_candidate_blocks,
    sparse_mqa_logits,
    sparse_mqa_schedule,
)
from capgate.kernels.sparse_logits.calls import describe
from capgate.kernels.sparse_logits.operands import Dense
from capgate.kernels.sparse_logits.operation import dense
from support import judge, sparse, taking
from support.mx_logits import PAIRS

VARIANTS = pytest.mark.parametrize("variant", ["classic", "reference"])


def on(gpu: torch.device, call: Any) -> Any:
    return type(call)(*(tensor.to(gpu) for tensor in call))


def hold(out: torch.Tensor, call: Any, relative: bool = True, layout: str = "flat") -> None:
    """Clean logits of blocks of 8 keys are the formula's."""
    answer, out = sparse.formula(call, 8, relative=relative, layout=layout), out.cpu()
    scored = answer.inside & ~answer.logits.isneginf()
    assert torch.equal(out.isneginf(), ~scored)
    judge.agree(out[scored], answer.logits[scored], answer.magnitude[scored], on_matrix_unit=True)


@pytest.fixture(params=list(dense.variants))
def variant_of_packed(request: pytest.FixtureRequest, gpu: torch.device) -> str:
    """Every variant that takes a call on this GPU whose rows share lists."""
    return taking.taken(dense, dense.example(gpu)._replace(list_rows=2), request.param)


def taken(variant: str, call: Any, gpu: torch.device, block: int = 8) -> Any:
    """The call on the GPU; the test skips, with the reason, where the variant does not take it."""
    moved = on(gpu, call)
    taking.taken(dense, describe(Dense(*moved), torch.float32, block, True, True), variant)
    return moved


@pytest.mark.parametrize("lists", [6, 2, 1])
@pytest.mark.parametrize("heads", [16, 32, 64, 100])
def test_packed_keys_agree(gpu: torch.device, fp8: torch.dtype, variant_of_packed: str, heads: int, lists: int) -> None:
    windows = [(0, 3000), (16, 1500), (16, 900), (5, 5), (-9, 9000), (100, 2999)]
    call = sparse.make_call(windows, 6, 3000, 60, heads=heads, dim=128, dtype=fp8)
    some = sparse.poisoned(call._replace(candidates=call.candidates[:: 6 // lists].contiguous()), 8)
    moved = taken(variant_of_packed, some, gpu)
    hold(sparse_mqa_logits(*moved, relative=True, clean_logits=True, variant=variant_of_packed), some)


@pytest.mark.parametrize(
    ("heads", "dim", "block", "list_rows"),
    [(32, 128, 8, 9), (64, 128, 8, 3), (64, 64, 16, 21), (128, 32, 32, 7), (16, 64, 64, 5)],
)
def test_rows_that_share_lists_agree(
    gpu: torch.device, fp8: torch.dtype, variant_of_packed: str, heads: int, dim: int, block: int, list_rows: int
) -> None:
    """In sentinels, with schedules of several sizes; rows begin at several keys, blocks count from there or from key 0."""
    windows = [(row % 4 * block, 5000 - 90 * row) if row % 5 else (row, row + 17 * row) for row in range(3 * list_rows)]
    last = slice(list_rows - 1, None, list_rows)
    for relative in (True, False):
        call = sparse.make_call(
            windows, len(windows), 5000, 600 // block, block, heads, dim, dtype=fp8, relative=relative
        )  # fmt: skip
        call = call._replace(candidates=call.candidates[last].contiguous())
        moved = taken(variant_of_packed, call, gpu, block)
        checked: Any = {"block": block, "relative": relative, "device": str(gpu)}
        whole = sparse.check(call, variant_of_packed, clean_logits=True, **checked)
        for workers, chunk_keys in ((1, 128), (5, 256), (132, 128)):
            options = {"most_keys": whole.shape[1], "starts": moved.starts[last], "chunk_keys": chunk_keys}
            schedule = sparse_mqa_schedule(moved.ends[last], workers, **options)
            out = judge.sentinels(*whole.shape, str(gpu))
            sparse_mqa_logits(
                *moved, candidate_block=block, relative=relative, clean_logits=True, schedule=schedule,
                schedule_chunk_keys=chunk_keys, out=out, variant=variant_of_packed,
            )  # fmt: skip
            assert torch.equal(out.view(torch.int32), whole.view(torch.int32))
        call = call._replace(weights=call.weights.bfloat16())
        sparse.check(call, variant_of_packed, out=judge.sentinels(*whole.shape, str(gpu), torch.bfloat16), **checked)


@VARIANTS
@pytest.mark.parametrize(("page", "next_n"), [(64, 1), (16, 2), (1, 1)])
def test_cached_keys_agree(gpu: torch.device, fp8: torch.dtype, variant: str, page: int, next_n: int) -> None:
    call = sparse.make_paged_call([2000, 0, 700, 33], 40, 8, next_n, block_of_cache=page, heads=32, dim=128, dtype=fp8)
    call = sparse.poisoned(call, 8)
    hold(paged_sparse_mqa_logits(*on(gpu, call), clean_logits=True, variant=variant), call)


@VARIANTS
@pytest.mark.parametrize(("pair", "layout"), [(PAIRS[0], "gluon-32"), (PAIRS[1], "flat"), (PAIRS[2], "preshuffled")])
def test_keys_in_mx_formats_agree(gpu: torch.device, variant: str, pair: tuple[str, str], layout: str) -> None:
    windows = [(0, 3000), (16, 1500), (16, 900), (5, 5), (-9, 9000), (100, 2999)]
    call = sparse.make_call(windows, 6, 3000, 60, heads=32, dim=128, pair=pair)
    for lists in (call.candidates, call.candidates[::3].contiguous()):
        some = sparse.poisoned(call._replace(candidates=lists), 8)
        hold(mx_sparse_mqa_logits(*on(gpu, some), relative=True, clean_logits=True, variant=variant), some)
    cached = sparse.make_paged_call([2000, 0, 700, 33], 40, heads=32, dim=128, pair=pair, layout=layout)
    cached = sparse.poisoned(cached, 8, layout=layout)
    logits = mx_paged_sparse_mqa_logits(*on(gpu, cached), clean_logits=True, layout=layout, variant=variant)
    hold(logits, cached, layout=layout)


def test_a_graph_follows_lists_and_lengths(gpu: torch.device, fp8: torch.dtype) -> None:
    call = sparse.make_paged_call([1000, 700], 40, heads=32, dim=128, dtype=fp8)
    moved, out = on(gpu, call), torch.empty(2, 320, device=gpu)

    def run() -> None:
        paged_sparse_mqa_logits(*moved, clean_logits=True, out=out, variant="classic")

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    changed = call._replace(
        context_lens=torch.tensor([600, 90], dtype=torch.int32), candidates=sparse.lists([600, 90], 40, 8, seed=1)
    )
    moved.context_lens.copy_(changed.context_lens)
    moved.candidates.copy_(changed.candidates)
    graph.replay()
    hold(out, changed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_are_chosen_and_masked_as_on_the_cpu(gpu: torch.device, dtype: torch.dtype) -> None:
    logits = torch.randn(6, 40000, generator=torch.Generator().manual_seed(0)).to(dtype)
    starts, ends = (torch.tensor(some, dtype=torch.int32) for some in ([0, 77, 5], [40000, 33000, 6]))
    blocks = select_candidate_blocks(logits, starts, ends, top_blocks=2048)
    moved = [tensor.to(gpu) for tensor in (logits, starts, ends)]
    assert torch.equal(select_candidate_blocks(*moved, top_blocks=2048, variant="classic").cpu(), blocks)
    apply_candidate_mask(*moved, blocks.to(gpu), variant="classic")
    assert torch.equal(moved[0].cpu(), apply_candidate_mask(logits, starts, ends, blocks))
