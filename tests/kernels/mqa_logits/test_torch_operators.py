"""The torch.library operators: opcheck, torch.compile, fake tensors, inference mode."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from capgate.kernels import fp8_mqa_logits
from support import judge

MODES = {"clean": (True, None), "unclean": (False, None), "compressed": (False, 11)}
modes = pytest.mark.parametrize(("clean_logits", "max_window"), MODES.values(), ids=MODES)


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
@modes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("bytewise_allclose")
def test_opcheck_passes_for_a_new_tensor(variant: str, clean_logits: bool, max_window: int | None, dtype: torch.dtype) -> None:
    """Unclean cells are unspecified, so that two runs of the operator would differ in them: every cell is inside here."""
    call = judge.make_call(3, 11, 16, 32, "full")
    torch.library.opcheck(torch.ops.capgate.fp8_mqa_logits, (*call, clean_logits, max_window, dtype, variant))


@pytest.mark.dealt
@modes
@pytest.mark.usefixtures("bytewise_allclose")
def test_opcheck_passes_for_a_given_out(variant: str, clean_logits: bool, max_window: int | None) -> None:
    call, out = judge.make_call(3, 11, 16, 32, "ragged"), torch.zeros(3, 14)[:, :11]
    compressed = max_window is not None
    torch.library.opcheck(torch.ops.capgate.fp8_mqa_logits_out, (*call, out, clean_logits, compressed, variant))


def bits(logits: torch.Tensor) -> torch.Tensor:
    return logits.view(torch.int32)


@pytest.mark.any_triton
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@modes
def test_compiled_calls_agree_bitwise(backend: str, dynamic: bool, clean_logits: bool, max_window: int | None) -> None:
    def score(call: Any, out: torch.Tensor | None = None) -> torch.Tensor:
        return fp8_mqa_logits(*call, clean_logits=clean_logits, max_window=max_window, out=out) * 2

    torch._dynamo.reset()
    compiled = torch.compile(score, fullgraph=True, backend=backend, dynamic=dynamic)
    for rows, keys in ((3, 11), (5, 17)):
        call = judge.make_call(rows, keys, 16, 32, "ragged")
        columns = keys if max_window is None else max_window
        given = torch.zeros(rows, columns), torch.zeros(rows, columns)
        assert torch.equal(bits(compiled(call, given[0])), bits(score(call, given[1])))
        assert torch.equal(bits(given[0]), bits(given[1]))
        written = judge.formula(call, max_window).inside | clean_logits
        assert torch.equal(compiled(call)[written], score(call)[written])


def test_a_variant_may_be_named_in_a_compiled_call(variant: str) -> None:
    torch._dynamo.reset()
    call = judge.make_call(5, 17, 16, 32, "ragged")
    compiled = torch.compile(fp8_mqa_logits, fullgraph=True, backend="aot_eager")
    assert torch.equal(bits(compiled(*call, variant=variant)), bits(fp8_mqa_logits(*call, variant=variant)))


@pytest.mark.any_triton
def test_dynamic_shapes_compile_once() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend  # here: it takes seconds, which other processes need not

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(fp8_mqa_logits, fullgraph=True, backend=counter, dynamic=True)
    for rows, keys in ((3, 11), (5, 17), (9, 300)):
        call = judge.make_call(rows, keys, 16, 32, "ragged")
        assert torch.equal(bits(compiled(*call)), bits(fp8_mqa_logits(*call)))
    assert counter.frame_count == 1


@modes
@pytest.mark.parametrize("keys", [0, 5, 256, 300])
def test_fake_and_meta_tensors_get_the_real_shape_and_strides(keys: int, clean_logits: bool, max_window: int | None) -> None:
    call = judge.make_call(3, keys, 16, 32)
    keywords = {"clean_logits": clean_logits, "max_window": max_window}
    real = fp8_mqa_logits(*call, **keywords)
    on_meta = fp8_mqa_logits(*(tensor.to("meta") for tensor in call), **keywords)
    with FakeTensorMode() as mode:
        fake = fp8_mqa_logits(*(mode.from_tensor(tensor) for tensor in call), **keywords)
    for pretended, device in ((on_meta, "meta"), (fake, "cpu")):
        assert pretended.shape == real.shape
        assert pretended.stride() == real.stride()
        assert pretended.dtype == torch.float32
        assert pretended.device.type == device


def test_inference_mode_gives_the_same_bits(variant: str) -> None:
    call = judge.make_call(3, 11, 16, 32, "ragged")
    with torch.inference_mode():
        logits = fp8_mqa_logits(*call, variant=variant)
    assert logits.is_inference()
    assert torch.equal(bits(logits), bits(fp8_mqa_logits(*call, variant=variant)))


@pytest.mark.any_triton
def test_errors_reach_the_caller_of_a_compiled_function_by_name() -> None:
    torch._dynamo.reset()
    call = judge.make_call(3, 11, 16, 32)
    compiled = torch.compile(fp8_mqa_logits, backend="eager")
    with pytest.raises(ValueError, match=r"^weights: "):
        compiled(*call._replace(weights=call.weights.mT))
