"""vLLM's own choice of a decode selection, by shape, and what it then calls."""

from collections.abc import Iterator

import pytest
import torch

from engines import stubs

stubs.only_in_the_session_of("vllm")
stubs.for_vllm()

from vllm.model_executor.layers.indexer_topk import SparseIndexerTopk  # noqa: E402 - after the stubs
from vllm.v1.worker.workspace import init_workspace_manager  # noqa: E402

from capgate.kernels import dropin  # noqa: E402
from support import selection  # noqa: E402


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    init_workspace_manager(torch.device("cpu"))
    dropin.install("vllm")
    yield
    dropin.uninstall("vllm")


# Rows whose stride is no multiple of 4 are not for the cooperative one, a top-k of its own for neither.
@pytest.mark.parametrize(
    ("chosen", "top_k", "columns"),
    [("cooperative", 512, 600), ("persistent", 512, 601), ("cooperative", 1024, 1200), ("per_row", 100, 600)],
)
def test_auto(chosen: str, top_k: int, columns: int) -> None:
    select = SparseIndexerTopk("auto")
    logits = torch.randn(4, columns, generator=torch.Generator().manual_seed(0))
    lens = torch.tensor([[599, 600], [0, 1]], dtype=torch.int32)  # of two requests with a draft each
    assert select.resolve_backend(logits, top_k, len(logits)) == chosen
    indices = torch.full((4, top_k), 7, dtype=torch.int32)
    select(logits, lens, 2, indices, top_k, 600)
    assert torch.equal(indices, selection.expected(logits, None, lens.flatten(), top_k)[0])
