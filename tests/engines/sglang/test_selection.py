"""SGLang's own choice of a top-k (``DSATopKBackend``), through its JIT kernels' wrappers, sgl_kernel's and FlashInfer's."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from engines import stubs

stubs.only_in_the_session_of("sglang")
stubs.for_sglang()

import flashinfer  # noqa: E402 - after the stubs
from sglang.srt.environ import envs  # noqa: E402
from sglang.srt.layers.attention.dsa.dsa_topk_backend import DSATopKBackend, TopkTransformMethod  # noqa: E402

from capgate.kernels import dropin  # noqa: E402

stubs.for_sgl_kernel()  # once SGLang has seen that there is none

ROWS, COLUMNS, PAGE, TOP_K = 5, 96, 32, 16
LENGTHS = torch.tensor([96, 16, 5, 0, 40], dtype=torch.int32)
STARTS = torch.tensor([0, 3, 60, 7, 41], dtype=torch.int32)


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    for name in ("sglang", "flashinfer"):
        dropin.install(name)
    yield
    for name in ("sglang", "flashinfer"):
        dropin.uninstall(name)


def logits() -> torch.Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))


def best(scores: torch.Tensor, starts: torch.Tensor) -> list[set[int]]:
    """Each row's best columns, counted from its first."""
    windows = [row[start : start + length] for row, start, length in zip(scores, starts, LENGTHS, strict=True)]
    return [set(row.topk(min(TOP_K, len(row))).indices.tolist()) for row in windows]


def sets(indices: torch.Tensor) -> list[set[int]]:
    assert (indices.shape, indices.dtype) == ((ROWS, TOP_K), torch.int32)
    return [{index for index in row if index >= 0} for row in indices.tolist()]


@pytest.fixture(params=["sgl-kernel v2", "sgl-kernel", "flashinfer"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """SGLang's default, its JIT kernels; sgl_kernel, which an environment variable of SGLang's goes back to; FlashInfer."""
    name, _, second = request.param.partition(" ")
    with envs.SGLANG_OPT_USE_TOPK_V2.override(bool(second)):
        yield name


def test_indices() -> None:
    """As SGLang's pools are selected: columns counted from a row's first."""
    scores = logits()
    starts = STARTS.clamp(max=COLUMNS - LENGTHS).int()
    found = DSATopKBackend("sgl-kernel").topk_func(scores, LENGTHS, TOP_K, row_starts=starts)
    assert sets(found) == best(scores, starts)
    assert sets(DSATopKBackend("sgl-kernel").topk_func(scores, LENGTHS, TOP_K)) == best(scores, torch.zeros(ROWS).int())


def test_paged(backend: str) -> None:
    """Decode: slots of the pool through the page table."""
    scores, pages = logits(), torch.randperm(20, generator=torch.Generator().manual_seed(1))[: ROWS * 3].view(ROWS, 3).int()
    slots = (pages[:, :, None] * PAGE + torch.arange(PAGE)).flatten(1).int()
    metadata = SimpleNamespace(
        real_page_table=pages,
        page_table_1=slots,
        page_size=PAGE,
        token_to_batch_idx=None,
        topk_v2_plan=torch.zeros(ROWS + 1, 2),
    )
    rows = torch.arange(ROWS + 1, dtype=torch.int32)  # one for each request
    found = DSATopKBackend(backend).topk_transform(
        scores, LENGTHS, TOP_K, TopkTransformMethod.PAGED, metadata, cu_seqlens_q_topk=rows
    )
    expected = [
        {int(slots[row, index]) for index in indices} for row, indices in enumerate(best(scores, torch.zeros(ROWS).int()))
    ]
    assert sets(found) == expected


def test_ragged(backend: str) -> None:
    """Prefill: columns of the keys of all requests; the scores stay as they are."""
    scores = logits()
    starts = STARTS.clamp(max=COLUMNS - LENGTHS).int()
    before = scores.clone()
    found = DSATopKBackend(backend).topk_transform(
        scores,
        LENGTHS,
        TOP_K,
        TopkTransformMethod.RAGGED,
        SimpleNamespace(token_to_batch_idx=None, page_table_1=torch.zeros(0)),
        topk_indices_offset=starts,
        row_starts=starts,
    )
    expected = [{int(starts[row]) + index for index in indices} for row, indices in enumerate(best(scores, starts))]
    assert sets(found) == expected
    assert torch.equal(scores, before)


def test_flashinfer_s_own_names() -> None:
    """As vLLM calls it: local indices with an offset of 0."""
    scores = logits()
    found = flashinfer.top_k_ragged_transform(scores, torch.zeros(ROWS, dtype=torch.int32), LENGTHS, TOP_K)
    assert sets(found) == best(scores, torch.zeros(ROWS).int())


def test_what_ours_does_not_serve_goes_to_flashinfer() -> None:
    """float16, whose kernels FlashInfer compiles for a GPU when it is called: there is none here."""
    with pytest.raises(Exception, match=r"(?i)cuda|gpu|nvcc|ninja|device"):
        flashinfer.top_k_ragged_transform(logits().half(), torch.zeros(ROWS, dtype=torch.int32), LENGTHS, TOP_K)
