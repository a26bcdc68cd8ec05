"""vLLM's own wrappers of DeepGEMM (``vllm.utils.deep_gemm``), with the copy in its wheel, on what stands in for an H100."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from engines import stubs
from support import judge, mx_logits, mx_paged, paged, sparse

stubs.only_in_the_session_of("vllm")
stubs.for_vllm()

from vllm.third_party import deep_gemm as vendored  # noqa: E402 - after the stubs
from vllm.utils import deep_gemm as wrappers  # noqa: E402

from capgate.kernels import dropin  # noqa: E402

TAKEN = (
    "fp8_fp4_mqa_logits",
    "fp8_fp4_paged_mqa_logits",
    "get_paged_mqa_logits_metadata",
    "fp8_fp4_sparse_mqa_logits",
    "fp8_fp4_paged_sparse_mqa_logits",
    "get_sparse_mqa_logits_metadata",
    "get_paged_sparse_mqa_logits_metadata",
)
wrappers._lazy_init()  # so that globals hold the library's
ORIGINALS = {name: getattr(vendored, name) for name in (*TAKEN, "get_mqa_logits_metadata", "get_num_sms")}


def held() -> dict[str, Any]:
    """What vLLM's wrappers call."""
    return {name: getattr(wrappers, f"_{name}_impl") for name in TAKEN}


@pytest.fixture
def report() -> Iterator[dropin.Report]:
    done = dropin.install("deep_gemm")
    yield done
    dropin.uninstall("deep_gemm")


def test_wrappers_call_ours_and_uninstall_restores() -> None:
    assert held() == {name: ORIGINALS[name] for name in held()}
    report = dropin.install("deep_gemm")
    for name, function in held().items():
        assert function is not ORIGINALS[name], name
        assert getattr(vendored, name) is function, name
    assert vendored.get_num_sms is ORIGINALS["get_num_sms"]
    assert {name for taken in report.taken for name in taken.functions} >= set(TAKEN)
    places = {place for taken in report.taken for place in taken.places}
    assert places >= {f"vllm.utils.deep_gemm._{name}_impl" for name in TAKEN}
    assert places >= {f"vllm.third_party.deep_gemm.{name}" for name in TAKEN}
    assert not [left for left in report.left if set(left.functions) & set(TAKEN)], str(report)
    dropin.uninstall("deep_gemm")
    assert held() == {name: ORIGINALS[name] for name in held()}
    assert {name: getattr(vendored, name) for name in ORIGINALS} == ORIGINALS


@pytest.mark.parametrize("windows", ["packed", "causal", "suffix"])
def test_prefill(report: dropin.Report, windows: str) -> None:
    call = judge.make_call(12, 48, 32, 128, windows)
    longest = int((call.ends - call.starts).max())
    logits = wrappers.fp8_fp4_mqa_logits((call.q, None), (call.k, call.k_scale), call.weights, call.starts, call.ends, longest)
    assert (logits.shape, logits.dtype, logits.stride()) == ((12, longest), torch.float32, (256, 1))
    right = judge.formula(call, longest)
    judge.agree(logits[right.inside], right.logits[right.inside], right.magnitude[right.inside])


@pytest.mark.parametrize(("next_n", "gap"), [(1, 0), (2, 0), (4, 64), (6, 0)])
def test_decode(report: dropin.Report, next_n: int, gap: int) -> None:
    """Native drafts: [B, next_n] lengths, each row its own; pages may be farther apart than they are long."""
    ends = [300, 0, 64, 129]
    lens = [[max(0, end - next_n + draft + 1) for draft in range(next_n)] for end in ends]
    call = paged.make_call(lens, next_n, heads=32, dim=128, gap=gap)
    schedule = wrappers.get_paged_mqa_logits_metadata(call.context_lens, 64, stubs.SMS)
    slots = stubs.SMS // 2 if next_n == 4 else stubs.SMS  # vLLM's rule for an sm90
    assert (schedule.shape, schedule.dtype) == ((slots + 1, 2), torch.int32)
    logits = wrappers.fp8_fp4_paged_mqa_logits(
        (call.q, None), call.kv_cache, call.weights, call.context_lens, call.block_table, schedule, max_model_len=400
    )
    assert (logits.shape, logits.dtype, logits.stride()) == ((4 * next_n, 400), torch.float32, (512, 1))
    right = paged.formula(call, 400)
    judge.agree(logits[right.inside], right.logits[right.inside], right.magnitude[right.inside])


