"""DeepGEMM's own test of its MQA logits (tests/test_attention.py of 2.6), through the drop-in functions of both generations.

Of large calls some rows are held against the formula. Where cells are -inf, and whether calls repeat, is looked at in all.
"""

from collections.abc import Callable
from functools import partial

import torch

from capgate.kernels.dropin import deep_gemm
from capgate.kernels.dropin.deep_gemm import before_2_8

from . import judge
from .upstream import Decode, Prefill

REPEATS = 20
LIMITS = {torch.float32: judge.CALC_DIFF, torch.bfloat16: 3e-5}  # of calc_diff against dequantised inputs
ROW_BYTES = 1024  # that the distance of rows is a multiple of


def _repeated(call: Callable[[], torch.Tensor], inside: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What the call returns every time, bit for bit inside; other cells may hold anything."""
    logits = call()
    assert (logits.shape, logits.dtype, logits.stride(1)) == (inside.shape, dtype, 1)
    assert logits.stride(0) * logits.itemsize % ROW_BYTES == 0
    as_words = torch.int32 if dtype is torch.float32 else torch.int16
    for _ in range(REPEATS - 1):
        assert not ((call().view(as_words) != logits.view(as_words)) & inside).any()
    return logits


def prefill(call: Prefill, dtype: torch.dtype, most: int | None = None) -> None:
    """Whole and clean, and compressed and not clean, of 2.4 to 2.6; of 2.8, always compressed, where it is float32."""
    weights = call.weights.bfloat16()  # the formula's too, whatever the weights' dtype
    call.weights = weights.float()
    operands = ((call.q_fp8, None), (call.k_fp8, call.scale), weights.to(dtype), call.ks, call.ke)
    width = int((call.ke - call.ks).max())
    inside = torch.arange(width, device=call.ks.device) < (call.ke - call.ks)[:, None]
    earlier = partial(before_2_8.fp8_fp4_mqa_logits, *operands, logits_dtype=dtype)
    clean = _repeated(partial(earlier, clean_logits=True), torch.ones_like(call.outside), dtype)
    assert torch.equal(clean == float("-inf"), call.outside)
    call.judge(clean, LIMITS[dtype], most)
    compressed = _repeated(partial(earlier, clean_logits=False, max_seqlen_k=width), inside, dtype)
    assert torch.equal(call.spread(compressed, first_key=True), clean)
    if dtype is torch.float32:
        current = _repeated(partial(deep_gemm.fp8_fp4_mqa_logits, *operands, width), inside, dtype)
        assert not ((current != compressed) & inside).any()


def decode(call: Decode, columns: int, dtype: torch.dtype, most: int | None = None) -> None:
    """With a length for each row, the paged functions of 2.4 to 2.6 and of 2.8; with one for each request, that of before."""
    weights = call.weights.bfloat16()
    call.weights = weights.float()
    outside = call.outside(columns)
    schedule = deep_gemm.get_paged_mqa_logits_metadata(call.lens, call.block, deep_gemm.get_num_sms())
    rest = (call.cache(), weights.to(dtype), call.lens, call.table, schedule, columns)
    if call.lens.ndim == 1:
        logits = _repeated(partial(deep_gemm.fp8_paged_mqa_logits, call.q_fp8, *rest), ~outside, dtype)
    else:
        q = (call.q_fp8, None)
        earlier = partial(before_2_8.fp8_fp4_paged_mqa_logits, q, *rest, clean_logits=False, logits_dtype=dtype)
        logits = _repeated(earlier, ~outside, dtype)
        if dtype is torch.float32:
            current = _repeated(partial(deep_gemm.fp8_fp4_paged_mqa_logits, q, *rest), ~outside, dtype)
            assert not ((current != logits) & ~outside).any()
    call.judge(logits.masked_fill(outside, float("-inf")), LIMITS[dtype], most)
