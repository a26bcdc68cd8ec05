"""Keys and queries in MX formats: every variant's bytes are those of the producer's rule, stated again in exact numbers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from capgate.kernels import dequantize_mx, quantize_keys_to_cache, quantize_mx_keys, quantize_mx_queries
from capgate.kernels.mx_quantization import reference
from capgate.kernels.mx_quantization.operands import Inputs
from capgate.kernels.mx_quantization.operation import Problem
from support import mx

each_rule = pytest.mark.parametrize(("name", "rule"), mx.PRODUCERS, ids=["-".join(kind) for kind in mx.PRODUCERS])


@pytest.fixture(params=[pytest.param("reference", marks=pytest.mark.any_triton), "classic"])
def quantize(request: pytest.FixtureRequest) -> Callable[[torch.Tensor, str, str], tuple[np.ndarray, np.ndarray]]:
    """Bytes and scales of values [n, D], by a variant called as the operation calls it."""
    if request.param == "reference":
        launch = reference.launch
    else:
        request.getfixturevalue("interpreter")
        from capgate.kernels.mx_quantization import classic

        launch = partial(classic.kernel.launch, Problem(torch.device("cpu")))

    def bytes_of(values: torch.Tensor, name: str, rule: str) -> tuple[np.ndarray, np.ndarray]:
        rows, dim = values.shape
        octets = torch.full((rows, mx.key_bytes(name, dim)), 0xAA, dtype=torch.uint8)
        words = torch.full((rows,), -1, dtype=torch.int32)
        launch(Inputs(values), octets, words, key_format=name, rule=rule)
        scales = words[:, None].view(torch.uint8).numpy()
        assert not scales[:, dim // 32 :].any()
        return octets.numpy(), scales[:, : dim // 32]

    return bytes_of


def agree(found: tuple[np.ndarray, np.ndarray], values: torch.Tensor, name: str, rule: str) -> None:
    for one, expected in zip(found, mx.quantized(values.float().double().numpy(), name, rule), strict=True):
        np.testing.assert_array_equal(one, expected)


def every_bfloat16() -> torch.Tensor:
    """All 2**16 of them in rows of 128: neighbours share their exponent, and with it most of their scale."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).view(-1, 128)


def every_size(name: str) -> torch.Tensor:
    """All bfloat16 values of a format's range, in groups whose scale is 1: a largest value stands in front of each."""
    top = mx.SIZES[name][-1]
    values = every_bfloat16().flatten()
    values = values[values.abs() <= top]
    values = torch.cat([values, values.new_zeros(-len(values) % (31 * 4))]).view(-1, 31)
    return torch.cat([values.new_full((len(values), 1), top), values], 1).view(-1, 128)


@pytest.mark.dealt("name")
@each_rule
def test_every_bfloat16_is_rounded_as_the_producer_rounds_it(quantize: Any, name: str, rule: str) -> None:
    values = torch.cat([every_bfloat16(), every_size(name)])
    agree(quantize(values, name, rule), values, name, rule)


@pytest.mark.dealt("name")
@each_rule
def test_every_scale_is_the_producer_s(quantize: Any, name: str, rule: str) -> None:
    """float32 magnitudes from the largest to the smallest, on both sides of each power of two times the format's largest."""
    edges = torch.tensor(mx.SIZES[name][-1]) * torch.logspace(-149, 125, 275, base=2, dtype=torch.float64).float()
    edges = edges[edges.isfinite()]
    edges = torch.cat([edges, edges.nextafter(torch.tensor(0.0)), edges.nextafter(torch.tensor(torch.inf))])
    edges = torch.cat([edges, torch.tensor([0.0, -0.0, 1e-4, 1e-4 * 6, 1e-4 * 448, 3.4028234663852886e38])])
    edges = torch.cat([edges, edges.new_zeros(-len(edges) % 4)])
    groups = torch.zeros(len(edges), 32)
    groups[:, 3], groups[:, 4], groups[:, 5] = edges, -edges / 3, -edges * 1e-3
    values = groups.view(-1, 128)
    agree(quantize(values, name, rule), values, name, rule)


