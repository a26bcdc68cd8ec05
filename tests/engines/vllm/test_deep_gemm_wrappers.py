"""vLLM's own wrappers of DeepGEMM (``vllm.utils.deep_gemm``), with the copy in its wheel, on what stands in for an H100."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from engines import stubs
from support import judge, paged

stubs.only_in_the_session_of("vllm")
stubs.for_vllm()

from vllm.third_party import deep_gemm as vendored  # noqa: E402 - after the stubs
from vllm.utils import deep_gemm as wrappers  # noqa: E402

from capgate.kernels import dropin  # noqa: E402

TAKEN = ("fp8_fp4_mqa_logits", "fp8_fp4_paged_mqa_logits", "get_paged_mqa_logits_metadata")
SPARSE = (
    "fp8_fp4_sparse_mqa_logits",
    "fp8_fp4_paged_sparse_mqa_logits",
    "get_sparse_mqa_logits_metadata",
    "get_paged_sparse_mqa_logits_metadata",
)
wrappers._lazy_init()  # so that globals hold the library's
ORIGINALS = {name: getattr(vendored, name) for name in (*TAKEN, *SPARSE, "get_mqa_logits_metadata", "get_num_sms")}


def held() -> dict[str, Any]:
    """What vLLM's wrappers call."""
    return {name: getattr(wrappers, f"_{name}_impl") for name in (*TAKEN, *SPARSE)}


@pytest.fixture
def report() -> Iterator[dropin.Report]:
    done = dropin.install("deep_gemm")
    yield done
    dropin.uninstall("deep_gemm")


def test_wrappers_call_ours_and_uninstall_restores() -> None:
    assert held() == {name: ORIGINALS[name] for name in held()}
    report = dropin.install("deep_gemm")
    for name, function in held().items():
        assert (function is ORIGINALS[name]) == (name in SPARSE), name
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


def test_mx_operands_go_to_the_library(report: dropin.Report) -> None:
    """What vLLM passes on an sm100: scales of q, and weights in bfloat16. Nobody here but DeepGEMM can take it."""
    call = judge.make_call(4, 32, 32, 128, "causal")
    ones = torch.full((4, 32), 0x7F7F7F7F, dtype=torch.int32)
    q, kv = (call.q, ones), (call.k, torch.full((32,), 0x7F7F7F7F, dtype=torch.int32))
    weights = call.weights.bfloat16()
    with pytest.raises(stubs.Reached) as reached:
        wrappers.fp8_fp4_mqa_logits(q, kv, weights, call.starts, call.ends, 32)
    assert reached.value.name == "deep_gemm.fp8_fp4_mqa_logits"
    for got, given in zip(reached.value.arguments, (*q, *kv, weights, call.starts, call.ends, 32, None), strict=True):
        assert got is given


def test_sparse_functions_stay_the_library_s(report: dropin.Report) -> None:
    assert wrappers.has_deep_gemm_sparse_mqa()
    nothing = torch.zeros(0)
    with pytest.raises(stubs.Reached):
        wrappers.fp8_fp4_paged_sparse_mqa_logits((nothing, nothing), nothing, nothing, nothing, 4, 8)
