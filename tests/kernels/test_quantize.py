"""Quantisation: scales are what the engines compute, and what is quantised dequantises to about the same."""

import pytest
import torch

from capgate.kernels.quantize import FP8_MAX, quantize_keys, quantize_queries

DTYPES = list(FP8_MAX)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale_format", ["fp32", "ue8m0"])
def test_keys_dequantise_within_half_a_step(dtype, scale_format):
    k = torch.randn(50, 64, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 3, 50)[:, None]
    quantized, scale = quantize_keys(k, dtype, scale_format=scale_format)
    assert quantized.dtype == dtype
    step = k.abs() * 2**-4 + scale[:, None] * 2**-10  # three fraction bits: half a step of normal and subnormal values
    assert ((quantized.float() * scale[:, None] - k).abs() <= step).all()


def test_the_largest_magnitude_becomes_the_largest_fp8_value():
    quantized, scale = quantize_keys(torch.tensor([[1.0, -3.5, 0.0]]))
    assert quantized.float().tolist()[0][1] == -448
    assert scale.tolist() == [torch.tensor(3.5).div(448).item()]


def test_ue8m0_rounds_scales_up_to_powers_of_two():
    k = torch.tensor([448.0, 449.0, 447.0, 896.0])[:, None]
    assert quantize_keys(k, scale_format="ue8m0")[1].tolist() == [1.0, 2.0, 1.0, 2.0]


def test_a_row_of_zeros_has_a_finite_scale():
    quantized, scale = quantize_keys(torch.zeros(1, 32))
    assert scale.item() == pytest.approx(1e-4 / 448)
    assert not quantized.float().any()


def test_query_scales_are_folded_into_the_weights():
    q, weights = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(2)), torch.tensor([[1.0, -2.0, 0.0, 3.0]] * 3)
    quantized, folded = quantize_queries(q, weights)
    scale = q.abs().amax(-1) / 448
    torch.testing.assert_close(folded, weights * scale * 32**-0.5 * 4**-0.5)
    assert quantized.shape == q.shape


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf"), float("-inf")])
def test_a_query_that_is_not_finite_is_nan_altogether(dtype, bad):
    q, weights = torch.ones(2, 3, 32), torch.ones(2, 3)
    q[1, 2, 7] = bad
    quantized, folded = quantize_queries(q, weights, dtype)
    assert set(quantized[1, 2].view(torch.uint8).tolist()) == {0x7F if dtype == torch.float8_e4m3fn else 0x80}
    assert torch.equal(folded.isnan(), torch.tensor([[False] * 3, [False, False, True]]))
    assert quantized.float().isnan().sum() == 32


BAD_KEYS = {
    "list": ([[1.0]], TypeError),
    "one dimension": (torch.ones(32), ValueError),
    "three dimensions": (torch.ones(1, 2, 32), ValueError),
    "no values": (torch.ones(3, 0), ValueError),
    "integers": (torch.ones(3, 32, dtype=torch.int32), TypeError),
    "quantised already": (torch.ones(3, 32).to(torch.float8_e4m3fn), TypeError),
    "complex": (torch.ones(3, 32, dtype=torch.complex64), TypeError),
    "sparse": (torch.ones(3, 32).to_sparse(), TypeError),
}


@pytest.mark.parametrize(("k", "error"), BAD_KEYS.values(), ids=BAD_KEYS)
def test_bad_keys_are_refused_by_name(k, error):
    with pytest.raises(error, match=r"^k: got "):
        quantize_keys(k)


@pytest.mark.parametrize(
    ("q", "weights", "error", "argument"),
    [
        (torch.ones(4, 32), torch.ones(4), ValueError, "q"),
        (torch.ones(2, 2, 2, 4, 32), torch.ones(2, 2, 2, 4), ValueError, "q"),
        (torch.ones(2, 0, 32), torch.ones(2, 0), ValueError, "q"),
        (torch.ones(2, 4, 32).int(), torch.ones(2, 4), TypeError, "q"),
        (None, torch.ones(2, 4), TypeError, "q"),
        (torch.ones(2, 4, 32), None, TypeError, "weights"),
        (torch.ones(2, 4, 32), torch.ones(2, 1), ValueError, "weights"),
        (torch.ones(2, 4, 32), torch.ones(4), ValueError, "weights"),
        (torch.ones(2, 4, 32), torch.ones(2, 1, 4), ValueError, "weights"),
        (torch.ones(2, 1, 4, 32), torch.ones(2, 4), ValueError, "weights"),
        (torch.ones(2, 4, 32), torch.ones(2, 4).int(), TypeError, "weights"),
        (torch.ones(2, 4, 32), torch.ones(2, 4, device="meta"), ValueError, "weights"),
    ],
)
def test_bad_queries_are_refused_by_name(q, weights, error, argument):
    with pytest.raises(error, match=f"^{argument}: got "):
        quantize_queries(q, weights)


@pytest.mark.parametrize("keywords", [{"dtype": "float8_e4m3fn"}, {"dtype": None}, {"scale_format": None}])
def test_what_is_no_dtype_or_format(keywords):
    with pytest.raises(TypeError, match=f"^{next(iter(keywords))}: got "):
        quantize_keys(torch.ones(1, 32), **keywords)


@pytest.mark.parametrize(
    ("keywords", "argument"), [({"dtype": torch.float8_e5m2}, "dtype"), ({"scale_format": "fp16"}, "scale_format")]
)
def test_what_it_cannot_do_is_named(keywords, argument):
    with pytest.raises(ValueError, match=f"^{argument}: got "):
        quantize_keys(torch.ones(1, 32), **keywords)
