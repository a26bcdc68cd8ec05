"""bfloat16 weights and logits in decode: float32 inside, one rounding where a logit is stored, and no cell more."""

import pytest
import torch

from capgate.kernels import fp8_paged_mqa_logits, paged_mqa_schedule, select_paged_keys
from capgate.kernels.paged_mqa_logits.operation import operation
from support import judge, paged

BF16, F32 = torch.bfloat16, torch.float32
LENS, COLUMNS = [70, 3, 0, 131], 140


def make_call(next_n: int = 2, weights: torch.dtype = BF16, heads: int = 16, block: int = 64) -> paged.PagedCall:
    call = paged.make_call(LENS, next_n, heads, 32, block)
    return call._replace(weights=call.weights.to(weights))


@pytest.mark.dealt("clean_logits", "layout")
@pytest.mark.parametrize("clean_logits", [True, False], ids=["clean", "unclean"])
@pytest.mark.parametrize("next_n", [1, 2])
@pytest.mark.parametrize(
    "layout", [{"gap": -COLUMNS % 512}, {"gap": 7, "offset": 9}, {"step": 3}], ids=["aligned", "odd", "apart"]
)
def test_logits_are_rounded_and_nothing_else_is_written(
    variant: str, layout: dict[str, int], next_n: int, clean_logits: bool
) -> None:
    out = judge.sentinels(len(LENS) * next_n, COLUMNS, dtype=BF16, **layout)
    paged.check(make_call(next_n), variant, COLUMNS, clean_logits=clean_logits, out=out)


@pytest.mark.parametrize(("weights", "logits"), [(BF16, F32), (F32, BF16)], ids=["weights", "logits"])
def test_weights_and_logits_need_not_be_alike(variant: str, weights: torch.dtype, logits: torch.dtype) -> None:
    call = make_call(2, weights, 12)
    paged.check(call, variant, COLUMNS, out=judge.sentinels(8, COLUMNS, dtype=logits))


@pytest.mark.any_triton
def test_a_selection_takes_weights_of_bfloat16() -> None:
    call = make_call()
    whole = call._replace(weights=call.weights.float())
    indices = (select_paged_keys(*one, max_context_len=COLUMNS, top_k=5) for one in (call, whole))
    assert torch.equal(*indices)


def test_keys_that_the_cache_lacks_score_minus_infinity(variant: str) -> None:
    call = paged.without_blocks(make_call(1, block=16))
    schedule = paged_mqa_schedule(call.context_lens, 16, 2)
    paged.check(call, variant, COLUMNS, schedule=schedule, out=judge.sentinels(4, COLUMNS, dtype=BF16))


@pytest.mark.parametrize("columns", [1, 513, 1100])
def test_clean_logits_fill_long_rows(variant: str, columns: int) -> None:
    call = make_call(1)
    paged.check(call, variant, columns, clean_logits=True, out=judge.sentinels(4, columns, dtype=BF16))


@pytest.mark.any_triton
@pytest.mark.parametrize("columns", [5, 512, 513])
def test_rows_of_a_new_output_begin_at_multiples_of_1024_bytes(columns: int) -> None:
    for device in ("cpu", "meta"):
        call = (tensor.to(device) for tensor in make_call())
        logits = fp8_paged_mqa_logits(*call, max_context_len=columns, logits_dtype=BF16)
        assert (logits.dtype, logits.shape) == (BF16, (8, columns))
        assert logits.stride() == (-(-columns // 512) * 512, 1)


@pytest.mark.any_triton
def test_the_default_dtype_leaves_it_to_out() -> None:
    call = make_call()
    for out in (torch.empty(8, 5), torch.empty(8, 5, dtype=BF16)):
        assert fp8_paged_mqa_logits(*call, max_context_len=5, out=out) is out
        assert fp8_paged_mqa_logits(*call, max_context_len=5, out=out, logits_dtype=out.dtype) is out


@pytest.mark.any_triton
def test_an_output_mode_may_be_of_bfloat16() -> None:
    problem = operation.examples.problem("hip:gfx950", 64, 128, "unclean-bf16")
    assert (problem.clean_logits, problem.weights_dtype, problem.logits_dtype) == (False, "bfloat16", "bfloat16")
    inputs, out = operation.examples.call(problem).operands
    assert (inputs.weights.dtype, out.dtype) == (BF16, BF16)
