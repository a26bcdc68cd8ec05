"""The fused selections on a GPU: what two steps return, bit for bit, by way of every slow path."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from capgate import compat
from capgate.kernels import select_keys, select_paged_keys
from capgate.kernels.common.cache import keys_of, scales_of
from capgate.kernels.common.logits import FP8
from capgate.kernels.fused_selection import tunings
from capgate.kernels.fused_selection.operation import Problem, dense
from capgate.kernels.fused_selection.operation import paged as cached
from capgate.kernels.key_selection.operands import Dense, Paged
from support import fused_selection as fused
from support import judge, paged, selection, taking

pytestmark = pytest.mark.gpu
TRITON = [name for name in dense.variants if name != "reference"]
CACHED = [name for name in cached.variants if name != "reference"]
ORDERS = ["random", "ascending", "descending", "equal", "plateau", "nans"]


@contextmanager
def short_lists() -> Iterator[None]:
    """Rows of every table with lists of 256 entries, or twice as many where they are four runs: looked at after few tiles."""
    with pytest.MonkeyPatch.context() as patch, compat.override():
        names = ("CLASSIC", "CLASSIC_PAGED", "GLUON_CDNA4", "GLUON_HOPPER", "GLUON_HOPPER_PAGED")
        for table in (getattr(tunings, name) for name in names):
            for key, row in list(table.items()):
                patch.setitem(table, key, row._replace(block_entries=256, planes=4))
        yield


def make_call(order: str, rows: int, keys: int, heads: int, dim: int) -> judge.Call:
    """Ragged windows, and keys whose logits come in an order."""
    call = judge.make_call(rows, keys, heads, dim, "ragged", seed=keys, device="cuda")
    if order == "random":
        return call
    growing = torch.linspace(1, 2, keys, device="cuda")
    scales = scales_in(order, growing)
    if order == "nans":
        return call._replace(k_scale=scales)
    return call._replace(k=call.k[:1].expand(keys, -1).contiguous(), k_scale=scales, weights=call.weights.abs())


def scales_in(order: str, growing: torch.Tensor) -> torch.Tensor:
    """Scales of as many keys as there are in a tensor of growing numbers."""
    draw = torch.rand(len(growing), generator=torch.Generator("cuda").manual_seed(len(growing)), device="cuda")
    return {
        "ascending": growing,
        "descending": 3 - growing,
        "equal": torch.ones_like(growing),
        "plateau": (draw < 0.02) * growing,
        "nans": torch.where(draw < 0.3, float("nan"), growing),
    }[order]


def make_paged_call(order: str, lens: Any, next_n: int, heads: int, dim: int, block: int) -> paged.PagedCall:
    """As :func:`make_call` of a cache: keys of every request in the order, and blocks that the cache lacks."""
    call = paged.make_call(lens, next_n, heads, dim, block, gap=16, device="cuda")
    if order == "random":
        return paged.without_blocks(call, 7)
    if order != "nans":
        keys_of(call.kv_cache)[:] = keys_of(call.kv_cache)[call.block_table[0, 0], 0].clone()
    for request, seen in enumerate(call.context_lens.amax(-1).tolist() if call.context_lens.ndim == 2 else lens):
        position = torch.arange(seen, device="cuda")
        scales = scales_in(order, torch.linspace(1, 2, seen, device="cuda"))
        scales_of(call.kv_cache)[call.block_table[request, position // block].long(), position % block] = scales
    return call._replace(weights=call.weights if order == "nans" else call.weights.abs())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("rows", "keys", "heads", "dim", "top_k"),
    [(1101, 3003, 64, 128, 32), (3, 300_001, 64, 64, 7), (540, 2500, 40, 128, 48), (100, 12_500, 32, 32, 20)],
    ids=str,
)
@pytest.mark.parametrize("variant", TRITON)
def test_short_lists(
    gpu: torch.device, variant: str, order: str, rows: int, keys: int, heads: int, dim: int, top_k: int
) -> None:
    call = make_call(order, rows, keys, heads, dim)
    options: dict[str, Any] = {"top_k": top_k, "return_scores": True}
    problem = Problem(gpu, heads, dim, FP8[call.q.dtype], top_k, rows, keys, asked=True)
    with short_lists():
        taking.taken(dense, problem, variant)
        two, two_scores = select_keys(*call, **options, fused=False, logits_variant=variant)
        for _ in range(3):
            one, one_scores = select_keys(*call, **options, fused=True, variant=variant)
            assert torch.equal(one, two)
            assert selection.same(one_scores, two_scores)
        refreshed, tied, closed, reread = counts_of(problem, call, one, variant)
    assert refreshed > 0
    assert tied > 0 or order not in ("equal", "plateau")
    assert closed > 0 or order != "nans"
    if variant != "gluon_hopper":
        assert reread == 0
    elif order in ("equal", "plateau", "nans", "ascending"):
        assert reread > 0
    elif order == "random":
        assert reread < refreshed  # runs of ragged windows do not grow alike


def counts_of(problem: Problem, call: judge.Call, indices: torch.Tensor, variant: str) -> list[int]:
    """What a call counts, which writes to ``indices`` again."""
    counters = torch.zeros((4096, fused.COUNTS), dtype=torch.int32, device="cuda")
    kernel: Any = dense.load(dense.variants[variant])
    right = indices.clone()
    for launch in kernel.prepare(problem, Dense(*call), indices, None, max_window=None, relative=False, counters=counters):
        launch()
    assert torch.equal(indices, right)
    counts: list[int] = counters.sum(0).tolist()
    return counts


@pytest.mark.parametrize("top_k", [512, 1024, 2048])
def test_registers_hold_lists_of_models(gpu: torch.device, top_k: int) -> None:
    """Random keys are selected from in registers; large ones that come late, all in the last run, the other way, and so are
    equal ones."""
    rows, keys = 531, 40_003
    problem = Problem(gpu, 64, 128, "float8_e4m3fn", top_k, rows, keys, asked=True)
    taking.taken(dense, problem, "gluon_hopper")
    for order in ("random", "ascending", "late", "equal"):
        if order in ("ascending", "equal"):
            call = make_call(order, rows, keys, 64, 128)
        else:
            call = judge.make_call(rows, keys, 64, 128, "suffix", device="cuda")
        if order == "late":
            behind = torch.arange(keys, device="cuda") > keys - keys // 8
            call = call._replace(k_scale=torch.where(behind, 8.0, 1.0) * call.k_scale, weights=call.weights.abs())
        indices = select_keys(*call, top_k=top_k, fused=False, logits_variant="gluon_hopper")
        assert torch.equal(select_keys(*call, top_k=top_k, fused=True, variant="gluon_hopper"), indices)
        refreshed, tied, _, reread = counts_of(problem, call, indices, "gluon_hopper")
        assert refreshed > 0
        if order == "random":
            assert 50 * reread < refreshed
        elif order == "equal":
            assert min(tied, reread) > 0
        elif order == "late":
            assert 0 < reread < refreshed + rows  # which have one last selection each: not all before were in passes


# Each makes kernels of its own, which take a compiler ten seconds and more: apart, so that workers have some each.
RESULTS = ["absolute", "relative", "narrow", "slots"]


@pytest.mark.parametrize("kind", RESULTS)
@pytest.mark.parametrize("top_k", [512, 2048])
@pytest.mark.parametrize("variant", TRITON)
def test_lists_of_models(gpu: torch.device, variant: str, top_k: int, kind: str) -> None:
    """Rows that a program has alone, and rows that programs share, with all that a result may be."""
    call = judge.make_call(1101, 30_001, 64, 128, "ragged", device="cuda")
    taking.taken(dense, Problem(gpu, 64, 128, FP8[call.q.dtype], top_k, 1101, 30_001, asked=True), variant)
    options: dict[str, Any] = {"top_k": top_k}
    if kind == "relative":
        options["relative"] = True
    elif kind == "narrow":
        options["max_window"] = 20_000
    elif kind == "slots":
        options["page_table"] = torch.randint(-1, 999, (1101, 480), dtype=torch.int32, device="cuda")
        options["offsets"] = torch.arange(1101, dtype=torch.int32, device="cuda") % 64 * 3
        options["page_size"] = 64
    two = select_keys(*call, **options, fused=False, logits_variant=variant)
    assert torch.equal(select_keys(*call, **options, fused=True, variant=variant), two)


# --- cached keys ----------------------------------------------------------------------------------------------------------

UNEVEN = [40_000, 0, 5, 130, 9000, 64, 2500, 1, 20_001]
PER_ROW = [[700, 9000], [0, 12], [30_000, 29_000], [0, 0], [65, 64]]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("lens", "next_n", "heads", "dim", "block", "top_k"),
    [
        (UNEVEN, 1, 64, 128, 64, 32),
        ([300_001], 1, 64, 128, 64, 48),
        (UNEVEN, 2, 64, 128, 64, 48),
        (PER_ROW, 2, 32, 64, 96, 20),
        ([290_000, 0, 5, 130, 90_000], 5, 16, 32, 32, 7),  # a share is longer than a list
        ([20_000, 3000], 3, 128, 128, 128, 33),
    ],
    ids=str,
)
@pytest.mark.parametrize("variant", CACHED)
def test_short_lists_of_cached_keys(
    gpu: torch.device, variant: str, order: str, lens: Any, next_n: int, heads: int, dim: int, block: int, top_k: int
) -> None:
    call = make_paged_call(order, lens, next_n, heads, dim, block)
    columns, rows = 300_100, len(lens) * next_n
    options: dict[str, Any] = {"max_context_len": columns, "top_k": top_k, "return_scores": True}
    sizes = (top_k, rows, columns, next_n, block)
    problem = Problem(gpu, heads, dim, FP8[call.q.dtype], *sizes, asked=True)
    with short_lists():
        taking.taken(cached, problem, variant)
        two, two_scores = select_paged_keys(*call, **options, fused=False, logits_variant=variant)
        for _ in range(3):
            one, one_scores = select_paged_keys(*call, **options, fused=True, variant=variant)
            assert torch.equal(one, two)
            assert selection.same(one_scores, two_scores)
        counters = torch.zeros((8192, fused.COUNTS), dtype=torch.int32, device="cuda")
        kernel: Any = cached.load(cached.variants[variant])
        options = {"max_context_len": columns, "counters": counters}
        for launch in kernel.prepare(problem, Paged(*call), one, None, **options):
            launch()
    refreshed, tied, closed, _ = counters.sum(0).tolist()
    assert refreshed > 0
    assert tied > 0 or order not in ("equal", "plateau")
    assert closed > 0 or order != "nans"


@pytest.mark.parametrize("kind", ["absolute", "slots", "graph"])
@pytest.mark.parametrize(("next_n", "top_k"), [(1, 2048), (1, 512), (2, 2048), (4, 1024)], ids=str)
@pytest.mark.parametrize("variant", CACHED)
def test_lists_of_models_of_cached_keys(gpu: torch.device, variant: str, next_n: int, top_k: int, kind: str) -> None:
    """Requests that workers have alone and that they share, with all that a result may be; and lengths that a graph's replay
    finds changed."""
    lens = [131_072, 40_000, 3, 0, 70_001, 2048, 131_000, 9000]
    call = paged.make_call(lens, next_n, 64, 128, device="cuda")
    sizes = (top_k, len(lens) * next_n, 131_072, next_n)
    taking.taken(cached, Problem(gpu, 64, 128, FP8[call.q.dtype], *sizes, asked=True), variant)
    options: dict[str, Any] = {"max_context_len": 131_072, "top_k": top_k}
    if kind == "slots":
        options["page_table"] = torch.randint(-1, 99_999, (len(lens), 8200), dtype=torch.int32, device="cuda")
        options["offsets"] = torch.arange(len(lens) * next_n, dtype=torch.int32, device="cuda") * 3
        options["page_size"] = 16
    ways = [{"fused": False, "logits_variant": variant}, {"fused": True, "variant": variant}]
    two, one = (select_paged_keys(*call, **options, **way) for way in ways)
    assert torch.equal(one, two)
    if kind == "graph":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed = select_paged_keys(*call, **options, **ways[1])
        for shift in range(1, 4):
            call.context_lens.copy_(torch.tensor(lens, dtype=torch.int32).roll(shift).clamp(max=call.block_table.shape[1] * 64))
            call.block_table.copy_(call.block_table.roll(1, 0))
            graph.replay()
            assert torch.equal(replayed, select_paged_keys(*call, **options, **ways[0]))


@pytest.mark.parametrize("next_n", [1, 2])
@pytest.mark.parametrize("variant", CACHED)
def test_cached_keys_are_selected_alike_a_thousand_times(gpu: torch.device, variant: str, next_n: int) -> None:
    """A few pieces of a million had the scales of others once, which no single call shows: docs/design/fused_selection.md."""
    lens, columns, top_k = [65_536] * 32, 65_536, 2048
    call = paged.make_call(lens, next_n, 64, 128, device="cuda")
    options: dict[str, Any] = {"max_context_len": columns, "top_k": top_k, "return_scores": True}
    sizes = (top_k, len(lens) * next_n, columns, next_n)
    taking.taken(cached, Problem(gpu, 64, 128, FP8[call.q.dtype], *sizes, asked=True), variant)
    two, two_scores = select_paged_keys(*call, **options, fused=False, logits_variant=variant)
    wrong = torch.zeros((), dtype=torch.int32, device="cuda")
    for _ in range(1000):
        one, one_scores = select_paged_keys(*call, **options, fused=True, variant=variant)
        wrong += ((one != two) | (one_scores != two_scores)).any()
    assert wrong.item() == 0
