"""DeepGEMM's functions themselves, in each of its generations: outputs as it allocates them, and schedules in its format."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capgate import compat
from capgate.kernels import fp8_paged_mqa_logits
from capgate.kernels.dropin import NotServed, deep_gemm, vllm_rocm
from capgate.kernels.dropin.binding import bind
from capgate.kernels.dropin.deep_gemm import dense, kinds, paged
from capgate.kernels.paged_mqa_logits import api
from support import judge, schedules, upstream

FN = torch.float8_e4m3fn
INF = float("inf")

# The dense functions, called alike: operands, and columns of the compressed output or 0.
DENSE: dict[str, Callable[..., torch.Tensor]] = {
    "legacy": lambda q, *operands, **options: deep_gemm.fp8_mqa_logits(q, *operands, **options),
    "sgl": lambda q, *operands, **options: deep_gemm.sgl.fp8_mqa_logits(q, *operands, **options),
    "intermediate": lambda q, *operands, **options: deep_gemm.before_2_8.fp8_fp4_mqa_logits((q, None), *operands, **options),
    "bare": lambda q, *operands, **options: deep_gemm.before_2_8.fp8_fp4_mqa_logits(q, *operands, **options),
}


# Outputs


@pytest.fixture
def sevens(monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory is full of sevens, so that what nobody writes can be told."""
    empty = torch.empty

    def filled(*size: Any, **options: Any) -> torch.Tensor:
        return empty(*size, **options).fill_(7)

    monkeypatch.setattr(torch, "empty", filled)


def memory_of(logits: torch.Tensor) -> torch.Tensor:
    """All rows and columns that there is memory for."""
    step = logits.stride(0)
    whole = logits.untyped_storage().nbytes() // logits.itemsize // step
    return logits.as_strided((whole, step), (step, 1), 0)


@pytest.mark.usefixtures("sevens")
@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("clean_logits", [True, False], ids=["clean", "unclean"])
@pytest.mark.parametrize(("rows", "heads", "room"), [(9, 32, 12), (8, 32, 8), (3, 64, 4), (5, 8, 16)])
def test_the_output_of_all_keys(name: str, clean_logits: bool, rows: int, heads: int, room: int) -> None:
    """In rows of N + 256 elements, for whole tiles of rows; the padding of a row is cleaned with it, or nothing is."""
    call = judge.make_call(rows, 70, heads, 64, "packed")
    q, k, scale, weights, starts, ends = call
    answer = judge.formula(call)
    logits = DENSE[name](q, (k, scale), weights, starts, ends, clean_logits=clean_logits)
    assert (logits.shape, logits.stride(), logits.dtype) == ((rows, 70), (512, 1), torch.float32)
    memory = memory_of(logits)
    assert memory.shape == (room, 512)
    judge.agree(logits[answer.inside], answer.logits[answer.inside], answer.magnitude[answer.inside])
    outside = torch.ones_like(memory, dtype=torch.bool)
    outside[:rows, :70] = ~answer.inside
    assert (memory[:rows][outside[:rows]] == (-INF if clean_logits else 7)).all()
    assert (memory[rows:] == 7).all()


@pytest.mark.usefixtures("sevens")
@pytest.mark.parametrize("name", [*DENSE, "current"])
@pytest.mark.parametrize(("rows", "heads", "room"), [(9, 32, 12), (8, 32, 8)])
@pytest.mark.parametrize(("columns", "step"), [(31, 256), (256, 256), (257, 512)])
def test_the_compressed_output(name: str, rows: int, heads: int, room: int, columns: int, step: int) -> None:
    """Column 0 is a row's first key; what is outside the window is left."""
    call = judge.make_call(rows, 70, heads, 64, "packed")
    q, k, scale, weights, starts, ends = call
    answer = judge.formula(call, columns)
    if name == "current":
        logits = deep_gemm.fp8_fp4_mqa_logits((q, None), (k, scale), weights, starts, ends, columns)
    else:
        logits = DENSE[name](q, (k, scale), weights, starts, ends, clean_logits=False, max_seqlen_k=columns)
    assert (logits.shape, logits.stride(), memory_of(logits).shape) == ((rows, columns), (step, 1), (room, step))
    judge.agree(logits[answer.inside], answer.logits[answer.inside], answer.magnitude[answer.inside])
    assert (logits[~answer.inside] == 7).all()


