"""SGLang's own resolvers of DeepGEMM's functions, with the sgl-deep-gemm that it pins: both generations in one package."""

from collections.abc import Iterator

import pytest
import torch

from engines import stubs
from support import judge, mx_logits, paged

stubs.only_in_the_session_of("sglang")
stubs.for_sglang()

import deep_gemm  # noqa: E402 - after the stubs
from sglang.srt.layers.attention.dsa import utils  # noqa: E402

from capgate.kernels import dropin  # noqa: E402

RESOLVERS = {
    "fp8_mqa_logits": utils.resolve_fp8_mqa_logits_fn,
    "fp8_paged_mqa_logits": utils.resolve_fp8_paged_mqa_logits_fn,
    "get_paged_mqa_logits_metadata": utils.resolve_paged_mqa_logits_metadata_fn,
}
FAMILY = ("fp8_paged_mqa_logits", "fp8_fp4_paged_mqa_logits", "get_paged_mqa_logits_metadata")
ORIGINALS = {name: getattr(deep_gemm, name) for name in (*RESOLVERS, *FAMILY, "fp8_fp4_mqa_logits", "get_num_sms")}


@pytest.fixture
def report() -> Iterator[dropin.Report]:
    yield dropin.install("deep_gemm")
    dropin.uninstall("deep_gemm")


def test_resolvers_that_have_answered_are_asked_anew() -> None:
    """They keep a function object in a cache: installing clears it, and so does uninstalling."""
    assert {name: resolve() for name, resolve in RESOLVERS.items()} == {name: ORIGINALS[name] for name in RESOLVERS}
    dropin.install("deep_gemm")
    for name, resolve in RESOLVERS.items():
        assert resolve() is getattr(deep_gemm, name) is not ORIGINALS[name], name
    dropin.uninstall("deep_gemm")
    assert {name: resolve() for name, resolve in RESOLVERS.items()} == {name: ORIGINALS[name] for name in RESOLVERS}


def test_the_schedule_goes_with_every_reader(report: dropin.Report) -> None:
    """Both generations' readers are in the package: whoever is called reads what ours has made."""
    assert [taken for taken in report.taken if set(taken.functions) == set(FAMILY)], str(report)
    for name in FAMILY:
        assert getattr(deep_gemm, name) is not ORIGINALS[name], name
    assert deep_gemm.get_num_sms is ORIGINALS["get_num_sms"]


def test_prefill(report: dropin.Report) -> None:
    """As the indexer's ragged step calls it; and by the names that this package gives the windows."""
    call = judge.make_call(9, 40, 32, 128, "packed")
    right = judge.formula(call)
    function, operands = utils.resolve_fp8_mqa_logits_fn(), (call.q, (call.k, call.k_scale), call.weights)
    for logits in (
        function(*operands, call.starts, call.ends, clean_logits=False),
        function(*operands, ks=call.starts, ke=call.ends, clean_logits=False),
    ):
        assert (logits.shape, logits.dtype) == ((9, 40), torch.float32)
        judge.agree(logits[right.inside], right.logits[right.inside], right.magnitude[right.inside])


def test_nothing_is_cleaned_by_default(report: dropin.Report, monkeypatch: pytest.MonkeyPatch) -> None:
    """This package's default, and not the one of DeepGEMM 2.3."""
    call = judge.make_call(2, 40, 32, 128, "packed")
    windows = torch.zeros(2, dtype=torch.int32)
    allocate = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: allocate(*shape, **options).fill_(3))
    logits = utils.resolve_fp8_mqa_logits_fn()(call.q, (call.k, call.k_scale), call.weights, windows, windows)
    assert not (logits == float("-inf")).any()


@pytest.mark.parametrize("next_n", [1, 2])
def test_decode(report: dropin.Report, next_n: int) -> None:
    """The schedule and its reader as the indexer's paged step calls them: [B, 1] lengths, or [B, next_n] in a verify."""
    ends = [300, 64, 129, 7]
    lens = [[max(0, end - next_n + draft + 1) for draft in range(next_n)] for end in ends]
    call = paged.make_call(lens, next_n, heads=32, dim=128)
    schedule = utils.resolve_paged_mqa_logits_metadata_fn()(call.context_lens, 64, utils.resolve_num_sms())
    assert (schedule.shape, schedule.dtype) == ((stubs.SMS + 1, 2), torch.int32)
    logits = utils.resolve_fp8_paged_mqa_logits_fn()(
        call.q, call.kv_cache, call.weights, call.context_lens, call.block_table, schedule, 320, clean_logits=False
    )
    right = paged.formula(call, 320)
    judge.agree(logits[right.inside], right.logits[right.inside], right.magnitude[right.inside])


def test_a_schedule_of_sglang_s_own_kernel_is_read(report: dropin.Report) -> None:
    """Its JIT kernel makes DeepGEMM's format, in units of 256 keys; here one written by hand, with idle workers."""
    call = paged.make_call([[300], [1000]], heads=32, dim=128)
    schedule = torch.tensor([[0, 0], [0, 1], [0, 1], [1, 0], [1, 3], [2, 0]], dtype=torch.int32)
    logits = deep_gemm.fp8_paged_mqa_logits(*call, schedule, 1024, False)
    right = paged.formula(call, 1024)
    judge.agree(logits[right.inside], right.logits[right.inside], right.magnitude[right.inside])


def test_the_other_generation_in_the_same_package(report: dropin.Report) -> None:
    """Its sixth parameter is clean_logits here, and q may be a pair or a tensor."""
    call = judge.make_call(5, 40, 32, 128, "packed")
    right = judge.formula(call)
    for q in (call.q, (call.q, None)):
        logits = deep_gemm.fp8_fp4_mqa_logits(q, (call.k, call.k_scale), call.weights, call.starts, call.ends, True)
        assert logits.shape == (5, 40)
        assert torch.equal(logits == float("-inf"), ~right.inside)
        judge.agree(logits[right.inside], right.logits[right.inside], right.magnitude[right.inside])


def test_mxfp4_operands(report: dropin.Report) -> None:
    """As SGLang passes them on an sm100: FP4 as int8, with scales of q."""
    call = mx_logits.make_call(4, 32, 32, 128, windows="causal")
    q, kv = (call.q.view(torch.int8), call.q_scale), (call.k.view(torch.int8), call.k_scale)
    logits = deep_gemm.fp8_fp4_mqa_logits(q, kv, call.weights, call.starts, call.ends)
    right = judge.formula(mx_logits.meaning(call))
    judge.agree(logits[right.inside], right.logits[right.inside], right.magnitude[right.inside])
