"""Matrix instructions and number formats, against layouts written out lane by lane, and torch's fp8."""

import numpy as np
import pytest
import torch

from emulator import formats
from emulator.bench import Bench

DTYPES = {
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f32": torch.float32,
    "fp8": torch.float8_e4m3fn,
    "bf8": torch.float8_e5m2,
}


def place(bench: Bench, register: int, values: torch.Tensor, depths: list[list[int]], lane: int, line: int) -> None:
    """Put one lane's share of a line of A or B into its registers."""
    share = values[line, depths[lane // values.shape[0]]].contiguous()
    words = share.view(torch.uint8).numpy().view(np.uint32)
    bench.v[register : register + len(words), 0, lane] = words


CLASSIC = [
    ("v_mfma_f32_32x32x16_bf16", 32, 16, "bf16", "bf16"),
    ("v_mfma_f32_16x16x32_bf16", 16, 32, "bf16", "bf16"),
    ("v_mfma_f32_32x32x8_f16", 32, 8, "f16", "f16"),
    ("v_mfma_f32_16x16x16_f16", 16, 16, "f16", "f16"),
    ("v_mfma_f32_32x32x2_f32", 32, 2, "f32", "f32"),
    ("v_mfma_f32_16x16x4_f32", 16, 4, "f32", "f32"),
    ("v_mfma_f32_32x32x16_fp8_bf8", 32, 16, "fp8", "bf8"),
    ("v_mfma_f32_16x16x32_fp8_fp8", 16, 32, "fp8", "fp8"),
]


@pytest.mark.parametrize(("name", "side", "depth", "left", "right"), CLASSIC)
@pytest.mark.parametrize("accumulate", [False, True])
def test_products(name, side, depth, left, right, accumulate):
    bench = Bench(waves=1)
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(side, depth, generator=generator).to(DTYPES[left])
    b = torch.randn(side, depth, generator=generator).to(DTYPES[right])
    groups = 64 // side
    each = depth // groups
    depths = [list(range(group * each, (group + 1) * each)) for group in range(groups)]
    for lane in range(64):
        place(bench, 0, a, depths, lane, lane % side)
        place(bench, 8, b, depths, lane, lane % side)
    registers, a_count, b_count = side * side // 64, each * a.element_size() // 4, each * b.element_size() // 4
    start = bench.random.standard_normal((registers, 1, 64)).astype(np.float32)
    bench.v[32 : 32 + registers] = start.view(np.uint32)
    addend = f"v[32:{31 + registers}]" if accumulate else "0"
    bench.active = np.arange(64) < 3  # which must not matter
    a_operand, b_operand = (
        f"v[{first}:{first + n - 1}]" if n > 1 else f"v{first}" for first, n in ((0, a_count), (8, b_count))
    )
    bench.do(f"{name} a[0:{registers - 1}], {a_operand}, {b_operand}, {addend}")
    found = bench.v[64 : 64 + registers].view(np.float32)
    product, size = a.double() @ b.double().T, a.double().abs() @ b.double().abs().T + 1
    for lane in range(64):
        for register in range(registers):
            line = 8 * (register // 4) + 4 * (lane // 32) + register % 4 if side == 32 else 4 * (lane // 16) + register
            expected = float(product[line, lane % side]) + (float(start[register, 0, lane]) if accumulate else 0.0)
            assert abs(found[register, 0, lane] - expected) <= 2e-7 * float(size[line, lane % side])


SMALL = {0: formats.E4M3, 1: formats.E5M2, 2: formats.E2M3, 3: formats.E3M2, 4: formats.E2M1}


def packed(codes: list[int], bits: int) -> list[int]:
    """Codes from bit 0 upwards, as dwords."""
    whole = sum(code << position * bits for position, code in enumerate(codes))
    return [whole >> 32 * word & 0xFFFF_FFFF for word in range(len(codes) * bits // 32)]


@pytest.mark.parametrize("side", [32, 16])
@pytest.mark.parametrize(("left", "right"), [(0, 0), (4, 4), (0, 4), (1, 2), (3, 0)])
def test_block_scaled_products(side, left, right):
    """Every format, with a scale of its own for 32 values along the depth, in any byte of its register."""
    bench, depth = Bench(waves=1), 2048 // side
    codes = [bench.random.integers(0, 1 << SMALL[f].bits, (side, depth)) for f in (left, right)]
    for matrix, number_format in zip(codes, (left, right), strict=True):  # neither NaN nor infinity
        matrix[~np.isfinite(formats.table(SMALL[number_format])[matrix])] = 1
    scales = bench.random.integers(100, 150, (2, side, depth // 32))
    bytes_used = (3, 1)
    bench.random_words(20, 21)
    for operand, number_format in enumerate((left, right)):
        for lane in range(64):
            line, group = lane % side, lane // side
            if SMALL[number_format].bits == 8:
                columns = [*range(16 * group, 16 * group + 16), *range(depth // 2 + 16 * group, depth // 2 + 16 * group + 16)]
            else:
                columns = range(32 * group, 32 * group + 32)
            words = packed([int(codes[operand][line, column]) for column in columns], SMALL[number_format].bits)
            bench.v[8 * operand : 8 * operand + len(words), 0, lane] = words
            shift = 8 * bytes_used[operand]
            kept = int(bench.v[20 + operand, 0, lane]) & ~(0xFF << shift)
            bench.v[20 + operand, 0, lane] = kept | int(scales[operand, line, group]) << shift
    counts = [{8: 8, 6: 6, 4: 4}[SMALL[f].bits] for f in (left, right)]
    registers = side * side // 64
    bench.do(
        f"v_mfma_scale_f32_{side}x{side}x{depth}_f8f6f4 v[32:{31 + registers}], v[0:{counts[0] - 1}], v[8:{7 + counts[1]}], 0, "
        f"v20, v21 op_sel:[1,1,0] op_sel_hi:[1,0,0] cbsz:{left} blgp:{right}"
    )
    a, b = (
        formats.table(SMALL[f])[matrix] * np.repeat(2.0 ** (scale - 127.0), 32, axis=1)
        for f, matrix, scale in zip((left, right), codes, scales, strict=True)
    )
    product, size = a @ b.T, np.abs(a) @ np.abs(b).T
    found = bench.v[32 : 32 + registers].view(np.float32)
    for lane in range(64):
        for register in range(registers):
            line = 8 * (register // 4) + 4 * (lane // 32) + register % 4 if side == 32 else 4 * (lane // 16) + register
            assert abs(found[register, 0, lane] - product[line, lane % side]) <= 1e-7 * size[line, lane % side]


@pytest.mark.parametrize(("number_format", "dtype"), [(formats.E4M3, torch.float8_e4m3fn), (formats.E5M2, torch.float8_e5m2)])
def test_fp8_tables_and_rounding(number_format, dtype):
    every = torch.arange(256, dtype=torch.uint8).view(dtype).double().numpy()
    np.testing.assert_array_equal(formats.table(number_format), every)
    finite = np.sort(every[np.isfinite(every)])
    middles = (finite[1:] + finite[:-1]) / 2
    values = np.concatenate([finite, middles, np.nextafter(middles, np.inf), np.nextafter(middles, -np.inf), [0.0, -0.0]])
    values = values.astype(np.float32)
    expected = torch.from_numpy(values).to(dtype).view(torch.uint8).numpy()
    np.testing.assert_array_equal(formats.encode(values, number_format, saturate=False), expected)


@pytest.mark.parametrize(
    ("number_format", "dtype"), [(formats.E4M3_FNUZ, torch.float8_e4m3fnuz), (formats.E5M2_FNUZ, torch.float8_e5m2fnuz)]
)
def test_fnuz_tables(number_format, dtype):
    every = torch.arange(256, dtype=torch.uint8).view(dtype).double().numpy()
    np.testing.assert_array_equal(formats.table(number_format), every)


def test_fp8_overflow():
    large = np.array([1e6, -1e6, np.inf, np.nan], np.float32)
    assert formats.encode(large, formats.E4M3, saturate=False).tolist() == [0x7F, 0xFF, 0x7F, 0x7F]
    assert formats.encode(large, formats.E4M3, saturate=True).tolist() == [0x7E, 0xFE, 0x7E, 0x7F]
    assert formats.encode(large, formats.E5M2, saturate=False).tolist() == [0x7C, 0xFC, 0x7C, 0x7F]


def test_small_formats():
    assert formats.table(formats.E2M1)[:8].tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert formats.table(formats.E2M3)[[1, 8, 31]].tolist() == [0.125, 1, 7.5]
    assert formats.table(formats.E3M2)[[1, 4, 31]].tolist() == [0.0625, 0.25, 28]


def test_fp8_conversions():
    bench = Bench(waves=1)
    bench.v[1:3] = bench.random.standard_normal((2, 1, 64)).astype(np.float32).view(np.uint32)
    bench.v[0] = 0xDEAD_BEEF
    bench.do(
        "v_cvt_scalef32_pk_fp8_f32 v0, v1, v2, 0.5 op_sel:[0,0,0,1]", "v_cvt_scalef32_pk_f32_fp8 v[4:5], v0, 0.5 op_sel:[1,0,0]"
    )
    for register in (1, 2):
        exact = torch.from_numpy(bench.v[register].view(np.float32).copy()) * 2
        code = exact.to(torch.float8_e4m3fn)
        found = bench.v[0] >> np.uint32(8 * register + 8) & 0xFF
        np.testing.assert_array_equal(found, code.view(torch.uint8).numpy())
        np.testing.assert_array_equal(bench.v[3 + register].view(np.float32), code.float().numpy() / 2)
    assert (bench.v[0] & 0xFFFF == 0xBEEF).all()
