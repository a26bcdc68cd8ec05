"""The fused selections on a GPU: what two steps return, bit for bit, by way of every slow path."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from capgate import compat
from capgate.kernels import select_keys
from capgate.kernels.common.logits import FP8
from capgate.kernels.fused_selection import tunings
from capgate.kernels.fused_selection.operation import Problem, dense
from capgate.kernels.key_selection.operands import Dense
from support import fused_selection as fused
from support import judge, selection, taking

pytestmark = pytest.mark.gpu
TRITON = [name for name in dense.variants if name != "reference"]
ORDERS = ["random", "ascending", "descending", "equal", "plateau", "nans"]


@contextmanager
def short_lists() -> Iterator[None]:
    """Rows of every table with lists of 256 entries, or twice as many where they are four runs: looked at after few tiles."""
    with pytest.MonkeyPatch.context() as patch, compat.override():
        for table in (tunings.CLASSIC, tunings.GLUON_CDNA4, tunings.GLUON_HOPPER):
            for key, row in list(table.items()):
                patch.setitem(table, key, row._replace(block_entries=256, planes=4))
        yield


def make_call(order: str, rows: int, keys: int, heads: int, dim: int) -> judge.Call:
    """Ragged windows, and keys whose logits come in an order."""
    call = judge.make_call(rows, keys, heads, dim, "ragged", seed=keys, device="cuda")
    if order == "random":
        return call
    growing = torch.linspace(1, 2, keys, device="cuda")
    draw = torch.rand(keys, generator=torch.Generator("cuda").manual_seed(rows), device="cuda")
    scales = {
        "ascending": growing,
        "descending": 3 - growing,
        "equal": torch.ones_like(growing),
        "plateau": (draw < 0.02) * growing,
    }
    if order == "nans":
        return call._replace(k_scale=torch.where(draw < 0.3, float("nan"), growing))
    return call._replace(k=call.k[:1].expand(keys, -1).contiguous(), k_scale=scales[order], weights=call.weights.abs())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("rows", "keys", "heads", "dim", "top_k"),
    [(1101, 3003, 64, 128, 32), (3, 300_001, 64, 64, 7), (540, 2500, 40, 128, 48), (100, 2500, 32, 32, 20)],
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
