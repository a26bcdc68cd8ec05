"""The upstream projects' tests through the drop-ins on a GPU, in upstream's sizes; graphs, and caches of more than 2 GiB."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from capgate import compat
from capgate.kernels.dropin import deep_gemm, vllm_rocm
from capgate.kernels.dropin.aiter import (
    deepgemm_fp8_paged_mqa_logits,
    flydsl_pa_mqa_logits_fp4,
    flydsl_pa_mqa_logits_fp4_prefill,
    paged_mxfp4_mqa_logits,
)
from capgate.kernels.mqa_logits.operation import operation
from support import judge, mx_paged, upstream
from support.mx_aiter import flydsl_operands, gluon_operands

pytestmark = pytest.mark.gpu

DEVICE = "cuda"


@pytest.fixture(params=["chosen", "classic"], autouse=True)
def _through_the_dropins(request: pytest.FixtureRequest, tmp_path: Path, gpu: torch.device) -> Iterator[None]:
    """Every drop-in installed; each operation on the variant that it chooses here, and on the classic one."""
    named = {}
    if request.param == "classic":
        if operation.explain(operation.example(gpu), variant="classic").variant is None:
            pytest.skip("the classic variant does not run here")
        named = dict.fromkeys(("fp8_mqa_logits", "fp8_paged_mqa_logits"), "classic")
    with upstream.installed(tmp_path), compat.override(variant=named):
        yield


def prefill(fp8: torch.dtype, rows: int, keys: int, dim: int = 128, heads: int = 64, parallel: bool = False) -> object:
    return upstream.Prefill(DEVICE, rows, keys, heads, dim, parallel=parallel, dtype=fp8)


@pytest.mark.parametrize("parallel", [True, False], ids=["one-rank-of-several", "alone"])
@pytest.mark.parametrize("compressed", [True, False], ids=["compressed", "logits"])
@pytest.mark.parametrize("keys", [4096, 8192])
@pytest.mark.parametrize("rows", [2048, 4096])
def test_deep_gemm_prefill(fp8: torch.dtype, rows: int, keys: int, compressed: bool, parallel: bool) -> None:
    upstream.deep_gemm_mqa_logits(prefill(fp8, rows, keys, parallel=parallel), compressed=compressed)


SMALL = [(1, 1), (1, 16), (1, 113), (17, 76), (61, 113), (61, 1024), (128, 1024), (1024, 1024), (1024, 1560)]


@pytest.mark.parametrize("clean_logits", [True, False], ids=["clean", "unclean"])
@pytest.mark.parametrize("parallel", [True, False], ids=["one-rank-of-several", "alone"])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize(("rows", "keys"), SMALL, ids=str)
def test_aiter_prefill(fp8: torch.dtype, rows: int, keys: int, dim: int, parallel: bool, clean_logits: bool) -> None:
    if parallel and (keys % rows or rows % 2):
        pytest.skip(f"{rows} rows do not split {keys} keys among ranks")
    upstream.aiter_mqa_logits(prefill(fp8, rows, keys, dim, parallel=parallel), clean_logits=clean_logits)


@pytest.mark.parametrize("heads", [32, 64])
@pytest.mark.parametrize(("rows", "keys"), [(1, 512), (61, 1024), (1024, 1560), (2048, 8192)], ids=str)
def test_vllm_prefill(fp8: torch.dtype, rows: int, keys: int, heads: int) -> None:
    upstream.vllm_mqa_logits(prefill(fp8, rows, keys, heads=heads))


def decode(
    fp8: torch.dtype, requests: int, next_n: int, block: int, mean: int = 8192, two_d: bool = False, seed: int = 0
) -> object:
    return upstream.Decode(DEVICE, requests, next_n, 64, 128, mean, block, two_d=two_d, dtype=fp8, seed=seed)


@pytest.mark.parametrize("two_d", [True, False], ids=["row-lengths", "lengths"])
@pytest.mark.parametrize("block", [32, 64])
@pytest.mark.parametrize(("requests", "next_n"), [(64, 1), (64, 2), (64, 4), (128, 1)], ids=str)
def test_deep_gemm_decode(fp8: torch.dtype, requests: int, next_n: int, block: int, two_d: bool) -> None:
    upstream.deep_gemm_paged_mqa_logits(decode(fp8, requests, next_n, block, two_d=two_d), 111 * 1000)


@pytest.mark.parametrize(
    ("block", "preshuffle"), [(1, False), (64, False), (16, True), (32, True), (64, True), (128, True), (256, True)]
)
@pytest.mark.parametrize("next_n", [1, 2, 4])
def test_aiter_decode(fp8: torch.dtype, next_n: int, block: int, preshuffle: bool) -> None:
    upstream.aiter_paged_mqa_logits(decode(fp8, 16, next_n, block), 16384, preshuffle=preshuffle)


@pytest.mark.parametrize("preshuffle", [True, False], ids=["tiles", "flat"])
def test_aiter_decode_from_a_cache_with_padded_rows(fp8: torch.dtype, preshuffle: bool) -> None:
    """ATOM rounds the 132 bytes of a key up to 144."""
    upstream.aiter_paged_mqa_logits(decode(fp8, 8, 2, 64, 1000), 2048, preshuffle=preshuffle, width=144)


@pytest.mark.parametrize("two_d", [True, False], ids=["row-lengths", "lengths"])
@pytest.mark.parametrize(("block", "next_n"), [(1, 1), (64, 1), (64, 2)])
def test_vllm_decode(fp8: torch.dtype, gpu: torch.device, block: int, next_n: int, two_d: bool) -> None:
    """compress_ratio 4 is block-flat everywhere; of 1, only where vLLM writes no tiles."""
    ratio = 4 if vllm_rocm.holds_tiles(compat.capabilities(gpu), block, 1) else 1
    upstream.vllm_paged_mqa_logits(decode(fp8, 32, next_n, block, 2000, two_d), 4096, ratio)


def test_bug_5_tiles_past_2_to_the_31_bytes(fp8: torch.dtype) -> None:
    """Known bug 5: 32-bit offset overflow."""
    call = decode(fp8, 4, 1, 64, 500)
    tiles, far = call.cache(tiles=True), 2**31 // (64 * 132) + 1
    free, _ = torch.cuda.mem_get_info()
    if free < 2 * 2**31:
        pytest.skip(f"needs 4 GB of GPU memory, {free / 1e9:.1f} GB are free")
    cache = torch.zeros(far + len(tiles), *tiles.shape[1:], dtype=torch.uint8, device=DEVICE)
    cache[far:] = tiles
    out = torch.full((4, 800), float("-inf"), device=DEVICE)
    operands = (call.q_fp8, cache, call.weights, out, call.lens, call.table + far, 800)
    deepgemm_fp8_paged_mqa_logits(*operands, Preshuffle=True, KVBlockSize=64)
    call.judge(out)


@pytest.mark.parametrize("preshuffle", [True, False], ids=["tiles", "flat"])
@pytest.mark.parametrize("requests", [129, 256])
def test_aiters_rows_past_2_to_the_31_bytes(fp8: torch.dtype, requests: int, preshuffle: bool) -> None:
    """As in aiter's test of offsets: rows 2**20 elements apart, row 512 at byte 2**31, have the bits of a narrow output."""
    free, _ = torch.cuda.mem_get_info()
    if free < 6e9:
        pytest.skip(f"needs 6 GB of GPU memory, {free / 1e9:.1f} GB are free")
    call = upstream.Decode(DEVICE, requests, 4, 128, 128, 1000, 256, dtype=fp8)
    cache, outs = call.cache(tiles=preshuffle), []
    for stride in (2048, 2**20):
        out = torch.empty(requests * 4, stride, device=DEVICE)[:, :2048]
        out.fill_(7)
        operands = (call.q_fp8, cache, call.weights, out, call.lens, call.table, 2048)
        deepgemm_fp8_paged_mqa_logits(*operands, Preshuffle=preshuffle, KVBlockSize=256)
        outs.append(out)
    assert torch.equal(*[out.view(torch.int32) for out in outs])
    assert (outs[0][:, 0] != 7).all()


