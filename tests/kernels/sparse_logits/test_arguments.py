"""What the sparse logits refuse beyond their tables of operands, and their operators."""

import re
from typing import Any

import pytest
import torch

from capgate.kernels import (
    mx_paged_sparse_mqa_logits,
    mx_sparse_mqa_logits,
    paged_sparse_mqa_logits,
    sparse_mqa_logits,
    sparse_mqa_schedule,
)
from support import sparse

pytestmark = pytest.mark.any_triton
SCHEDULE = torch.zeros(2, 5, dtype=torch.int32).T


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({}, {"candidate_block": 12}, "candidate_block: got 12, needs 8, 16, 32 or 64"),
        ({"candidates": torch.zeros(2, 4, dtype=torch.int32)}, {}, "candidates: got shape (2, 4), needs a first size that"),
        ({}, {"schedule": SCHEDULE}, "schedule: got strides (1, 5), needs it contiguous"),
        ({}, {"schedule_chunk_keys": 64}, "schedule_chunk_keys: got 64, needs 128 or 256"),
        ({}, {"out": torch.zeros(3, 40)}, "out: got shape (3, 40), needs [3, 32]"),
        ({}, {"variant": "gluon_cdna3"}, "variant: sparse_mqa_logits has no variant 'gluon_cdna3'"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], options: dict[str, Any], words: str) -> None:
    call = sparse.make_call("full", 3, 50, 4)._replace(**changes)
    out = options.pop("out", torch.full((3, 32), 7.0))
    with pytest.raises(ValueError, match=re.escape(words)):
        sparse_mqa_logits(*call, out=out, **options)
    assert out.eq(7.0).all() or not out.any()


def test_as_many_rows_share_a_list_as_a_grid_has_room_for() -> None:
    call = sparse.make_call("full", 1, 50, 4)

    def of(rows: int) -> sparse.SparseCall:
        wide = (call.q.expand(rows, -1, -1), call.k, call.k_scale, call.weights.expand(rows, -1))
        return sparse.SparseCall(*wide, call.starts.expand(rows), call.ends.expand(rows), call.candidates[:, :0])

    assert sparse_mqa_logits(*of(65535)).shape == (65535, 0)
    with pytest.raises(ValueError, match="candidates: got a list for 65536 rows each, needs 65535 rows at most to share one"):
        sparse_mqa_logits(*of(65536))


def test_lists_of_a_cache_are_of_rows_or_of_requests() -> None:
    call = sparse.make_paged_call([30, 9, 4], 4, 8, 2)
    with pytest.raises(ValueError, match="candidates: got 2 lists, needs 6, one for each row, or 3 of requests"):
        paged_sparse_mqa_logits(*call._replace(candidates=call.candidates[:2]))


def test_keys_in_mx_formats_go_with_their_queries() -> None:
    call = sparse.make_call("full", 3, 50, 4, dim=64, pair=("mxfp4", "mxfp4"))
    with pytest.raises(ValueError, match="k: got D 128 in mxfp4"):
        mx_sparse_mqa_logits(*call._replace(k=torch.zeros(50, 64, dtype=torch.uint8)))
    cached = sparse.make_paged_call([30, 9], 4, dim=64, pair=("mxfp4", "mxfp4"))
    with pytest.raises(ValueError, match="kv_cache: got keys of 132 bytes, needs 68"):
        mx_paged_sparse_mqa_logits(*cached._replace(kv_cache=torch.zeros(4, 64, 1, 132, dtype=torch.uint8)))
    with pytest.raises(ValueError, match="layout: got 'gluon-32', which has D 128, needs one with D 64"):
        mx_paged_sparse_mqa_logits(*cached, layout="gluon-32")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"most_keys": 0}, "most_keys: got 0, needs 1"),
        ({"next_n": 2, "starts": torch.zeros(3, dtype=torch.int32)}, "next_n: got 2, needs 1 where starts are given"),
        ({"chunk_keys": 64}, "chunk_keys: got 64, needs 128 or 256"),
        ({"out": torch.zeros(4, 2, dtype=torch.int32)}, "out: got shape (4, 2), needs [3, 2]"),
    ],
)
def test_schedules_refuse_by_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        sparse_mqa_schedule(torch.zeros(3, dtype=torch.int32), 2, **{"most_keys": 8, **options})


