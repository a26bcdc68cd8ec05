"""bfloat16 weights and logits: float32 inside, one rounding where a logit is stored, and no cell more than with float32."""

import pytest
import torch

from capgate.kernels import fp8_mqa_logits, select_keys
from capgate.kernels.mqa_logits.operation import operation
from support import judge

BF16, F32 = torch.bfloat16, torch.float32
MODES = {"clean": (True, None), "unclean": (False, None), "compressed": (False, 31)}
modes = pytest.mark.parametrize(("clean_logits", "max_window"), MODES.values(), ids=MODES)
# The second begins each row at another multiple of 2 bytes.
LAYOUTS = {
    "aligned-rows": {"gap": -150 % 512},
    "odd-rows": {"gap": 7, "offset": 9},
    "columns-first": {"order": (1, 0), "gap": 3},
}


def make_call(windows: str, weights: torch.dtype = BF16, heads: int = 16) -> judge.Call:
    call = judge.make_call(9, 150, heads, 32, windows)
    return call._replace(weights=call.weights.to(weights))


@pytest.mark.dealt("clean_logits", "max_window", "layout")
@modes
@pytest.mark.parametrize("windows", ["packed", "ragged"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_logits_are_rounded_and_nothing_else_is_written(
    variant: str, windows: str, layout: dict[str, object], clean_logits: bool, max_window: int | None
) -> None:
    out = judge.sentinels(9, max_window or 150, dtype=BF16, **layout)
    judge.check(make_call(windows), variant, clean_logits=clean_logits, max_window=max_window, out=out)


@pytest.mark.parametrize(("weights", "logits"), [(BF16, F32), (F32, BF16)], ids=["weights", "logits"])
def test_weights_and_logits_need_not_be_alike(variant: str, weights: torch.dtype, logits: torch.dtype) -> None:
    judge.check(make_call("ragged", weights, 12), variant, out=judge.sentinels(9, 150, dtype=logits))


@pytest.mark.dealt
@pytest.mark.parametrize("keys", [1, 7, 255, 512, 513])
def test_clean_logits_fill_both_sides_of_a_narrow_window(variant: str, keys: int) -> None:
    call = judge.make_call(5, keys, 16, 32)
    starts = torch.full((5,), keys // 2, dtype=torch.int32)
    judge.check(call._replace(starts=starts, ends=starts + 1), variant, out=judge.sentinels(5, keys, dtype=BF16))


def test_weights_of_bfloat16_mean_what_they_mean_in_float32(variant: str) -> None:
    call = make_call("ragged")
    whole = fp8_mqa_logits(*call._replace(weights=call.weights.float()), variant=variant)
    assert torch.equal(fp8_mqa_logits(*call, variant=variant), whole)
    indices = (
        select_keys(*one, top_k=5, logits_variant=variant) for one in (call, call._replace(weights=call.weights.float()))
    )
    assert torch.equal(*indices)


def ties() -> tuple[judge.Call, torch.Tensor]:
    """A row of logits 256, 257, ... 511, of which every other one lies between two bfloat16, and what they become."""
    values = torch.arange(256, 512)
    steps = torch.arange(32)
    k = (values[:, None] - 16 * steps).clamp(0, 16).to(torch.float8_e4m3fn)  # as many sixteens as fit, and the rest
    ones, window = torch.ones(1, 1, 32, dtype=torch.float8_e4m3fn), torch.zeros(1, dtype=torch.int32)
    call = judge.Call(ones, k, torch.ones(256), torch.ones(1, 1), window, window + 256)
    return call, torch.where(values % 2 == 0, values, (values + 1) // 4 * 4)


def test_ties_go_to_the_even_one(variant: str) -> None:
    call, expected = ties()
    assert torch.equal(fp8_mqa_logits(*call, variant=variant).int()[0], torch.arange(256, 512, dtype=torch.int32))
    logits = fp8_mqa_logits(*call, logits_dtype=BF16, variant=variant)
    assert torch.equal(logits[0].int(), expected.int())


def test_a_logit_past_the_largest_bfloat16_becomes_infinite(variant: str) -> None:
    call, _ = ties()
    largest = torch.finfo(F32).max
    call = call._replace(k_scale=torch.full((256,), largest / 512), weights=torch.tensor([[512 / 511]]))
    logits = fp8_mqa_logits(*call, logits_dtype=BF16, variant=variant)[0]
    assert torch.equal(logits, fp8_mqa_logits(*call, variant=variant)[0].to(BF16))
    assert logits[-1].isinf()
    assert logits[0].isfinite()


@pytest.mark.any_triton
def test_nan_stays_nan() -> None:
    call = make_call("full")
    call.q.view(torch.uint8)[2].view(-1)[7] = 0x7F
    logits = fp8_mqa_logits(*call, logits_dtype=BF16, variant="reference")
    assert torch.equal(logits.isnan(), (torch.arange(9) == 2)[:, None].expand(9, 150))


@pytest.mark.any_triton
@pytest.mark.parametrize("keys", [5, 512, 513])
def test_rows_of_a_new_output_begin_at_multiples_of_1024_bytes(keys: int) -> None:
    call = judge.make_call(3, keys, 16, 32)
    for device in ("cpu", "meta"):
        logits = fp8_mqa_logits(*(tensor.to(device) for tensor in call), logits_dtype=BF16)
        assert (logits.dtype, logits.shape) == (BF16, (3, keys))
        assert logits.stride() == (-(-keys // 512) * 512, 1)


@pytest.mark.any_triton
def test_the_default_dtype_leaves_it_to_out() -> None:
    call = judge.make_call(3, 5, 16, 32)
    for out in (torch.empty(3, 5), torch.empty(3, 5, dtype=BF16)):
        assert fp8_mqa_logits(*call, out=out) is out
        assert fp8_mqa_logits(*call, out=out, logits_dtype=out.dtype) is out
    with pytest.raises(TypeError, match=r"^out: got torch.float32 with logits_dtype torch.bfloat16, needs the same"):
        fp8_mqa_logits(*call, out=torch.empty(3, 5), logits_dtype=BF16)


@pytest.mark.any_triton
def test_a_compiled_call_gives_the_same_bits() -> None:
    torch._dynamo.reset()
    call = make_call("ragged")
    compiled = torch.compile(fp8_mqa_logits, fullgraph=True, backend="aot_eager")
    logits = compiled(*call, logits_dtype=BF16)
    assert logits.dtype == BF16
    assert torch.equal(logits, fp8_mqa_logits(*call, logits_dtype=BF16))


@pytest.mark.any_triton
def test_an_output_mode_may_be_of_bfloat16() -> None:
    problem = operation.examples.problem("hip:gfx950", 64, 128, "clean-bf16")
    assert (problem.clean_logits, problem.weights_dtype, problem.logits_dtype) == (True, "bfloat16", "bfloat16")
    inputs, out = operation.examples.call(problem).operands
    assert (inputs.weights.dtype, out.dtype) == (BF16, BF16)
    with pytest.raises(
        ValueError, match=r"^mode: got 'neat-bf16', needs one of unclean, clean, compressed, each also with -bf16"
    ):
        operation.examples.problem("hip:gfx950", 64, 128, "neat-bf16")