@pytest.mark.parametrize(("columns", "step"), [(0, 512), (31, 512), (300, 512), (513, 1024)])
def test_logits_in_bfloat16(columns: int, step: int) -> None:
    """Rounded once; rows are 1024 bytes or a multiple of that."""
    q, k, scale, weights, starts, ends = judge.make_call(9, 70, 32, 64, "packed")
    operands = ((q, None), (k, scale), weights.bfloat16(), starts, ends)
    options = {"clean_logits": False, "max_seqlen_k": columns}
    logits = deep_gemm.before_2_8.fp8_fp4_mqa_logits(*operands, **options, logits_dtype=torch.bfloat16)
    exact = deep_gemm.before_2_8.fp8_fp4_mqa_logits(*operands, **options)
    inside = judge.formula(judge.Call(q, k, scale, weights, starts, ends), columns or None).inside
    assert (logits.dtype, logits.stride(), memory_of(logits).shape) == (torch.bfloat16, (step, 1), (12, step))
    assert torch.equal(logits[inside], exact[inside].bfloat16())


@pytest.mark.parametrize("columns", [150, 600])
def test_paged_logits_in_bfloat16(columns: int) -> None:
    call = upstream.Decode("cpu", 3, 2, 32, 64, 100, 32, two_d=True, dtype=FN)
    schedule = deep_gemm.get_paged_mqa_logits_metadata(call.lens, 32, 5)
    operands = ((call.q_fp8, None), call.cache(), call.weights.bfloat16(), call.lens, call.table, schedule, columns)
    logits = deep_gemm.before_2_8.fp8_fp4_paged_mqa_logits(*operands, logits_dtype=torch.bfloat16)
    seen = torch.arange(columns) < call.seen[:, None]
    assert (logits.dtype, logits.stride()) == (torch.bfloat16, (-(-columns // 512) * 512, 1))
    exact = deep_gemm.fp8_fp4_paged_mqa_logits(*operands)
    assert torch.equal(logits[seen], exact[seen].bfloat16())


@pytest.mark.parametrize("dtype", [torch.float16, 32, None])
def test_logits_in_other_dtypes(dtype: Any) -> None:
    q, k, scale, weights, starts, ends = judge.make_call(4, 70, 32, 64, "packed")
    with pytest.raises((ValueError, TypeError), match=r"^logits_dtype: got"):
        deep_gemm.before_2_8.fp8_fp4_mqa_logits(q, (k, scale), weights, starts, ends, logits_dtype=dtype)


def test_compressed_rows_are_not_cleaned() -> None:
    q, k, scale, weights, starts, ends = judge.make_call(4, 70, 32, 64, "packed")
    with pytest.raises(ValueError, match="clean_logits: got True"):
        deep_gemm.fp8_mqa_logits(q, (k, scale), weights, starts, ends, max_seqlen_k=31)


def test_windows_by_sgl_s_names() -> None:
    q, k, scale, weights, starts, ends = judge.make_call(4, 70, 32, 64, "packed")
    logits = deep_gemm.sgl.fp8_mqa_logits(q, (k, scale), weights, ks=starts, ke=ends, clean_logits=True)
    assert torch.equal(logits, deep_gemm.fp8_mqa_logits(q, (k, scale), weights, starts, ends))


@pytest.mark.parametrize("columns", [0, -1, True])
def test_2_8_always_compresses(columns: int) -> None:
    q, k, scale, weights, starts, ends = judge.make_call(4, 70, 32, 64, "packed")
    with pytest.raises((ValueError, TypeError), match="max_seqlen_k: got"):
        deep_gemm.fp8_fp4_mqa_logits((q, None), (k, scale), weights, starts, ends, columns)


# What is not served


def calls_of(q: Any, kv: Any) -> list[Callable[[], Any]]:
    """Every function that takes queries of both kinds, with these."""
    rows = torch.zeros(2).int()
    operands = (q, kv, torch.zeros(2, 4), rows, rows)
    found = [lambda: deep_gemm.fp8_fp4_mqa_logits(*operands, 8), lambda: deep_gemm.before_2_8.fp8_fp4_mqa_logits(*operands)]
    if kv is not None:
        return found
    table = torch.zeros(2, 1).int()
    decode = (q, torch.zeros(1, 64, 1, 36).byte(), torch.zeros(2, 4), rows, table, None, 8)
    return [
        lambda: deep_gemm.fp8_fp4_paged_mqa_logits(*decode),
        lambda: deep_gemm.before_2_8.fp8_fp4_paged_mqa_logits(*decode),
    ]


FP8, FP4 = torch.zeros(2, 4, 32).to(FN), torch.zeros(2, 4, 16, dtype=torch.int8)
KV = (torch.zeros(8, 32).to(FN), torch.zeros(8))
UNSCALED = {
    "fp4": ((FP4, None), KV, "queries in FP4 without scales"),
    "fp4 keys": ((FP8, None), (torch.zeros(8, 16, dtype=torch.int8), torch.zeros(8)), "keys in FP4"),
    "key scales": ((FP8, None), (KV[0], torch.zeros(8).int()), "keys with UE8M0 scales"),
    "paged fp4": ((FP4[:, None], None), None, "queries in FP4 without scales"),
}


@pytest.mark.parametrize(("q", "kv", "reason"), UNSCALED.values(), ids=UNSCALED)
def test_queries_without_scales_go_with_fp8_keys_alone(q: Any, kv: Any, reason: str) -> None:
    for call in calls_of(q, kv):
        with pytest.raises(NotServed, match=f"^{reason}"):
            call()


@pytest.mark.parametrize("q", [(), (FP8,), (FP8, None, None), None, (None, None), 3], ids=str)
def test_what_are_no_queries(q: Any) -> None:
    for call in (*calls_of(q, KV), *calls_of(q, None)):
        with pytest.raises(TypeError, match=r"^q: got .*, needs "):
            call()


def test_a_query_with_a_scale_is_not_for_fp8() -> None:
    """DeepGEMM's fp8_fp4 functions take q as a pair."""
    q, k, scale, weights, starts, ends = judge.make_call(3, 5, 32, 64)
    with pytest.raises(TypeError, match=r"q: got tuple, needs a torch\.Tensor"):
        deep_gemm.fp8_mqa_logits((q, None), (k, scale), weights, starts, ends)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(()).to(FN)}, r"q: got shape \(\), needs \[S, H, D\]"),
        ({"kv": (torch.zeros(()).to(FN), torch.zeros(4))}, r"k: got shape \(\), needs \[N, 32\] to match q"),
        ({"kv": (torch.zeros(4, 32).to(FN), 1.0)}, "kv: got tuple, needs a pair of tensors"),
        ({"kv": (torch.zeros(4, 32).to(FN), torch.zeros(4).to_sparse())}, "kv: got a tensor of layout torch.sparse_coo"),
        ({"max_seqlen_k": True}, "max_seqlen_k: got bool, needs an int"),
        ({"max_seqlen_k": -4}, "max_seqlen_k: got -4, needs 0 or more"),
        ({"clean_logits": 4}, "clean_logits: got int, needs a bool"),  # what a newer DeepGEMM has in this place
    ],
)
def test_what_deep_gemms_dense_function_does_not_take(change: dict[str, Any], message: str) -> None:
    good = {
        "q": torch.zeros(1, 4, 32).to(FN),
        "kv": (torch.zeros(4, 32).to(FN), torch.zeros(4)),
        "weights": torch.zeros(1, 4),
        "cu_seq_len_k_start": torch.zeros(1).int(),
        "cu_seq_len_k_end": torch.ones(1).int(),
    }
    deep_gemm.fp8_mqa_logits(**good)
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        deep_gemm.fp8_mqa_logits(**good | change)