def test_decode_of_rows_that_share_requests(report: dropin.Report) -> None:
    """The form of an sm100, and of what is flattened: a row for each token, and the request of each."""
    lens, rows_of = [70, 71, 72, 5, 300, 301], torch.tensor([0, 0, 0, 1, 2, 2], dtype=torch.int32)
    call = paged.make_call([[length] for length in lens], heads=32, dim=128)
    table = call.block_table.clone()
    schedule = wrappers.get_paged_mqa_logits_metadata(call.context_lens, 64, stubs.SMS, indices=rows_of)
    logits = wrappers.fp8_fp4_paged_mqa_logits(
        (call.q, None), call.kv_cache, call.weights, call.context_lens, table, schedule, 320, indices=rows_of
    )
    right = paged.formula(call, 320)
    judge.agree(logits[right.inside], right.logits[right.inside], right.magnitude[right.inside])


def test_schedules_are_in_deep_gemm_s_own_format(report: dropin.Report) -> None:
    """Units of 256 keys, the last workers one more, and an end that a reader meets."""
    lengths = torch.tensor([[300], [0], [1000]], dtype=torch.int32)
    schedule = wrappers.get_paged_mqa_logits_metadata(lengths, 64, 4)
    assert schedule.tolist() == [[0, 0], [0, 1], [2, 0], [2, 2], [3, 0]]


def test_prefill_and_decode_of_mxfp4_keys(report: dropin.Report) -> None:
    """What vLLM passes on an sm100: FP4 as int8, scales of q, and weights in bfloat16."""
    call = mx_logits.make_call(4, 32, 32, 128, windows="causal")
    call = call._replace(weights=call.weights.bfloat16().float())
    q, kv = (call.q.view(torch.int8), call.q_scale), (call.k.view(torch.int8), call.k_scale)
    logits = wrappers.fp8_fp4_mqa_logits(q, kv, call.weights.bfloat16(), call.starts, call.ends, 32)
    assert (logits.dtype, logits.stride()) == (torch.bfloat16, (512, 1))
    right = judge.formula(mx_logits.meaning(call), 32)
    judge.agree(logits[right.inside], right.logits[right.inside], right.magnitude[right.inside])

    cached = mx_paged.make_call([70, 5, 300], 1, 32, 128, gap=60)
    cached = cached._replace(weights=cached.weights.bfloat16().float())
    lens, rows_of = cached.context_lens[:, None], torch.arange(3, dtype=torch.int32)
    schedule = wrappers.get_paged_mqa_logits_metadata(lens, 64, stubs.SMS, indices=rows_of)
    q = (cached.q.view(torch.int8), cached.q_scale)
    logits = wrappers.fp8_fp4_paged_mqa_logits(
        q, cached.kv_cache, cached.weights.bfloat16(), lens, cached.block_table, schedule, 320, indices=rows_of
    )
    assert (logits.dtype, logits.stride()) == (torch.bfloat16, (1536, 1))
    right = mx_paged.formula(cached, 320)
    judge.agree(logits[right.inside], right.logits[right.inside], right.magnitude[right.inside])


def test_the_candidate_path_of_v4_1(report: dropin.Report) -> None:
    """Metadata once, logits of listed blocks in every layer: windows that begin within a block, and a paged cache."""
    assert wrappers.has_deep_gemm_sparse_mqa()
    call = sparse.make_call([(0, 70), (17, 90), (64, 110)], 3, 110, 6, 8, 32, 128, relative=False, pair=("mxfp4", "mxfp4"))
    metadata = wrappers.get_sparse_mqa_logits_metadata(call.starts, call.ends, 110, call.candidates, torch.int8, 8)
    q, kv = (call.q.view(torch.int8), call.q_scale), (call.k.view(torch.int8), call.k_scale)
    for weights in (call.weights.bfloat16(), -call.weights.bfloat16()):
        logits = wrappers.fp8_fp4_sparse_mqa_logits(q, kv, weights, metadata, 6, 8)
        _agree(sparse.formula(call._replace(weights=weights.float()), 8, relative=False), logits)

    call = sparse.make_paged_call([70, 5, 133], 6, heads=32, dim=128, gap=60, pair=("mxfp4", "mxfp4"))
    rows = (call.context_lens, call.block_table, torch.arange(3, dtype=torch.int32))
    metadata = wrappers.get_paged_sparse_mqa_logits_metadata(*rows, 64, call.candidates, torch.int8, 8)
    q, weights = (call.q.view(torch.int8), call.q_scale), call.weights.bfloat16()
    logits = wrappers.fp8_fp4_paged_sparse_mqa_logits(q, call.kv_cache, weights, metadata, 6, 8)
    _agree(sparse.formula(call._replace(weights=weights.float()), 8, relative=True), logits)


def _agree(right: judge.Answer, logits: torch.Tensor) -> None:
    """In the cells that are of keys which the row sees."""
    assert (logits.dtype, logits.shape, logits.stride(0) % 512) == (torch.bfloat16, right.logits.shape, 0)
    seen = right.inside & right.logits.isfinite()
    judge.agree(logits[seen], right.logits[seen], right.magnitude[seen])
