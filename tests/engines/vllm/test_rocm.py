"""vLLM's functions for ROCm (``rocm_aiter_mla_sparse``), and its indexer's step that calls them."""

from collections.abc import Iterator

import pytest
import torch

from engines import stubs
from support import judge, paged, upstream

stubs.only_in_the_session_of("vllm")
stubs.for_vllm()

import vllm.v1.attention.ops.rocm_aiter_mla_sparse as rocm  # noqa: E402 - after the stubs
from vllm.v1.worker.workspace import current_workspace_manager, init_workspace_manager  # noqa: E402

from capgate.kernels import dropin  # noqa: E402
from engines.vllm_step import Step  # noqa: E402

DROP_INS = ("vllm_rocm", "vllm", "deep_gemm")  # the last one because the builder of a step takes this for a CUDA device
NAMES = (
    "rocm_fp8_mqa_logits",
    "rocm_fp8_paged_mqa_logits",
    "indexer_k_quant_and_cache_triton",
    "cp_gather_indexer_k_quant_cache_triton",
)
ORIGINALS = {name: getattr(rocm, name) for name in NAMES}


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    init_workspace_manager(torch.device("cpu"))
    for name in DROP_INS:
        dropin.install(name)
    yield
    for name in DROP_INS:
        dropin.uninstall(name)


def test_all_of_them_are_ours_and_go_back() -> None:
    assert not [name for name in NAMES if getattr(rocm, name) is ORIGINALS[name]]
    dropin.uninstall("vllm_rocm")
    assert {name: getattr(rocm, name) for name in NAMES} == ORIGINALS


def test_prefill() -> None:
    """Cells outside of the windows are not cleaned, as vLLM asks of aiter."""
    call = upstream.Prefill("cpu", 20, 64, 16, 128, parallel=True, dtype=torch.float8_e4m3fn)
    logits = rocm.rocm_fp8_mqa_logits(call.q_fp8, (call.k_fp8, call.scale[:, None]), call.weights, call.ks, call.ke)
    call.judge(call.spread(logits, first_key=False))


@pytest.mark.parametrize("block", [1, 64, 256])
def test_decode_writes_into_vllm_s_workspace(block: int) -> None:
    """Nothing is allocated that the engine's profile has not seen; blocks of 256 keys are read, too."""
    call = paged.make_call([[70, 71], [3, 4]], 2, heads=32, dim=128, block=block)
    schedule = torch.zeros(8, 2, dtype=torch.int32)
    logits = rocm.rocm_fp8_paged_mqa_logits(*call, schedule, 256, compress_ratio=4)
    (workspace,) = current_workspace_manager().get_simultaneous(((4, 256), torch.float32))
    assert logits.data_ptr() == workspace.data_ptr()
    right = paged.formula(call, 256)
    judge.agree(logits[right.inside], right.logits[right.inside], right.magnitude[right.inside])


@pytest.mark.parametrize(("lens", "queries", "drafts"), [([90, 9], [6, 9], 0), ([90, 20], [1, 1], 0), ([90, 20], [2, 2], 1)])
def test_a_step(monkeypatch: pytest.MonkeyPatch, lens: list[int], queries: list[int], drafts: int) -> None:
    """Prefill, decode, and drafts: the cache's writer and gatherer, logits and selection. A flat cache: this is no gfx950."""
    step = Step(lens, queries, drafts, block=1)
    step.run(monkeypatch, rocm, rocm.rocm_aiter_sparse_attn_indexer, q_fp8=step.q)
    step.judge()
