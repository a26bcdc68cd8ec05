"""Each variant of mx_mqa_logits against the formula in float64, on every code and every scale."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from capgate.kernels import mx_mqa_logits, quantize_mx_keys, quantize_mx_queries
from capgate.kernels.common import reference as tiles
from capgate.kernels.common.reference import score_in_bfloat16
from capgate.kernels.mx_logits import reference
from capgate.kernels.mx_logits.operands import Inputs
from support import judge, mx, mx_logits
from support.mx_logits import PAIRS, make_call

MODES = {"clean": (True, None), "unclean": (False, None), "compressed": (False, 50)}
# (rows, keys, heads, dim) with every pair of formats and every mode.
SIZES = [(1, 1, 1, 64), (17, 76, 20, 64), (3, 113, 100, 128), (5, 76, 64, 128)]
GRID = [
    (*size, pair, list(MODES)[(number + other) % 3]) for number, size in enumerate(SIZES) for other, pair in enumerate(PAIRS)
]
GRID += [(9, 76, 16, 32, ("mxfp8", "mxfp8"), "clean")]


@pytest.mark.dealt("pair", "mode")
@pytest.mark.parametrize(("rows", "keys", "heads", "dim", "pair", "mode"), GRID, ids=lambda value: str(value))
def test_logits_agree(variant: str, rows: int, keys: int, heads: int, dim: int, pair: tuple[str, str], mode: str) -> None:
    clean_logits, max_window = MODES[mode]
    call = make_call(rows, keys, heads, dim, pair, "ragged" if rows > 5 else "packed")
    mx_logits.check(call, variant, clean_logits=clean_logits, max_window=max_window)


@pytest.mark.parametrize("pair", PAIRS[:2], ids=str)
def test_operands_may_lie_anyhow_and_floats_be_of_bfloat16(variant: str, pair: tuple[str, str]) -> None:
    call = make_call(5, 40, 12, 64, pair, "ragged")
    laid = call._replace(
        q=judge.laid_out(call.q, (2, 0, 1), 3),
        q_scale=judge.laid_out(call.q_scale, (1, 0), 2),
        k=judge.laid_out(call.k, gap=5, step=2, offset=1),
        k_scale=judge.laid_out(call.k_scale, step=3),
        weights=judge.laid_out(call.weights.bfloat16(), gap=1),
    )
    mx_logits.check(laid, variant, out=judge.sentinels(5, 40, dtype=torch.bfloat16))


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8"])
def test_every_value_times_every_scale_is_exact(variant: str, name: str) -> None:
    """Keys of one value each, whose logit it is, by one head that is 1 and one that is -1: relu(x) - relu(-x) = x."""
    sizes = np.arange(16) if name == "mxfp4" else np.setdiff1d(np.arange(256), (0x7F, 0xFF))
    if name == "mxfp8":
        sizes = sizes[:: 5 if variant == "classic" else 1]
    scale = np.arange(0, 247, 6)
    code, byte = (grid.ravel().astype(np.uint8) for grid in np.meshgrid(sizes, scale))
    k, scales = np.zeros((len(code), mx.key_bytes(name, 64)), np.uint8), np.zeros((len(code), 4), np.uint8)
    k[:, -2], scales[:, 1] = (code << 4 if name == "mxfp4" else code), byte
    q = np.zeros((1, 2, 32), np.uint8)
    place = 61 if name == "mxfp4" else 62
    q[0, :, place // 2] = np.array([0x2, 0xA]) << 4 * (place % 2)
    call = mx_logits.MxCall(
        torch.from_numpy(q),
        torch.full((1, 2), 0x7F7F7F7F, dtype=torch.int32),
        torch.from_numpy(k).view(mx_logits.DTYPES[name]),
        torch.from_numpy(scales).view(torch.int32)[:, 0],
        torch.tensor([[1.0, -1.0]]),
        *judge.make_windows("full", 1, len(code)),
    )
    logits = mx_mqa_logits(*call, variant=variant)[0].double().numpy()
    expected = mx.dequantized(k, scales[:, :2], name)[:, place]
    normal = (np.abs(expected) >= 2.0**-126) | (expected == 0)
    assert normal.sum() > 0.8 * len(code)
    np.testing.assert_array_equal(logits[normal], expected[normal])
    assert (np.abs(logits - expected)[~normal] < 2.0**-125).all()


@pytest.mark.parametrize(("operand", "pair"), [("q", PAIRS[1]), ("k", PAIRS[1]), ("q_scale", PAIRS[0]), ("k_scale", PAIRS[0])])
def test_nan_reaches_the_logits_it_touches_and_no_others(variant: str, operand: str, pair: tuple[str, str]) -> None:
    call = make_call(5, 20, 16, 64, pair, "full")
    clean = mx_mqa_logits(*call, variant=variant)
    getattr(call, operand)[2:3].view(torch.uint8).view(-1)[1] = 0xFF
    touched = torch.zeros(5, 20, dtype=torch.bool)
    touched[(2, slice(None)) if operand.startswith("q") else (slice(None), 2)] = True
    logits = mx_mqa_logits(*call, variant=variant)
    assert torch.equal(logits.isnan(), touched)
    assert torch.equal(logits[~touched], clean[~touched])


@pytest.mark.any_triton
def test_quantised_operands_score_as_what_they_were() -> None:
    """Formats, words of scales and signatures fit together."""
    random = torch.Generator().manual_seed(0)
    q, k, weights = (torch.randn(shape, generator=random) for shape in ((4, 64, 128), (90, 128), (4, 64)))
    starts, ends = judge.make_windows("full", 4, 90)
    expected = torch.einsum("ih,ihj->ij", weights / (128 * 64) ** 0.5, torch.einsum("ihd,jd->ihj", q, k).relu())
    for name, limit in (("mxfp4", 0.02), ("mxfp8", 1e-3)):  # upstream's limits against what was quantised
        queries, q_scale, folded = quantize_mx_queries(q, weights, name, rule="vllm")
        keys, k_scale = quantize_mx_keys(k, name, rule="vllm")
        logits = mx_mqa_logits(queries, q_scale, keys, k_scale, folded, starts, ends)
        assert 0 < judge.calc_diff(logits, expected) < limit


@pytest.mark.any_triton
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_reference_in_float64_is_the_formula_rounded_once(pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in small chunks, which bound its memory."""
    monkeypatch.setattr(tiles, "SCORE_BYTES", 2**15)
    monkeypatch.setattr(tiles, "KEY_TILE", 32)
    call, out = make_call(17, 76, 64, 128, pair, "ragged"), torch.empty(17, 76)
    reference.launch(Inputs(*call), out, clean_logits=True, compressed=False, accumulate=torch.float64)
    answer = judge.formula(mx_logits.meaning(call))
    error = (out.double() - answer.logits)[answer.inside].abs()
    assert (error <= (2.0**-24 * answer.logits[answer.inside].abs() + 2.0**-40 * answer.magnitude[answer.inside])).all()