def test_empty_calls() -> None:
    none = sparse.make_call("full", 0, 50, 4)
    assert none.candidates.shape == (0, 4)
    assert sparse_mqa_logits(*none).shape == (0, 32)
    assert paged_sparse_mqa_logits(*sparse.make_paged_call([], 4, 8, 2)).shape == (0, 32)
    call = sparse.make_call("full", 2, 50, 4)
    assert sparse_mqa_logits(*call._replace(candidates=call.candidates[:, :0])).shape == (2, 0)
    none = call._replace(k=call.k[:0], k_scale=call.k_scale[:0])
    assert sparse_mqa_logits(*none, clean_logits=True).isneginf().all()
    cached = sparse.make_paged_call([0, 0], 4)
    assert paged_sparse_mqa_logits(*cached, clean_logits=True).isneginf().all()


def test_operators_pass_opcheck_and_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    allclose = torch.allclose  # it has no kernel for fp8: equal bytes stand in

    def compare(one: torch.Tensor, other: torch.Tensor, **tolerances: Any) -> bool:
        if one.dtype.is_floating_point and one.dtype.itemsize == 1:
            return torch.equal(one.view(torch.uint8), other.view(torch.uint8))
        return allclose(one, other, **tolerances)

    monkeypatch.setattr(torch, "allclose", compare)
    call, cached = sparse.make_call([(0, 50), (3, 40)], 2, 50, 4), sparse.make_paged_call([30, 9], 4)
    options = (8, True, "reference", 128)
    torch.library.opcheck(torch.ops.capgate.sparse_mqa_logits, (*call, None, torch.float32, *options, True))
    torch.library.opcheck(torch.ops.capgate.sparse_mqa_logits_out, (*call, None, torch.zeros(2, 32), *options, False))
    torch.library.opcheck(torch.ops.capgate.paged_sparse_mqa_logits, (*cached, None, torch.bfloat16, *options, "flat"))
    out = torch.zeros(2, 32)
    torch.library.opcheck(torch.ops.capgate.paged_sparse_mqa_logits_out, (*cached, None, out, *options, "flat"))
    torch.library.opcheck(torch.ops.capgate.sparse_mqa_schedule, (call.ends, call.starts, 3, 1, 32, 128))
    pair = ("mxfp4", "mxfp4")
    mx_call = sparse.make_call([(0, 50), (3, 40)], 2, 50, 4, dim=64, pair=pair)
    mx_cached = sparse.make_paged_call([30, 9], 4, dim=64, pair=pair)
    torch.library.opcheck(torch.ops.capgate.mx_sparse_mqa_logits, (*mx_call, None, torch.float32, *options, True))
    torch.library.opcheck(torch.ops.capgate.mx_paged_sparse_mqa_logits_out, (*mx_cached, None, out, *options, "flat"))
    schedule = torch.zeros(4, 2, dtype=torch.int32)
    torch.library.opcheck(torch.ops.capgate.sparse_mqa_schedule_out, (call.ends, None, schedule, 2, 32, 128))

    def step(call: Any, cached: Any) -> tuple[torch.Tensor, ...]:
        schedule = sparse_mqa_schedule(call.ends, 3, most_keys=32, starts=call.starts)
        dense = sparse_mqa_logits(*call, relative=True, clean_logits=True, schedule=schedule)
        mx = mx_sparse_mqa_logits(*mx_call, clean_logits=True), mx_paged_sparse_mqa_logits(*mx_cached, clean_logits=True)
        return dense * 2, paged_sparse_mqa_logits(*cached, clean_logits=True), *mx

    torch._dynamo.reset()
    for one, other in zip(torch.compile(step, backend="eager", fullgraph=True)(call, cached), step(call, cached), strict=True):
        assert torch.equal(one, other)
