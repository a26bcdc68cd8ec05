"""vLLM's sparse indexer on CUDA as a step of the engine takes it: the metadata builder, then the op's prefill and decode."""

from collections.abc import Iterator

import pytest
import torch

from engines import stubs

stubs.only_in_the_session_of("vllm")
stubs.for_vllm()

import vllm.model_executor.layers.sparse_attn_indexer as layer  # noqa: E402 - after the stubs
from vllm.v1.worker.workspace import init_workspace_manager  # noqa: E402

from capgate.kernels import dropin  # noqa: E402
from engines.vllm_step import Step  # noqa: E402


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    init_workspace_manager(torch.device("cpu"))
    for name in ("deep_gemm", "vllm"):
        dropin.install(name)
    yield
    for name in ("deep_gemm", "vllm"):
        dropin.uninstall(name)


def run(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    step.run(
        monkeypatch,
        layer,
        layer.sparse_attn_indexer,
        q_quant=step.q,
        q_scale=None,
        use_pcp=False,
        pcp_shard_decode_requests=False,
        dense_mha_metadata_layer_name="",
        topk_backend="per_row",
    )
    step.judge()


def test_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing the cache, gathering it, logits and selection: nothing of the compiled extensions is reached."""
    step = Step([150, 9, 64], [6, 9, 3])
    assert (step.metadata.num_prefills, step.metadata.num_decodes) == (3, 0)
    run(step, monkeypatch)


@pytest.mark.parametrize("drafts", [0, 1, 2, 3])
def test_decode(monkeypatch: pytest.MonkeyPatch, drafts: int) -> None:
    """Drafts of 1 and 3 are native on an sm90, 2 is flattened."""
    step = Step([150, 20, 65], [1 + drafts] * 3, drafts)
    assert (step.metadata.num_prefills, step.metadata.num_decodes) == (0, 3)
    run(step, monkeypatch)


def test_prefill_and_decode_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step([150, 31, 70], [1, 1, 8])
    assert (step.metadata.num_prefills, step.metadata.num_decodes) == (1, 2)
    run(step, monkeypatch)


def test_the_schedule_of_a_step_is_ours() -> None:
    """vLLM copies it into a buffer that every layer reads."""
    schedule = Step([150, 20, 65], [1, 1, 1]).metadata.decode.schedule_metadata
    assert schedule.shape == (stubs.SMS + 1, 2)
    assert schedule[-1].tolist() == [3, 0]
    assert schedule[-4:].tolist() == [[0, 0], [1, 0], [2, 0], [3, 0]]
