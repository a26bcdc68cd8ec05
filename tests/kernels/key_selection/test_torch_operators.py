"""The torch.library operators of the selection: opcheck, torch.compile, fake tensors, inference mode."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from capgate.kernels import select_from_logits, select_keys, select_paged_keys
from support import judge, paged

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero) encountered:RuntimeWarning")

NOT_PLACED = (None, None, None)  # no offsets, page table and requests


@pytest.fixture
def bytewise_allclose(monkeypatch: pytest.MonkeyPatch) -> None:
    """opcheck compares operands before and after with torch.allclose, which has no kernel for fp8: equal bytes stand in."""
    allclose = torch.allclose

    def compare(one: torch.Tensor, other: torch.Tensor, **tolerances: Any) -> bool:
        if one.dtype.is_floating_point and one.dtype.itemsize == 1:
            return torch.equal(one.view(torch.uint8), other.view(torch.uint8))
        return allclose(one, other, **tolerances)

    monkeypatch.setattr(torch, "allclose", compare)


@pytest.mark.dealt
@pytest.mark.parametrize("return_scores", [False, True], ids=["indices", "scores"])
@pytest.mark.usefixtures("bytewise_allclose")
def test_opcheck(variant: str, return_scores: bool) -> None:
    call = judge.make_call(3, 40, 16, 32, "ragged")
    logits = torch.randn(3, 40)
    for starts, num_keys in ((None, None), (call.starts, None), (call.starts, 50)):
        arguments = (logits, starts, call.ends, *NOT_PLACED, 5, return_scores, num_keys, True, 1, variant)
        torch.library.opcheck(torch.ops.capgate.select_from_logits, arguments)
    for max_window in (None, 30):
        arguments = (*call, *NOT_PLACED, 5, return_scores, 2048, max_window, False, 1, variant, variant)
        torch.library.opcheck(torch.ops.capgate.select_keys, arguments)
    arguments = (*paged.make_call([20, 0, 5], 2)[:5], *NOT_PLACED, 5, return_scores, 20, 2048, 1, variant, variant, "flat")
    torch.library.opcheck(torch.ops.capgate.select_paged_keys, arguments)


def step(call: Any, cached: Any, logits: torch.Tensor, columns: int) -> tuple[torch.Tensor, ...]:
    """Every function, between operations that a compiler would like to fuse."""
    indices, scores = select_keys(*call, top_k=6, logits_budget_bytes=2048, return_scores=True)
    narrow = select_keys(*call, top_k=6, max_window=9, relative=True)
    positions = select_paged_keys(*cached, max_context_len=columns, top_k=4, logits_budget_bytes=4096)
    chosen = select_from_logits(logits * 2, call.starts, call.ends, top_k=3)
    return indices + 1, scores * 2, narrow, positions.sum(), chosen


@pytest.mark.any_triton
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiled_calls_agree_bitwise(backend: str, dynamic: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend=backend, dynamic=dynamic)
    for rows, keys, lens in ((3, 40, [20, 0, 5]), (5, 70, [70, 3, 130, 1])):
        arguments = judge.make_call(rows, keys, 16, 32, "packed"), paged.make_call(lens, 2), torch.randn(rows, keys), max(lens)
        for one, other in zip(compiled(*arguments), step(*arguments), strict=True):
            assert torch.equal(one, other)


@pytest.mark.any_triton
def test_dynamic_shapes_compile_once() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend  # here: it takes seconds, which other processes need not

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter, dynamic=True)
    for rows, keys, lens in ((11, 40, [20, 3, 5]), (12, 70, [70, 3, 130, 9]), (13, 300, [30] * 9)):
        compiled(judge.make_call(rows, keys, 16, 32), paged.make_call(lens, 2), torch.randn(rows, keys), max(lens))
    assert counter.frame_count == 1


@pytest.mark.parametrize("return_scores", [False, True], ids=["indices", "scores"])
@pytest.mark.parametrize("keys", [0, 5, 300])
def test_fake_and_meta_tensors_get_the_real_shapes(keys: int, return_scores: bool) -> None:
    call, cached, logits = judge.make_call(3, keys, 16, 32), paged.make_call([5, 3], 2), torch.randn(3, keys)

    def results(convert: Any) -> list[torch.Tensor]:
        one, two = type(call)(*map(convert, call)), type(cached)(*map(convert, cached))
        keywords = {"top_k": 7, "return_scores": return_scores}
        found = [
            select_keys(*one, **keywords),
            select_paged_keys(*two, max_context_len=keys, **keywords),
            select_from_logits(convert(logits), one.starts, one.ends, **keywords),
        ]
        return [tensor for result in found for tensor in (result if return_scores else [result])]

    with FakeTensorMode() as mode:
        fake = results(mode.from_tensor)
    on_meta = results(lambda tensor: tensor.to("meta"))
    for pretended, device in ((fake, "cpu"), (on_meta, "meta")):
        for one, other in zip(pretended, results(lambda tensor: tensor), strict=True):
            assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)
            assert one.device.type == device


def test_inference_mode_gives_the_same_indices(variant: str) -> None:
    call = judge.make_call(3, 40, 16, 32, "ragged")
    with torch.inference_mode():
        indices = select_keys(*call, top_k=5, variant=variant, logits_variant=variant)
    assert indices.is_inference()
    assert torch.equal(indices, select_keys(*call, top_k=5, variant=variant, logits_variant=variant))


@pytest.mark.any_triton
def test_errors_reach_the_caller_of_a_compiled_function_by_name() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(select_keys, backend="eager")
    with pytest.raises(ValueError, match=r"^top_k: "):
        compiled(*judge.make_call(3, 11, 16, 32), top_k=0)