# Schedules


def test_the_schedule_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """In DeepGEMM's units; and vLLM's on ROCm is not looked at: it may be anything."""
    found = []
    monkeypatch.setattr(api, "fp8_paged_mqa_logits", lambda *tensors, **options: found.append(options))
    decode = upstream.Decode("cpu", 3, 2, 32, 64, 100, 32, dtype=FN)
    schedule = deep_gemm.get_paged_mqa_logits_metadata(decode.lens, 32, 5)
    operands = (decode.cache(), decode.weights, decode.lens, decode.table, schedule, 150)
    deep_gemm.fp8_paged_mqa_logits(decode.q_fp8, *operands)
    deep_gemm.fp8_fp4_paged_mqa_logits((decode.q_fp8, None), *operands)
    deep_gemm.before_2_8.fp8_fp4_paged_mqa_logits((decode.q_fp8, None), *operands)
    vllm_rocm.rocm_fp8_paged_mqa_logits(decode.q_fp8, *operands)
    for options in found[:3]:
        assert options["schedule"] is schedule
        assert (options["schedule_chunk_keys"], options["max_context_len"], options["clean_logits"]) == (256, 150, False)
    assert "schedule" not in found[3]


LENGTHS = st.one_of(
    st.lists(st.integers(-2, 1500), max_size=12),
    st.integers(1, 4).flatmap(
        lambda n: st.lists(st.lists(st.integers(-2, 1500), min_size=n, max_size=n), min_size=1, max_size=8)
    ),
)