def to_bfloat16(value: Fraction) -> Fraction:
    """The nearest of eight significant bits, ties to even."""
    if value == 0:
        return value
    exponent = abs(value.numerator).bit_length() - value.denominator.bit_length()
    if abs(value) < Fraction(2) ** exponent:
        exponent -= 1
    return round(value / Fraction(2) ** (exponent - 7)) * Fraction(2) ** (exponent - 7)


@pytest.mark.any_triton
@pytest.mark.parametrize("heads", [3, 64])
def test_sums_in_bfloat16_are_those_of_deep_gemm_on_sm100(heads: int) -> None:
    """In fractions: relu rounded, fused multiply-adds into four sums, then (p0 + p2) + (p1 + p3)."""
    random = torch.Generator().manual_seed(heads)
    query, keys = (torch.randint(-6, 7, shape, generator=random).float() for shape in ((3, heads, 64), (20, 64)))
    weight = torch.randn((3, heads), generator=random) * torch.logspace(-5, 2, heads)
    found = score_in_bfloat16(query, weight, keys)
    for row in range(3):
        factors = [to_bfloat16(Fraction(float(value))) for value in weight[row]]
        for key in range(20):
            sums = [Fraction(0)] * 4
            for head in range(heads):
                dot = Fraction(float(query[row, head] @ keys[key]))
                sums[head % 4] = to_bfloat16(sums[head % 4] + to_bfloat16(max(dot, Fraction(0))) * factors[head])
            left, right = to_bfloat16(sums[0] + sums[2]), to_bfloat16(sums[1] + sums[3])
            assert Fraction(float(found[row, key])) == to_bfloat16(left + right)