def test_a_captured_step_replays_while_everything_changes(fp8: torch.dtype) -> None:
    """aiter's, DeepGEMM's and vLLM's decode in one graph, the cache once flat and once in tiles."""

    def operands(seed: int) -> list[torch.Tensor]:
        call = decode(fp8, 4, 2, 32, 300, seed=seed)
        caches = [torch.zeros(64, 32, 1, 132, dtype=torch.uint8, device=DEVICE) for _ in range(2)]
        for cache, tiles in zip(caches, (False, True), strict=True):
            cache[: len(call.keys)] = call.cache(tiles=tiles)
        table = torch.full((4, 13), -1, dtype=torch.int32, device=DEVICE)
        table[:, : call.table.shape[1]] = call.table
        return [call.q_fp8, *caches, call.weights, call.lens, table]

    def step(q: torch.Tensor, flat: torch.Tensor, tiles: torch.Tensor, *rest: torch.Tensor) -> list[torch.Tensor]:
        weights, lens, table = rest
        out = torch.full((8, 500), 7.0, device=DEVICE)
        deepgemm_fp8_paged_mqa_logits(q, tiles, weights, out, lens, table, 500, Preshuffle=True, KVBlockSize=32)
        schedule = deep_gemm.get_paged_mqa_logits_metadata(lens, 32, deep_gemm.get_num_sms())
        theirs = deep_gemm.fp8_paged_mqa_logits(q, flat, weights, lens, table, schedule, 500, clean_logits=True)
        vllm = vllm_rocm.rocm_fp8_paged_mqa_logits(q, flat, weights, lens, table, schedule, 500, compress_ratio=4)
        return [out, theirs, vllm]

    held = operands(0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(*held)  # compiles
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(*held)
    for seed in (1, 2, 3):
        other = operands(seed)
        for tensor, changed in zip(held, other, strict=True):
            tensor.view(torch.uint8).copy_(changed.view(torch.uint8))
        graph.replay()
        for replayed, expected in zip(captured, step(*other), strict=True):
            assert torch.equal(replayed.view(torch.int32), expected.view(torch.int32))
        assert torch.equal(captured[1], captured[2])


@pytest.mark.parametrize("next_n", [1, 2])
@pytest.mark.parametrize("heads", [16, 32, 64])
def test_aiter_in_mxfp4(heads: int, next_n: int) -> None:
    """FlyDSL's two functions and the Gluon kernel's, in the layouts of their caches."""
    lens = [5000, 1, 0, 900, 64]
    call = mx_paged.make_call(lens, next_n, heads, 128, device=DEVICE)
    answer = mx_paged.formula(call, 5000)
    logits = flydsl_pa_mqa_logits_fp4(**flydsl_operands(call), context_lens=call.context_lens, max_seq_len=5000, next_n=next_n)
    agree(logits, answer)
    if next_n == 1:
        rows = torch.arange(len(lens), device=DEVICE)
        windows = {"row_to_batch": rows, "local_starts": rows * 0, "local_ends": call.context_lens}
        agree(flydsl_pa_mqa_logits_fp4_prefill(**flydsl_operands(call, rows=True), **windows, max_seq_len=5000), answer)
    layout = "gluon-32" if heads >= 32 else "gluon-16"
    call = mx_paged.make_call(lens, next_n, heads, 128, layout=layout, gap=16, device=DEVICE)
    agree(paged_mxfp4_mqa_logits(**gluon_operands(call), max_model_len=5000), mx_paged.formula(call, 5000, layout))


def agree(logits: torch.Tensor, answer: judge.Answer) -> None:
    """In the cells that rows see; all others are -inf."""
    inside = answer.inside
    judge.agree(logits[inside], answer.logits[inside], answer.magnitude[inside], on_matrix_unit=True)
    assert logits[~inside].isneginf().all()