@settings(max_examples=60)
@given(lens=LENGTHS, workers=st.integers(1, 40))
def test_the_schedule_is_deep_gemm_s(lens: Sequence[Any], workers: int) -> None:
    """Word for word, for lengths of requests and of rows; whoever reads it as described takes every unit once and ends."""
    with compat.override(variant={"paged_mqa_schedule": "reference"}):
        schedule = deep_gemm.get_paged_mqa_logits_metadata(torch.tensor(lens, dtype=torch.int32), 64, workers)
    units = schedules.units_of(lens, 256)
    assert [tuple(entry) for entry in schedule.tolist()] == schedules.even(units, workers)
    taken = [place for worker in schedules.read(schedule.tolist(), units) for place in worker]
    assert taken == schedules.places(units)


@pytest.mark.parametrize("next_n", [1, 2])
def test_schedules_that_others_made(interpreter: None, next_n: int) -> None:
    """Of any number of workers, however they share the units out, as long as the format is DeepGEMM's."""
    call = upstream.Decode("cpu", 3, next_n, 32, 32, 400, 64, two_d=True, dtype=FN)
    units, draw = schedules.units_of(call.lens.tolist(), 256), random.Random(next_n)
    for workers in (1, 2, 5):
        starts = [0, *sorted(draw.choices(range(sum(units) + 1), k=workers - 1))]
        schedule = torch.tensor(schedules.cut(units, starts), dtype=torch.int32)
        with compat.override(variant={"fp8_paged_mqa_logits": "classic"}):
            logits = deep_gemm.fp8_fp4_paged_mqa_logits(
                (call.q_fp8, None), call.cache(), call.weights, call.lens, call.table, schedule, 600
            )
        outside = torch.arange(600) >= call.seen[:, None]
        call.judge(logits.masked_fill(outside, -INF))


@pytest.mark.parametrize(
    ("target", "own"), [("cpu", True), ("cuda:90", True), ("cuda:100", False), ("cuda:120", False), ("hip:gfx950", False)]
)
def test_where_the_format_is_known(target: Any, own: bool) -> None:
    assert kinds.has_own_format(target) == own


def test_elsewhere_schedules_are_left_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels read theirs, and ours looks at none: here, at one that would leave out every key."""
    for module in (dense, paged):
        monkeypatch.setattr(module, "has_own_format", lambda device: False)
    call = upstream.Decode("cpu", 3, 1, 32, 64, 100, 32, two_d=True, dtype=FN)
    with pytest.raises(NotServed, match="a schedule of paged logits on this architecture"):
        deep_gemm.get_paged_mqa_logits_metadata(call.lens, 32, 5)
    with pytest.raises(NotServed, match="a schedule of dense logits on this architecture"):
        deep_gemm.get_mqa_logits_metadata(call.lens[:, 0], call.lens[:, 0], 8, 32)
    nothing = torch.zeros(6, 2, dtype=torch.int32)
    logits = deep_gemm.fp8_paged_mqa_logits(
        call.q_fp8, call.cache(), call.weights, call.lens, call.table, nothing, 150, clean_logits=True
    )
    call.judge(logits)


@pytest.mark.filterwarnings("error:Dynamo")
def test_a_step_is_compiled_whole() -> None:
    """With what stands in the library's place: the schedule, and the logits from it."""

    def fails(*arguments: Any, **keywords: Any) -> None:
        raise AssertionError

    make = bind(deep_gemm.get_paged_mqa_logits_metadata, fails).function
    score = bind(deep_gemm.fp8_fp4_paged_mqa_logits, fails).function

    def step(
        q: torch.Tensor, cache: torch.Tensor, weights: torch.Tensor, lens: torch.Tensor, table: torch.Tensor
    ) -> torch.Tensor:
        return score((q, None), cache, weights, lens, table, make(lens, 64, 4), 150)

    call = upstream.Decode("cpu", 3, 2, 32, 64, 100, 64, two_d=True, dtype=FN)
    logits = torch.compile(step, backend="eager", fullgraph=True)(call.q_fp8, call.cache(), call.weights, call.lens, call.table)
    call.judge(logits.masked_fill(torch.arange(150) >= call.seen[:, None], -INF))