@pytest.mark.dealt("name")
@each_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_group_that_is_not_finite_is_nan_and_its_neighbours_are_not(
    quantize: Any, name: str, rule: str, dtype: torch.dtype
) -> None:
    values = torch.randn(9, 128, generator=torch.Generator().manual_seed(1)).to(dtype)
    for row, bad in enumerate(["nan", "-nan", "inf", "-inf"]):
        values[2 * row, 40] = float(bad)
    found = quantize(values, name, rule)
    agree(found, values, name, rule)
    words = torch.from_numpy(found[1].copy()).view(torch.int32)[:, 0]
    hit = dequantize_mx(torch.from_numpy(found[0]), words, name).isnan()
    whole_key = (name, rule) == ("mxfp8", "vllm")
    assert hit[:8:2].view(4, 4, 32).all(-1).tolist() == [[whole_key, True, whole_key, whole_key]] * 4
    assert not hit[1::2].any()


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8"])
def test_any_strides_and_dims(quantize: Any, name: str) -> None:
    for dim in (64, 128) if name == "mxfp4" else (32, 64):
        values = torch.randn(dim, 2, 21, generator=torch.Generator().manual_seed(dim))[:, 1].t()
        agree(quantize(values, name, "deepgemm"), values, name, "deepgemm")


@pytest.mark.any_triton
@pytest.mark.parametrize("largest", [6.0, 448.0])
def test_no_bfloat16_is_so_near_a_power_of_two_that_a_float32_logarithm_errs(largest: float) -> None:
    """Producers take the logarithm in float32; ours is exact."""
    values = every_bfloat16().flatten().float().numpy()
    values = values[np.isfinite(values) & (values > 2.0**-120)]
    logarithms = np.ceil(np.log2(values / np.float32(largest)))
    multiplied = np.ceil(np.log2(values * np.float32(1 / largest)))
    exact = np.array([mx.exponent(float(value), "mxfp4" if largest == 6 else "mxfp8", "deepgemm") for value in values])
    known = values > 1e-4
    assert np.array_equal(logarithms[known], exact[known])
    assert np.array_equal(multiplied[known], exact[known])


# --- the public functions -------------------------------------------------------------------------------------------------


@pytest.mark.any_triton
@each_rule
def test_values_come_back_within_half_a_step_and_then_exactly(name: str, rule: str) -> None:
    k = torch.randn(60, 128, generator=torch.Generator().manual_seed(2)) * torch.logspace(-1, 3, 60)[:, None]
    octets, words = quantize_mx_keys(k, name, rule=rule)
    back = dequantize_mx(octets, words, name)
    scale = torch.exp2(words[:, None].view(torch.uint8).float() - 127).repeat_interleave(32, 1)
    fraction, least = (2**-2, 2**-2) if name == "mxfp4" else (2**-4, 2**-10)
    assert ((back - k).abs() <= torch.maximum(k.abs() * fraction, scale * least)).all()
    assert torch.equal(dequantize_mx(*quantize_mx_keys(back, name, rule=rule), name), back)


@pytest.mark.any_triton
@pytest.mark.parametrize("paged", [False, True])
@each_rule
def test_scores_of_queries_and_their_weights(name: str, rule: str, paged: bool) -> None:
    """What the parts of a query mean together is what was quantised, whether a scale stays or goes into the weight."""
    generator = torch.Generator().manual_seed(3)
    shape = (2, 3, 4) if paged else (5, 4)
    q, weights = torch.randn(*shape, 128, generator=generator), torch.randn(*shape, generator=generator)
    octets, words, folded = quantize_mx_queries(q, weights, name, rule=rule)
    assert (octets.shape[:-1], words.shape, folded.shape) == (shape, shape, shape)
    if (name, rule) == ("mxfp8", "vllm"):
        assert (words == 0x7F7F7F7F).all()
    else:
        assert torch.equal(folded, weights * (128**-0.5 * 4**-0.5))
    keys, scales = quantize_mx_keys(q.flatten(0, -2), name, rule=rule)
    expected = dequantize_mx(keys, scales, name).view(*shape, 128) * (weights * (128**-0.5 * 4**-0.5))[..., None]
    torch.testing.assert_close(dequantize_mx(octets, words, name) * folded[..., None], expected)
    q[..., 1, 5] = torch.inf
    octets, words, folded = quantize_mx_queries(q, weights, name, rule=rule)
    assert (dequantize_mx(octets, words, name) * folded[..., None])[..., 1, :32].isnan().all()


@pytest.mark.any_triton
def test_vllm_s_mxfp8_key_is_an_fp8_key_with_a_power_of_two_as_scale() -> None:
    """Its byte stands four times in place of a float32."""
    k = torch.randn(64, 128, generator=torch.Generator().manual_seed(4)) * torch.logspace(-7, 5, 64)[:, None]
    cache = torch.zeros(64, 132, dtype=torch.uint8)
    quantize_keys_to_cache(k, cache.view(64, 1, 1, 132), torch.arange(64), scale_format="ue8m0")
    octets, words = quantize_mx_keys(k, "mxfp8", rule="vllm")
    assert torch.equal(octets.view(torch.uint8), cache[:, :128])
    scales = cache[:, 128:].contiguous().view(torch.int32)[:, 0]
    assert torch.equal(words, (scales >> 23) * 0x01010101)


