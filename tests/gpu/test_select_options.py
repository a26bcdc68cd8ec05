"""What the selection can do besides, on a GPU: bfloat16 logits, index spaces, given memory, and other libraries' calls."""

from functools import partial
from typing import Any

import pytest
import torch

from capgate.kernels import fp8_mqa_logits, select_from_logits, select_keys
from capgate.kernels.dropin import aiter, flashinfer, sglang, vllm  # noqa: A004 - a library's name
from capgate.kernels.key_selection.operation import operation
from support import judge, selection, taking

pytestmark = pytest.mark.gpu

INT = torch.int32


@pytest.fixture(params=list(operation.variants))
def variant(request: pytest.FixtureRequest, gpu: torch.device) -> str:
    """Every variant of the selection that this GPU can run."""
    return taking.taken(operation, operation.example(gpu), request.param)


def page_table(rows: int, pages: int) -> torch.Tensor:
    return torch.randperm(rows * pages, device="cuda").view(rows, pages).int()


def slots(indices: torch.Tensor, table: torch.Tensor, page_size: int) -> torch.Tensor:
    """Of indices whose pages are all there."""
    first = table.long().gather(1, indices.clamp(min=0).long() // page_size) * page_size
    return torch.where(indices < 0, -1, first + indices % page_size).int()


@pytest.mark.parametrize("kind", selection.KINDS)
@pytest.mark.parametrize("top_k", [1, 512, 2048])
@pytest.mark.parametrize("columns", [1500, 8192, 40_000])
def test_bfloat16_logits(variant: str, kind: str, top_k: int, columns: int) -> None:
    logits = selection.make_logits(kind, 67, columns, device="cuda").bfloat16()
    starts, ends = selection.judge.make_windows("ragged", 67, columns, device="cuda")
    for layout in ({"gap": -columns % 64}, {"gap": 7, "offset": 3}):
        selection.check(selection.judge.laid_out(logits, **layout), starts, ends, top_k, variant)


@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize("kind", ["normal", "few-values", "nans"])
@pytest.mark.parametrize("columns", [1500, 8192, 40_000])
def test_slots(variant: str, columns: int, kind: str, page_size: int) -> None:
    logits = selection.make_logits(kind, 67, columns, device="cuda")
    starts, ends = selection.judge.make_windows("ragged", 67, columns, device="cuda")
    plain, _ = selection.expected(logits, starts, ends, 512, relative=True)
    table = page_table(67, columns // page_size + 1)
    options: dict[str, Any] = {"relative": True, "page_table": table, "page_size": page_size, "variant": variant}
    assert torch.equal(select_from_logits(logits, starts, ends, top_k=512, **options), slots(plain, table, page_size))
    requests = torch.randperm(67, device="cuda").int()
    found = select_from_logits(logits, starts, ends, top_k=512, requests=requests, **options)
    assert torch.equal(found, slots(plain, table[requests.long()], page_size))


@pytest.mark.parametrize("columns", [3000, 40_000], ids=["one-launch", "two-launches"])
def test_a_graph_of_a_call_with_given_memory_allocates_nothing(fp8: torch.dtype, columns: int) -> None:
    rows, top_k = 61, 512
    call = judge.make_call(rows, columns, 64, 128, "causal", dtype=fp8, device="cuda")
    out, scores = torch.empty(rows, 2 * top_k, dtype=INT, device="cuda")[:, :top_k], torch.empty(rows, top_k, device="cuda")
    workspace = torch.empty(2**23, dtype=torch.uint8, device="cuda")
    memory = {"out": out, "out_scores": scores, "return_scores": True, "workspace": workspace}
    run = partial(select_keys, *call, top_k=top_k, **memory)
    run()
    right, right_scores = selection.expected(fp8_mqa_logits(*call, clean_logits=False), call.starts, call.ends, top_k)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    assert torch.cuda.max_memory_allocated() == before
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    out.fill_(7)
    graph.replay()
    assert torch.equal(out, right)
    assert selection.same(scores, right_scores)


@pytest.mark.parametrize("windows", ["full", "ragged"])
def test_rows_that_are_listed_take_no_logits(fp8: torch.dtype, windows: str) -> None:
    call = judge.make_call(300, 2048, 64, 128, windows, dtype=fp8, device="cuda")
    poisoned = call._replace(weights=torch.full_like(call.weights, float("nan")))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = select_keys(*poisoned, top_k=2048)
    assert torch.cuda.max_memory_allocated() - before <= found.nbytes + 2**16
    right, _ = selection.expected(torch.zeros(300, 2048, device="cuda"), call.starts, call.ends, 2048)
    assert torch.equal(found, right)


# --- as other libraries test theirs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["normal", "few-values"])
@pytest.mark.parametrize("top_k", [512, 2048, 3000])
@pytest.mark.parametrize("rows", [1, 32, 2050])
def test_prefill_per_row(gpu: torch.device, rows: int, top_k: int, kind: str) -> None:
    logits = selection.make_logits(kind, rows, 20_000, device="cuda")
    starts, ends = selection.judge.make_windows("ragged", rows, 20_000, device="cuda")
    right, scores = selection.expected(logits, starts, ends, top_k)
    indices, values = torch.empty(rows, top_k, dtype=INT, device="cuda"), torch.empty(rows, top_k, device="cuda")
    aiter.top_k_per_row_prefill(logits, starts, ends, indices, values, rows, logits.stride(0), 1, k=top_k)
    assert torch.equal(indices, right)
    assert selection.same(values, scores)
    vllm.top_k_per_row_prefill(logits, starts, ends, indices, rows, logits.stride(0), 1, top_k)
    assert torch.equal(indices, torch.where(right < 0, -1, right - starts.clamp(min=0)[:, None]))


@pytest.mark.parametrize("kind", ["normal", "few-values"])
@pytest.mark.parametrize("next_n", [1, 2, 8])
@pytest.mark.parametrize(("batch", "columns"), [(1, 300_000), (24, 128_000), (256, 20_000)], ids=str)
def test_decode_per_row(gpu: torch.device, batch: int, columns: int, next_n: int, kind: str) -> None:
    rows = batch * next_n
    logits = selection.make_logits(kind, rows, columns, device="cuda")
    lens = torch.randint(1, columns + 1, (batch,), device="cuda", dtype=INT)
    ends = (lens[:, None] + torch.arange(1 - next_n, 1, device="cuda")).flatten().int()
    right, _ = selection.expected(logits, None, ends, 2048)
    for decode in (vllm.top_k_per_row_decode, aiter.top_k_per_row_decode):
        indices = torch.empty(rows, 2048, dtype=INT, device="cuda")
        decode(logits, next_n, lens, indices, rows, logits.stride(0), 1, 2048)
        assert torch.equal(indices, right)
    indices = torch.empty(rows, 2048, dtype=INT, device="cuda")
    vllm.top_k_per_row_decode(logits, next_n, ends.view(batch, next_n), indices, rows, logits.stride(0), 1, 2048)
    assert torch.equal(indices, right)


@pytest.mark.parametrize("columns", [4096, 70_000])
@pytest.mark.parametrize("rows", [7, 300])
def test_transforms(gpu: torch.device, rows: int, columns: int) -> None:
    logits = selection.make_logits("normal", rows, columns, device="cuda")
    lengths = torch.randint(0, columns + 1, (rows,), device="cuda", dtype=INT)
    plain, _ = selection.expected(logits, None, lengths, 2048)
    table, offsets = page_table(rows, columns // 64 + 1), torch.arange(rows, device="cuda", dtype=INT) * 1000
    shifted = torch.where(plain < 0, -1, plain + offsets[:, None])
    found = flashinfer.top_k_page_table_transform(logits, table, lengths, 2048, page_size=64)
    assert torch.equal(found, slots(plain, table, 64))
    assert torch.equal(flashinfer.top_k_ragged_transform(logits, offsets, lengths, 2048), shifted)
    out = torch.empty(rows, 2048, dtype=INT, device="cuda")
    sglang.topk_transform_paged_v2(logits, lengths, table, out, 64, torch.empty(rows + 1, 2, dtype=INT, device="cuda"))
    assert torch.equal(out, found)
    sglang.topk_transform_ragged_v2(logits, lengths, out_offsets=offsets, out_indices=out)
    assert torch.equal(out, shifted)