@pytest.mark.parametrize(("rows", "heads", "tiles"), [(0, 32, 0), (1, 32, 1), (9, 32, 3), (9, 64, 5), (2, 256, 2)])
def test_the_dense_schedule_has_deep_gemm_s_size(monkeypatch: pytest.MonkeyPatch, rows: int, heads: int, tiles: int) -> None:
    monkeypatch.setattr(deep_gemm.processors, "_num_sms", 5)
    starts = torch.zeros(rows, dtype=torch.int32)
    schedule = deep_gemm.get_mqa_logits_metadata(starts, starts, 100, heads)
    assert (schedule.dtype, schedule.shape) == (torch.int32, (16 + 2 * tiles,))
    with pytest.raises(ValueError, match="num_heads: got 0"):
        deep_gemm.get_mqa_logits_metadata(starts, starts, 100, 0)


def test_deep_gemm_s_indices_change_nothing() -> None:
    """They say which rows are of one request. Rows bring their own lengths and blocks, so that the logits are the same."""
    call = upstream.Decode("cpu", 4, 1, 32, 64, 100, 32, two_d=True, dtype=FN)
    table, lens = call.table[[0, 0, 1, 1]].contiguous(), call.lens[[0, 0, 1, 1]] - torch.tensor([[1], [0], [1], [0]]).int()
    indices = torch.tensor([0, 0, 1, 1], dtype=torch.int32)
    logits = []
    for which in (None, indices):
        schedule = deep_gemm.get_paged_mqa_logits_metadata(lens, 32, 5, indices=which)
        assert (schedule.shape, schedule.dtype) == ((6, 2), torch.int32)
        operands = (call.q_fp8, call.cache(), call.weights, lens, table, schedule, 150)
        logits.append(deep_gemm.fp8_paged_mqa_logits(*operands, clean_logits=True, indices=which))
    assert torch.equal(*logits)
    expected = fp8_paged_mqa_logits(*operands[:5], max_context_len=150, clean_logits=True)
    assert torch.equal(logits[0], expected)


@pytest.mark.parametrize(
    ("next_n", "indices", "message"),
    [
        (2, torch.zeros(3).int(), "indices: got a tensor with 2 rows to a request, needs None or next_n of 1"),
        (1, torch.zeros(4).int(), r"indices: got shape \(4,\), needs \[3\]"),
        (1, torch.zeros(3).long(), "indices: got torch.int64, needs torch.int32"),
        (1, 5, "indices: got int, needs a torch.Tensor"),
        (1, torch.zeros(3).int().to_sparse(), "indices: got a tensor of layout torch.sparse_coo"),
    ],
)
def test_indices_that_deep_gemm_does_not_take_either(next_n: int, indices: Any, message: str) -> None:
    call = upstream.Decode("cpu", 3, next_n, 32, 64, 50, 32, two_d=True, dtype=FN)
    schedule = deep_gemm.get_paged_mqa_logits_metadata(call.lens, 32, 5)
    with pytest.raises((ValueError, TypeError), match=message):
        deep_gemm.fp8_paged_mqa_logits(
            call.q_fp8, call.cache(), call.weights, call.lens, call.table, schedule, 80, indices=indices
        )
    with pytest.raises((ValueError, TypeError), match=message):
        deep_gemm.get_paged_mqa_logits_metadata(call.lens, 32, 5, indices)


def test_num_sms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deep_gemm.processors, "_num_sms", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert deep_gemm.get_num_sms() == 1
    deep_gemm.set_num_sms(7)
    assert deep_gemm.get_num_sms() == 7
    with pytest.raises(ValueError, match="num_sms: got 0, needs 1 or more"):
        deep_gemm.set_num_sms(0)
    with pytest.raises(TypeError, match="num_sms: got bool, needs an int"):
        deep_gemm.set_num_sms(True)
