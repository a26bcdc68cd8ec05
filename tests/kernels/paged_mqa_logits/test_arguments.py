"""Bad input to the paged logits: the right error, it names the argument, and nothing has been written."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from capgate import compat
from capgate.kernels import fp8_paged_mqa_logits, paged_mqa_schedule, paged_mqa_workers
from support import paged

REQUESTS, NEXT_N, HEADS, DIM, COLUMNS = 3, 2, 16, 32, 70
FN, FNUZ, INT, BYTE = torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.int32, torch.uint8


def zeros(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


def cache(*shape: int, strides: tuple[int, ...] | None = None, offset: int = 0) -> torch.Tensor:
    memory = torch.zeros(10**5, dtype=BYTE)
    return memory[: 4 * 64 * 36].view(*shape) if strides is None else memory.as_strided(shape, strides, offset)


# What replaces good arguments, the error, and the argument that it names.
BAD: dict[str, tuple[dict[str, Callable[[], Any]], type[Exception], str]] = {
    "q-list": ({"q": lambda: [1.0]}, TypeError, "q"),
    "q-three-dimensional": ({"q": lambda: zeros(REQUESTS, HEADS, DIM, dtype=FN)}, ValueError, "q"),
    "q-no-rows": ({"q": lambda: zeros(REQUESTS, 0, HEADS, DIM, dtype=FN)}, ValueError, "q"),
    "q-65536-rows": ({"q": lambda: zeros(REQUESTS, 1, HEADS, DIM, dtype=FN).expand(-1, 65536, -1, -1)}, ValueError, "q"),
    "q-no-heads": ({"q": lambda: zeros(REQUESTS, NEXT_N, 0, DIM, dtype=FN)}, ValueError, "q"),
    "q-too-many-heads": ({"q": lambda: zeros(REQUESTS, NEXT_N, 129, DIM, dtype=FN)}, ValueError, "q"),
    "q-dim-48": ({"q": lambda: zeros(REQUESTS, NEXT_N, HEADS, 48, dtype=FN)}, ValueError, "q"),
    "q-bfloat16": ({"q": lambda: zeros(REQUESTS, NEXT_N, HEADS, DIM, dtype=torch.bfloat16)}, TypeError, "q"),
    "q-requires-grad": ({"q": lambda: zeros(REQUESTS, NEXT_N, HEADS, DIM, dtype=FN).requires_grad_()}, ValueError, "q"),
    "kv_cache-none": ({"kv_cache": lambda: None}, TypeError, "kv_cache"),
    "kv_cache-fp8": ({"kv_cache": lambda: cache(4, 64, 1, 36).view(FN)}, TypeError, "kv_cache"),
    "kv_cache-three-dimensional": ({"kv_cache": lambda: cache(4, 64, 36)}, ValueError, "kv_cache"),
    "kv_cache-two-heads": ({"kv_cache": lambda: cache(2, 64, 2, 36)}, ValueError, "kv_cache"),
    "kv_cache-block-40": ({"kv_cache": lambda: zeros(4, 40, 1, 36, dtype=BYTE)}, ValueError, "kv_cache"),
    "kv_cache-other-dim": ({"kv_cache": lambda: zeros(4, 64, 1, 68, dtype=BYTE)}, ValueError, "kv_cache"),
    "kv_cache-without-scales": ({"kv_cache": lambda: zeros(4, 64, 1, 32, dtype=BYTE)}, ValueError, "kv_cache"),
    "kv_cache-blocks-overlap": ({"kv_cache": lambda: cache(4, 64, 1, 36, strides=(2300, 36, 36, 1))}, ValueError, "kv_cache"),
    "kv_cache-blocks-expanded": ({"kv_cache": lambda: cache(4, 64, 1, 36, strides=(0, 36, 36, 1))}, ValueError, "kv_cache"),
    "kv_cache-blocks-not-aligned": (
        {"kv_cache": lambda: cache(4, 64, 1, 36, strides=(2306, 36, 36, 1))},
        ValueError,
        "kv_cache",
    ),
    "kv_cache-rows-apart": ({"kv_cache": lambda: cache(4, 64, 1, 36, strides=(4096, 64, 64, 1))}, ValueError, "kv_cache"),
    "kv_cache-address": (
        {"kv_cache": lambda: cache(4, 64, 1, 36, strides=(2304, 36, 36, 1), offset=2)},
        ValueError,
        "kv_cache",
    ),
    "kv_cache-other-device": ({"kv_cache": lambda: zeros(4, 64, 1, 36, dtype=BYTE, device="meta")}, ValueError, "kv_cache"),
    "weights-three-dimensional": ({"weights": lambda: zeros(REQUESTS, NEXT_N, HEADS)}, ValueError, "weights"),
    "weights-of-requests": ({"weights": lambda: zeros(REQUESTS, HEADS)}, ValueError, "weights"),
    "weights-half": ({"weights": lambda: zeros(6, HEADS, dtype=torch.float16)}, TypeError, "weights"),
    "weights-other-device": ({"weights": lambda: zeros(6, HEADS, device="meta")}, ValueError, "weights"),
    "weights-sparse": ({"weights": lambda: zeros(6, HEADS).to_sparse()}, TypeError, "weights"),
    "weights-requires-grad": ({"weights": lambda: zeros(6, HEADS).requires_grad_()}, ValueError, "weights"),
    "context_lens-list": ({"context_lens": lambda: [1, 2, 3]}, TypeError, "context_lens"),
    "context_lens-of-rows": ({"context_lens": lambda: zeros(6, dtype=INT)}, ValueError, "context_lens"),
    "context_lens-column": ({"context_lens": lambda: zeros(REQUESTS, 1, dtype=INT)}, ValueError, "context_lens"),
    "context_lens-int64": ({"context_lens": lambda: zeros(REQUESTS, dtype=torch.int64)}, TypeError, "context_lens"),
    "context_lens-other-device": (
        {"context_lens": lambda: zeros(REQUESTS, dtype=INT, device="meta")},
        ValueError,
        "context_lens",
    ),
    "block_table-none": ({"block_table": lambda: None}, TypeError, "block_table"),
    "block_table-flat": ({"block_table": lambda: zeros(REQUESTS, dtype=INT)}, ValueError, "block_table"),
    "block_table-sparse": ({"block_table": lambda: zeros(REQUESTS, 2, dtype=INT).to_sparse()}, TypeError, "block_table"),
    "block_table-other-rows": ({"block_table": lambda: zeros(4, 2, dtype=INT)}, ValueError, "block_table"),
    "block_table-int64": ({"block_table": lambda: zeros(REQUESTS, 2, dtype=torch.int64)}, TypeError, "block_table"),
    "block_table-other-device": (
        {"block_table": lambda: zeros(REQUESTS, 2, dtype=INT, device="meta")},
        ValueError,
        "block_table",
    ),
    "max_context_len-negative": ({"max_context_len": lambda: -1}, ValueError, "max_context_len"),
    "max_context_len-too-many": ({"max_context_len": lambda: 2**30 + 1}, ValueError, "max_context_len"),
    "max_context_len-fraction": ({"max_context_len": lambda: 2.0}, TypeError, "max_context_len"),
    "max_context_len-bool": ({"max_context_len": lambda: True}, TypeError, "max_context_len"),
    "max_context_len-none": ({"max_context_len": lambda: None}, TypeError, "max_context_len"),
    "clean_logits-number": ({"clean_logits": lambda: 1}, TypeError, "clean_logits"),
    "schedule-list": ({"schedule": lambda: [[0, 0], [3, 0]]}, TypeError, "schedule"),
    "schedule-scalar": ({"schedule": lambda: zeros(dtype=INT)}, ValueError, "schedule"),
    "schedule-sparse": ({"schedule": lambda: zeros(5, 2, dtype=INT).to_sparse()}, TypeError, "schedule"),
    "schedule-one-row": ({"schedule": lambda: zeros(1, 2, dtype=INT)}, ValueError, "schedule"),
    "schedule-three-columns": ({"schedule": lambda: zeros(5, 3, dtype=INT)}, ValueError, "schedule"),
    "schedule-int64": ({"schedule": lambda: zeros(5, 2, dtype=torch.int64)}, TypeError, "schedule"),
    "schedule-transposed": ({"schedule": lambda: zeros(2, 5, dtype=INT).mT}, ValueError, "schedule"),
    "schedule-other-device": ({"schedule": lambda: zeros(5, 2, dtype=INT, device="meta")}, ValueError, "schedule"),
    "out-array": ({"out": lambda: zeros(6, COLUMNS).numpy()}, TypeError, "out"),
    "out-narrow": ({"out": lambda: zeros(6, COLUMNS - 1)}, ValueError, "out"),
    "out-three-dimensional": ({"out": lambda: zeros(REQUESTS, NEXT_N, COLUMNS)}, ValueError, "out"),
    "out-half": ({"out": lambda: zeros(6, COLUMNS, dtype=torch.float16)}, TypeError, "out"),
    "out-float32-for-bfloat16": ({"logits_dtype": lambda: torch.bfloat16}, TypeError, "out"),
    "logits_dtype-half": ({"logits_dtype": lambda: torch.float16}, ValueError, "logits_dtype"),
    "logits_dtype-text": ({"logits_dtype": lambda: "bfloat16"}, TypeError, "logits_dtype"),
    "out-other-device": ({"out": lambda: zeros(6, COLUMNS, device="meta")}, ValueError, "out"),
    "out-requires-grad": ({"out": lambda: zeros(6, COLUMNS).requires_grad_()}, ValueError, "out"),
    "out-rows-overlap": ({"out": lambda: zeros(999).as_strided((6, COLUMNS), (COLUMNS - 1, 1))}, ValueError, "out"),
    "variant-unknown": ({"variant": lambda: "clasic"}, ValueError, "variant"),
    "variant-empty": ({"variant": lambda: ""}, ValueError, "variant"),
    "variant-number": ({"variant": lambda: 3}, TypeError, "variant"),
}


@pytest.mark.parametrize(("replacements", "error", "argument"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_by_name_and_changes_nothing(
    replacements: dict[str, Callable[[], Any]], error: type[Exception], argument: str
) -> None:
    call = paged.make_call([70, 5, 64], NEXT_N, HEADS, DIM)
    out = paged.judge.sentinels(REQUESTS * NEXT_N, COLUMNS)
    before = paged.judge.storage_of(out, torch.int32).clone()
    arguments = call._asdict() | {"max_context_len": COLUMNS, "out": out}
    arguments |= {name: make() for name, make in replacements.items()}
    with pytest.raises(error, match=f"^{argument}: "):
        fp8_paged_mqa_logits(**arguments)
    assert torch.equal(paged.judge.storage_of(out, torch.int32), before)


@pytest.mark.parametrize("requests", [0, REQUESTS])
def test_an_impossible_variant_is_refused_with_its_reason(requests: int) -> None:
    call = paged.make_call([5] * requests)
    with (
        compat.override(disable=["triton"]),
        pytest.raises(compat.CapabilityError, match=r"fp8_paged_mqa_logits cannot run variant 'classic': .*disabled by"),
    ):
        fp8_paged_mqa_logits(*call, max_context_len=5, variant="classic")


def test_weights_that_require_grad_serve_where_grad_is_off(variant: str) -> None:
    call = paged.make_call([5, 70])
    expected = fp8_paged_mqa_logits(*call, max_context_len=70, clean_logits=True, variant=variant)
    with torch.no_grad():
        needy = call._replace(weights=call.weights.clone().requires_grad_())
        logits = fp8_paged_mqa_logits(*needy, max_context_len=70, clean_logits=True, variant=variant)
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("name", ["q", "kv_cache", "weights", "context_lens", "block_table", "schedule"])
def test_out_shares_no_memory_with_what_is_read(variant: str, name: str) -> None:
    call = paged.make_call([70, 5, 64], NEXT_N, HEADS, DIM)
    operands = call._asdict() | {"schedule": paged_mqa_schedule(call.context_lens, 64, 3)}
    tensor = operands[name].contiguous()
    octets = tensor.numel() * tensor.element_size()
    memory = torch.zeros(octets + REQUESTS * NEXT_N * COLUMNS * 4, dtype=BYTE)
    operands[name] = memory[:octets].view(tensor.dtype).view(tensor.shape).copy_(tensor)
    keywords = {"max_context_len": COLUMNS, "clean_logits": True, "variant": variant}
    expected = fp8_paged_mqa_logits(**operands, **keywords)
    words = memory.view(torch.float32)
    for first, fine in ((octets // 4, True), (octets // 4 - 1, False), (0, False)):
        out = words[first : first + expected.numel()].view(expected.shape)
        if fine:
            assert torch.equal(fp8_paged_mqa_logits(**operands, **keywords, out=out), expected)
            continue
        before = memory.clone()
        with pytest.raises(ValueError, match=f"^out: shares memory with {name}, needs "):
            fp8_paged_mqa_logits(**operands, **keywords, out=out)
        assert torch.equal(memory, before)


def test_out_may_lie_between_the_blocks_of_the_cache() -> None:
    """As in a pool that several buffers share block by block."""
    call = paged.make_call([70, 5, 64], gap=4 * 128)
    expected = fp8_paged_mqa_logits(*call, max_context_len=COLUMNS, clean_logits=True)
    block = call.kv_cache.shape[1] * call.kv_cache.shape[3]
    words = paged.judge.storage_of(call.kv_cache, torch.float32)
    assert len(call.kv_cache) >= REQUESTS
    for start, fine in ((block // 4, True), (block // 4 - 1, False)):
        out = words.as_strided((REQUESTS, COLUMNS), (call.kv_cache.stride(0) // 4, 1), start)
        if fine:
            assert torch.equal(fp8_paged_mqa_logits(*call, max_context_len=COLUMNS, clean_logits=True, out=out), expected)
        else:
            with pytest.raises(ValueError, match=r"^out: shares memory with kv_cache"):
                fp8_paged_mqa_logits(*call, max_context_len=COLUMNS, clean_logits=True, out=out)


@pytest.mark.parametrize(
    ("bad", "error", "argument"),
    [
        ({"context_lens": [1, 2]}, TypeError, "context_lens"),
        ({"context_lens": zeros(2, 65536, dtype=INT)}, ValueError, "context_lens"),
        ({"context_lens": zeros(2)}, TypeError, "context_lens"),
        ({"context_lens": zeros(2, dtype=INT).to_sparse()}, TypeError, "context_lens"),
        ({"block_size": 40}, ValueError, "block_size"),
        ({"block_size": True}, TypeError, "block_size"),
        ({"block_size": 64.0}, TypeError, "block_size"),
        ({"num_workers": 0}, ValueError, "num_workers"),
        ({"num_workers": True}, TypeError, "num_workers"),
        ({"num_workers": "4"}, TypeError, "num_workers"),
    ],
    ids=str,
)
def test_a_bad_schedule_is_refused_by_name(bad: dict[str, Any], error: type[Exception], argument: str) -> None:
    good = {"context_lens": zeros(2, dtype=INT), "block_size": np.int64(64), "num_workers": np.int32(3)}
    assert paged_mqa_schedule(**good).shape == (4, 2)
    with pytest.raises(error, match=f"^{argument}: got "):
        paged_mqa_schedule(**good | bad)


@pytest.mark.parametrize(
    ("bad", "error", "argument"),
    [
        ({"q": None}, TypeError, "q"),
        ({"kv_cache": zeros(4, 64, 1, 68, dtype=BYTE)}, ValueError, "kv_cache"),
        ({"clean_logits": 1}, TypeError, "clean_logits"),
        ({"variant": ""}, ValueError, "variant"),
        ({"variant": "clasic"}, ValueError, "variant"),
    ],
)
def test_workers_of_bad_operands_are_refused_by_name(bad: dict[str, Any], error: type[Exception], argument: str) -> None:
    call = paged.make_call([5, 70])
    with pytest.raises(error, match=f"^{argument}: "):
        paged_mqa_workers(**{"q": call.q, "kv_cache": call.kv_cache} | bad)
