"""The torch.library operators of the paged logits and the key cache: opcheck, torch.compile, fake tensors."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from capgate.kernels import fp8_paged_mqa_logits, gather_keys, paged_mqa_schedule, quantize_keys_to_cache
from support import paged


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
@pytest.mark.parametrize("scheduled", [True, False], ids=["scheduled", "unscheduled"])
@pytest.mark.usefixtures("bytewise_allclose")
def test_opcheck_passes_for_the_logits(variant: str, scheduled: bool) -> None:
    call = paged.make_call([20, 0, 5], 2)
    schedule = paged_mqa_schedule(call.context_lens, 64, 2) if scheduled else None
    for dtype in (torch.float32, torch.bfloat16):
        torch.library.opcheck(torch.ops.capgate.fp8_paged_mqa_logits, (*call, schedule, 20, dtype, True, variant))
    out = torch.zeros(6, 24)[:, :20]
    torch.library.opcheck(torch.ops.capgate.fp8_paged_mqa_logits_out, (*call, schedule, out, True, variant, 128, "preshuffled"))


@pytest.mark.usefixtures("bytewise_allclose")
def test_opcheck_passes_for_the_schedule_and_the_cache() -> None:
    call = paged.make_call([20, 0, 5])
    torch.library.opcheck(torch.ops.capgate.paged_mqa_schedule, (call.context_lens, 5))
    schedule = torch.zeros(6, 2, dtype=torch.int32)
    torch.library.opcheck(torch.ops.capgate.paged_mqa_schedule_out, (call.context_lens, schedule, 256))
    operands = (call.kv_cache, call.block_table, call.context_lens)
    torch.library.opcheck(torch.ops.capgate.gather_keys, (*operands, 30, "preshuffled"))
    gathered = (torch.zeros(30, 32, dtype=torch.uint8), torch.zeros(30), "flat")
    torch.library.opcheck(torch.ops.capgate.gather_keys_out, (*operands, *gathered))
    torch.library.opcheck(
        torch.ops.capgate.gather_keys_between,
        (*operands[:2], torch.tensor([0, 20, 20, 25], dtype=torch.int32), *gathered),
    )
    slots = torch.tensor([3, -1, 64])
    arguments = (torch.randn(3, 32), call.kv_cache.contiguous(), slots, torch.float8_e4m3fn, "fp32", "preshuffled")
    torch.library.opcheck(torch.ops.capgate.quantize_keys_to_cache, arguments)


def step(call: Any, k: torch.Tensor, slots: torch.Tensor, columns: int, total: int) -> tuple[torch.Tensor, ...]:
    """What one step of a serving engine calls."""
    quantize_keys_to_cache(k, call.kv_cache, slots)
    schedule = paged_mqa_schedule(call.context_lens, 64, 3, chunk_keys=256)
    logits = fp8_paged_mqa_logits(*call, max_context_len=columns, clean_logits=True, schedule=schedule, schedule_chunk_keys=256)
    keys, scales = gather_keys(call.kv_cache, call.block_table, call.context_lens, total)
    return logits * 2, keys.float(), scales


@pytest.mark.any_triton
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_a_compiled_step_agrees_bitwise(backend: str, dynamic: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend=backend, dynamic=dynamic)
    for lens in ([20, 0, 5], [70, 3, 130, 1]):
        call = paged.make_call(lens, 2)
        slots = call.block_table[:, 0].where(call.context_lens > 0, -1).long() * 64
        k = torch.randn(len(lens), 32, generator=torch.Generator().manual_seed(0))
        other = call._replace(kv_cache=call.kv_cache.clone())
        arguments = (k, slots, max(lens), sum(lens) + 3)
        for one, expected in zip(compiled(call, *arguments), step(other, *arguments), strict=True):
            assert torch.equal(one, expected)
        assert torch.equal(call.kv_cache, other.kv_cache)


@pytest.mark.any_triton
def test_dynamic_shapes_compile_once() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend  # here: it takes seconds, which other processes need not

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter, dynamic=True)
    for lens in ([20, 3, 5], [70, 3, 130, 9], [30] * 9):
        call = paged.make_call(lens, 2)
        compiled(call, torch.zeros(len(lens), 32), torch.full((len(lens),), -1), max(lens), sum(lens) + 2)
    assert counter.frame_count == 1


@pytest.mark.parametrize("columns", [0, 5, 256, 300])
def test_fake_and_meta_tensors_get_the_real_shapes_and_strides(columns: int) -> None:
    call = paged.make_call([5, 3], 2)

    def results(call: Any) -> tuple[torch.Tensor, ...]:
        logits = fp8_paged_mqa_logits(*call, max_context_len=columns)
        gathered = gather_keys(call.kv_cache, call.block_table, call.context_lens, columns)
        return logits, paged_mqa_schedule(call.context_lens, 64, columns + 1), *gathered

    with FakeTensorMode() as mode:
        fake = results(type(call)(*(mode.from_tensor(tensor) for tensor in call)))
    on_meta = results(type(call)(*(tensor.to("meta") for tensor in call)))
    for pretended, device in ((fake, "cpu"), (on_meta, "meta")):
        for one, other in zip(pretended, results(call), strict=True):
            assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)
            assert one.device.type == device