BAD = {
    "list": ({"k": [1.0]}, TypeError, "k: got list"),
    "no keys": ({"k": torch.zeros(128)}, ValueError, "k: got shape"),
    "dim 32 in mxfp4": ({"k": torch.zeros(3, 32)}, ValueError, r"k: got shape \(3, 32\), needs \[N, D\] with D in \(64, 128\)"),
    "double": ({"k": torch.zeros(3, 64).double()}, TypeError, "k: got torch.float64"),
    "requires grad": ({"k": torch.zeros(3, 64).requires_grad_()}, ValueError, "k: requires grad"),
    "format": ({"key_format": "fp4"}, ValueError, "key_format: got 'fp4', needs 'mxfp8' or 'mxfp4'"),
    "fp8": ({"key_format": "fp8"}, ValueError, "key_format: got 'fp8', needs"),
    "rule": ({"rule": "nvidia"}, ValueError, "rule: got 'nvidia', needs 'vllm', 'deepgemm', 'sglang', 'sglang-rne' or 'aiter'"),
    "rule of another": ({"key_format": "mxfp8", "rule": "aiter"}, ValueError, "rule: got 'aiter', needs 'vllm' or 'deepgemm'"),
    "rule none": ({"rule": None}, TypeError, "rule: got NoneType"),
    "a whole key of 64": (
        {"key_format": "mxfp8"},
        ValueError,
        "rule: got 'vllm', which in mxfp8 has D 128; with D 64 needs 'deepgemm'",
    ),
}


@pytest.mark.any_triton
@pytest.mark.parametrize(("change", "error", "words"), BAD.values(), ids=BAD)
def test_what_it_does_not_take_is_named(change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=f"^{words}"):
        quantize_mx_keys(**{"k": torch.zeros(3, 64)} | change)


@pytest.mark.any_triton
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"q": torch.zeros(2, 4, 32)}, ValueError, "q: got shape"),
        ({"weights": torch.zeros(2, 3)}, ValueError, r"weights: got shape \(2, 3\), needs \[2, 4\] to match q"),
        ({"weights": torch.zeros(2, 4).int()}, TypeError, "weights: got torch.int32"),
        ({"key_format": "mxfp6"}, ValueError, "key_format: got 'mxfp6'"),
    ],
)
def test_what_queries_it_does_not_take_is_named(change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=f"^{words}"):
        quantize_mx_queries(**{"q": torch.zeros(2, 4, 64), "weights": torch.zeros(2, 4)} | change)


@pytest.mark.any_triton
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"octets": [0]}, TypeError, "octets: got list, needs a tensor of a type of one byte"),
        ({"octets": torch.zeros(3, 32)}, TypeError, "octets: got torch.float32"),
        ({"octets": torch.zeros(3, 16).byte()}, ValueError, r"octets: got shape \(3, 16\), needs D in \(64, 128\) in mxfp4"),
        ({"scales": torch.zeros(3)}, TypeError, "scales: got torch.float32, needs torch.int32"),
        ({"scales": torch.zeros(3, 1).int()}, ValueError, r"scales: got shape \(3, 1\), needs \[3\] to match octets"),
        ({"key_format": "fp8"}, ValueError, "key_format: got 'fp8'"),
    ],
)
def test_what_has_no_values_is_named(change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=f"^{words}"):
        dequantize_mx(**{"octets": torch.zeros(3, 32).byte(), "scales": torch.zeros(3).int()} | change)


@pytest.mark.any_triton
def test_it_compiles_with_torch_and_takes_no_rows() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(quantize_mx_keys, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (5, 9):
        k = torch.randn(rows, 64)
        for one, expected in zip(compiled(k), quantize_mx_keys(k), strict=True):
            assert torch.equal(one, expected)
    torch.library.opcheck(torch.ops.capgate.quantize_mx, (torch.randn(3, 64), "mxfp4", "sglang"))
    octets, words, folded = quantize_mx_queries(torch.zeros(0, 4, 64), torch.zeros(0, 4))
    assert (octets.shape, words.shape, folded.shape) == ((0, 4, 32), (0, 4), (0, 4))
