"""Vector instructions against Python's own arithmetic, lane by lane."""

import math
import struct

import numpy as np
import pytest

from emulator import UnknownInstruction
from emulator.bench import Bench

WORD = 0xFFFF_FFFF


def signed(value: int) -> int:
    return value - 2**32 if value >> 31 else value


INTEGERS = {
    "v_add_u32_e32": lambda a, b: a + b,
    "v_sub_u32_e32": lambda a, b: a - b,
    "v_subrev_u32_e32": lambda a, b: b - a,
    "v_mul_lo_u32": lambda a, b: a * b,
    "v_mul_hi_u32": lambda a, b: a * b >> 32,
    "v_mul_hi_i32": lambda a, b: signed(a) * signed(b) >> 32,
    "v_mul_u32_u24_e32": lambda a, b: (a & 0xFFFFFF) * (b & 0xFFFFFF),
    "v_min_i32_e32": lambda a, b: min(signed(a), signed(b)),
    "v_max_i32_e32": lambda a, b: max(signed(a), signed(b)),
    "v_min_u32_e32": min,
    "v_max_u32_e32": max,
    "v_and_b32_e32": lambda a, b: a & b,
    "v_or_b32_e32": lambda a, b: a | b,
    "v_xor_b32_e32": lambda a, b: a ^ b,
    "v_lshlrev_b32_e32": lambda a, b: b << (a & 31),
    "v_lshrrev_b32_e32": lambda a, b: b >> (a & 31),
    "v_ashrrev_i32_e32": lambda a, b: signed(b) >> (a & 31),
    "v_bfm_b32": lambda a, b: ((1 << (a & 31)) - 1) << (b & 31),
    "v_bcnt_u32_b32": lambda a, b: a.bit_count() + b,
    "v_lshlrev_b16_e32": lambda a, b: b << (a & 15) & 0xFFFF,
    "v_lshrrev_b16_e32": lambda a, b: (b & 0xFFFF) >> (a & 15),
    "v_add3_u32": lambda a, b, c: a + b + c,
    "v_lshl_add_u32": lambda a, b, c: (a << (b & 31)) + c,
    "v_add_lshl_u32": lambda a, b, c: (a + b & WORD) << (c & 31),
    "v_lshl_or_b32": lambda a, b, c: (a << (b & 31)) | c,
    "v_and_or_b32": lambda a, b, c: a & b | c,
    "v_or3_b32": lambda a, b, c: a | b | c,
    "v_xad_u32": lambda a, b, c: (a ^ b) + c,
    "v_bfi_b32": lambda a, b, c: a & b | ~a & c,
    "v_bfe_u32": lambda a, b, c: a >> (b & 31) & ((1 << (c & 31)) - 1),
    "v_alignbit_b32": lambda a, b, c: (a << 32 | b) >> (c & 31),
    "v_med3_i32": lambda a, b, c: sorted((signed(a), signed(b), signed(c)))[1],
    "v_sad_u32": lambda a, b, c: abs(a - b) + c,
    "v_not_b32_e32": lambda a: ~a,
    "v_bfrev_b32_e32": lambda a: int(f"{a:032b}"[::-1], 2),
    "v_ffbh_u32_e32": lambda a: 32 - a.bit_length() if a else -1,
    "v_ffbl_b32_e32": lambda a: (a & -a).bit_length() - 1,
}


def operands(count: int) -> str:
    return ", ".join(f"v{n + 1}" for n in range(count))


def lanes_of(bench: Bench, count: int, code: str = "I"):
    """(wave, lane, source values) of every lane."""
    for wave in range(bench.waves.count):
        for lane in range(64):
            words = [struct.pack("<I", int(bench.v[n + 1, wave, lane])) for n in range(count)]
            yield wave, lane, [struct.unpack("<" + code, word)[0] for word in words]


@pytest.mark.parametrize("name", INTEGERS)
def test_integers(name):
    formula = INTEGERS[name]
    count = formula.__code__.co_argcount if hasattr(formula, "__code__") else 2
    bench = Bench()
    bench.random_words(0, 1, 2, 3)
    before = bench.v.copy()
    bench.active = bench.random.random((2, 64)) < 0.7
    bench.do(f"{name} v0, {operands(count)}")
    for wave, lane, values in lanes_of(bench, count):
        expected = formula(*values) & WORD if bench.active[wave, lane] else before[0, wave, lane]
        assert bench.v[0, wave, lane] == expected, (name, values)
    assert np.array_equal(bench.v[1:], before[1:])


def single(value: float) -> float:
    """Rounded to float32."""
    return float(np.float32(value))


def number(f):
    """IEEE's minimum or maximum of numbers: NaN loses."""
    return lambda a, b: b if math.isnan(a) else a if math.isnan(b) else f(a, b)


REALS = {
    "v_add_f32_e32": lambda a, b: a + b,
    "v_sub_f32_e32": lambda a, b: a - b,
    "v_mul_f32_e32": lambda a, b: a * b,
    "v_fma_f32": lambda a, b, c: a * b + c,
    "v_max_f32_e32": number(max),
    "v_min_f32_e32": number(min),
    "v_max3_f32": lambda a, b, c: number(max)(number(max)(a, b), c),
    "v_maximum3_f32": lambda a, b, c: math.nan if any(map(math.isnan, (a, b, c))) else max(a, b, c),
    "v_minimum3_f32": lambda a, b, c: math.nan if any(map(math.isnan, (a, b, c))) else min(a, b, c),
    "v_rcp_f32_e32": lambda a: math.copysign(math.inf, a) if a == 0 else 1 / a,
    "v_floor_f32_e32": lambda a: math.floor(a) if math.isfinite(a) else a,
    "v_ceil_f32_e32": lambda a: math.ceil(a) if math.isfinite(a) else a,
    "v_rndne_f32_e32": lambda a: round(a) if math.isfinite(a) else a,
    "v_sqrt_f32_e32": lambda a: math.nan if a < 0 or math.isnan(a) else math.sqrt(a),
}


@pytest.mark.parametrize("name", REALS)
def test_reals(name):
    formula = REALS[name]
    count = formula.__code__.co_argcount
    bench = Bench()
    bench.random_reals(1, 2, 3)
    bench.do(f"{name} v0, {operands(count)}")
    for wave, lane, values in lanes_of(bench, count, "f"):
        with np.errstate(all="ignore"):
            expected = single(formula(*values))
        found = float(bench.v[0].view(np.float32)[wave, lane])
        assert found == expected or (math.isnan(found) and math.isnan(expected)), (name, values, found, expected)


def test_sign_and_output_modifiers():
    bench = Bench()
    bench.random_reals(1, 2)
    a, b = (bench.v[n].view(np.float32).copy() for n in (1, 2))
    bench.do("v_add_f32_e64 v0, -v1, |v2|", "v_mul_f32_e64 v3, -|v1|, 2.0 clamp", "v_mul_f32_e64 v4, v1, v2 mul:4")
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(bench.v[0].view(np.float32), np.abs(b) - a)
        twice = -np.abs(a) * np.float32(2)
        np.testing.assert_array_equal(bench.v[3].view(np.float32), np.where(twice > 0, np.minimum(twice, 1), 0))
        np.testing.assert_array_equal(bench.v[4].view(np.float32), a * b * np.float32(4))


@pytest.mark.parametrize("table", [0x36, 0xC8, 0x6C, 0xDE, 0x28, 0x00, 0xFF])
def test_three_bit_functions(table):
    bench = Bench()
    bench.random_words(1, 2, 3)
    bench.do(f"v_bitop3_b32 v0, v1, v2, v3 bitop3:{table:#x}")
    for wave, lane, (a, b, c) in lanes_of(bench, 3):
        bits = [table >> ((a >> n & 1) * 4 + (b >> n & 1) * 2 + (c >> n & 1)) & 1 for n in range(32)]
        assert bench.v[0, wave, lane] == sum(bit << n for n, bit in enumerate(bits))


def test_byte_permutation():
    bench = Bench()
    bench.random_words(1, 2)
    bench.v[3] = 0
    for byte in range(4):
        bench.v[3] |= bench.random.integers(0, 14, (2, 64)).astype(np.uint32) << np.uint32(8 * byte)
    bench.do("v_perm_b32 v0, v1, v2, v3")
    for wave, lane, (high, low, select) in lanes_of(bench, 3):
        pool = struct.pack("<II", low, high)
        result = 0
        for position in range(4):
            choice = select >> 8 * position & 0xFF
            if choice < 8:
                byte = pool[choice]
            elif choice < 12:  # the sign of a half
                byte = 0xFF if pool[2 * (choice - 8) + 1] & 0x80 else 0
            else:
                byte = 0 if choice == 12 else 0xFF
            result |= byte << 8 * position
        assert bench.v[0, wave, lane] == result


def test_signed_bit_field():
    bench = Bench()
    bench.random_words(1)
    bench.v[2], bench.v[3] = np.arange(64) % 32, (np.arange(64) * 7 + 1) % 32
    bench.do("v_bfe_i32 v0, v1, v2, v3")
    for wave, lane, (a, offset, width) in lanes_of(bench, 3):
        field = signed(a) >> offset & ((1 << width) - 1)
        expected = field - (1 << width) if width and field >> (width - 1) else field
        assert bench.v[0, wave, lane] == expected & WORD


def test_comparisons_give_a_bit_per_active_lane():
    bench = Bench()
    bench.random_words(1, 2)
    bench.random_reals(3, 4)
    bench.active = bench.random.random((2, 64)) < 0.5
    bench.do("v_cmp_lt_i32_e64 s[4:5], v1, v2", "v_cmp_ge_u32_e32 vcc, v1, v2", "v_cmp_nlt_f32_e64 s[6:7], v3, v4")
    masks = bench.waves.s64
    for wave, lane, (a, b) in lanes_of(bench, 2):
        x, y = (float(bench.v[n].view(np.float32)[wave, lane]) for n in (3, 4))
        active = bool(bench.active[wave, lane])
        found = [int(masks[wave, pair]) >> lane & 1 for pair in (2, 53, 3)]
        assert found == [active and signed(a) < signed(b), active and a >= b, active and not x < y]
    bench.do("v_cndmask_b32_e32 v5, v1, v2, vcc")
    expected = np.where(bench.v[1] >= bench.v[2], bench.v[2], bench.v[1])
    assert np.array_equal(bench.v[5][bench.active], expected[bench.active])


def test_wide_sums_and_products():
    bench = Bench()
    bench.random_words(2, 3, 4, 5)
    bench.do(
        "v_add_co_u32_e32 v6, vcc, v2, v4", "v_addc_co_u32_e32 v7, vcc, v3, v5, vcc",
        "v_sub_co_u32_e32 v8, vcc, v2, v4", "v_subb_co_u32_e32 v9, vcc, v3, v5, vcc",
        "v_mad_u64_u32 v[10:11], s[4:5], v2, v3, v[4:5]", "v_lshl_add_u64 v[12:13], v[2:3], 3, v[4:5]",
        "v_lshlrev_b64 v[14:15], 5, v[2:3]", "v_lshrrev_b64 v[16:17], 37, v[2:3]", "v_ashrrev_i64 v[18:19], 9, v[2:3]",
    )  # fmt: skip

    def wide(first, wave, lane):
        return int(bench.v[first, wave, lane]) | int(bench.v[first + 1, wave, lane]) << 32

    for wave in range(2):
        for lane in range(64):
            a, b = wide(2, wave, lane), wide(4, wave, lane)
            total = int(bench.v[2, wave, lane]) * int(bench.v[3, wave, lane]) + b
            expected = {6: a + b, 8: a - b, 10: total, 12: (a << 3) + b, 14: a << 5, 16: a >> 37}
            expected[18] = (a - 2**64 if a >> 63 else a) >> 9
            for register, value in expected.items():
                assert wide(register, wave, lane) == value % 2**64, register
            assert int(bench.waves.s64[wave, 2]) >> lane & 1 == total >> 64


def test_conversions():
    bench = Bench()
    bench.random_words(1)
    bench.random_reals(2)
    bench.do("v_cvt_f32_u32_e32 v3, v1", "v_cvt_f32_i32_e32 v4, v1", "v_cvt_u32_f32_e32 v5, v2", "v_cvt_i32_f32_e32 v6, v2")
    bench.do("v_cvt_f16_f32_e32 v7, v2", "v_cvt_pk_bf16_f32 v8, v2, v2")
    for wave, lane, (word, _) in lanes_of(bench, 2):
        real = float(bench.v[2].view(np.float32)[wave, lane])
        assert bench.v[3].view(np.float32)[wave, lane] == np.float32(word)
        assert bench.v[4].view(np.float32)[wave, lane] == np.float32(signed(word))
        bounded = 0 if math.isnan(real) else max(-1e30, min(1e30, real))
        assert bench.v[5, wave, lane] == min(max(math.trunc(bounded), 0), WORD)
        assert signed(int(bench.v[6, wave, lane])) == min(max(math.trunc(bounded), -(2**31)), 2**31 - 1)
        if not math.isnan(real):
            with np.errstate(over="ignore"):
                assert bench.v[7, wave, lane] == np.float16(real).view(np.uint16)
            bits = struct.unpack("<I", struct.pack("<f", real))[0]
            upper, rest = bits >> 16, bits & 0xFFFF
            upper += rest > 0x8000 or (rest == 0x8000 and upper & 1)
            assert bench.v[8, wave, lane] == upper | upper << 16


def test_packed_pairs_and_their_selections():
    bench = Bench()
    for register in range(2, 8):
        bench.v[register] = bench.random.standard_normal((2, 64)).astype(np.float32).view(np.uint32)
    x = bench.v.view(np.float32).copy()
    bench.do("v_pk_fma_f32 v[8:9], v[2:3], v[4:5], v[6:7]", "v_pk_mul_f32 v[10:11], v[2:3], v[4:5] op_sel_hi:[1,0]")
    bench.do(
        "v_pk_add_f32 v[12:13], v[2:3], v[4:5] neg_lo:[0,1] neg_hi:[0,1]", "v_pk_mov_b32 v[14:15], v[2:3], v[4:5] op_sel:[1,0]"
    )
    found = bench.v.view(np.float32)
    for half in range(2):
        exact = x[2 + half].astype(float) * x[4 + half] + x[6 + half]
        np.testing.assert_array_equal(found[8 + half], exact.astype(np.float32))
        np.testing.assert_array_equal(found[10 + half], x[2 + half] * x[4])
        np.testing.assert_array_equal(found[12 + half], x[2 + half] - x[4 + half])
    np.testing.assert_array_equal(found[14], x[3])
    np.testing.assert_array_equal(found[15], x[4])


REALS_TO_CLAMP = [0.5, -0.5, 1.0, 1.5, 0.0, -0.0, 1e-42, -1e-42, 3.4e38, math.inf, -math.inf, math.nan]


@pytest.mark.parametrize("keeps_nan", [False, True])
@pytest.mark.parametrize(
    ("text", "factors"),
    [
        ("v_pk_mul_f32 v[4:5], v[2:3], s[0:1] op_sel_hi:[1,0] clamp", (0.5, 0.5)),
        ("v_pk_mul_f32 v[4:5], v[2:3], s[0:1] clamp", (0.5, 2.0)),
        ("v_pk_mul_f32 v[4:5], v[2:3], s[0:1]", (0.5, 2.0)),
    ],
)
def test_packed_clamp(text, factors, keeps_nan):
    """Of both halves, to [0, 1]; a NaN becomes 0 unless MODE.DX10_CLAMP, its bit 8, has been cleared."""
    bench = Bench()
    bench.s[0], bench.s[1] = np.float32(0.5).view(np.uint32), np.float32(2).view(np.uint32)
    for register in (2, 3):
        reals = bench.random.choice(REALS_TO_CLAMP, (2, 64)).astype(np.float32)
        bench.v[register] = reals.view(np.uint32)
    bench.do(
        "s_setreg_imm32_b32 hwreg(HW_REG_MODE, 8, 1), 1", f"s_setreg_imm32_b32 hwreg(HW_REG_MODE, 8, 1), {int(not keeps_nan)}"
    )
    bench.do(text, "v_mul_f32_e64 v6, v2, 0.5 clamp")

    def clamped(value):
        return (math.nan if keeps_nan else 0.0) if math.isnan(value) else min(max(value, 0.0), 1.0)

    found = bench.v.view(np.float32)
    with np.errstate(over="ignore"):
        products = [found[2 + half] * np.float32(factor) for half, factor in enumerate(factors)]
    for half, product in enumerate(products):
        expected = np.vectorize(clamped)(product) if "clamp" in text else product
        np.testing.assert_array_equal(found[4 + half], expected.astype(np.float32))
    np.testing.assert_array_equal(found[6], np.vectorize(clamped)(found[2] * np.float32(0.5)).astype(np.float32))


def test_packed_moves_take_no_clamp():
    with pytest.raises(UnknownInstruction):
        Bench().do("v_pk_mov_b32 v[4:5], v[2:3], v[2:3] clamp")


def test_packed_halves():
    bench = Bench()
    halves = bench.random.standard_normal((3, 2, 64, 2)).astype(np.float16)
    for register in range(3):
        bench.v[1 + register] = halves[register].view(np.uint32)[..., 0]
    bench.do("v_pk_add_f16 v0, v1, v2", "v_pk_fma_f16 v4, v1, v2, v3 op_sel_hi:[0,1,1]")
    found = np.ascontiguousarray(bench.v[0]).view(np.float16).reshape(2, 64, 2)
    np.testing.assert_array_equal(found, halves[0] + halves[1])
    low = halves[0][..., :1].astype(float)
    fused = np.ascontiguousarray(bench.v[4]).view(np.float16).reshape(2, 64, 2)
    np.testing.assert_array_equal(fused, (low * halves[1] + halves[2]).astype(np.float16))


def test_division_sequence_is_accurate():
    """The eleven instructions that LLVM makes of a float32 division, where operands and quotient are normal."""
    bench = Bench(waves=8)
    shape = (8, 64)
    for register in (1, 2):
        reals = bench.random.uniform(1, 2, shape) * np.exp2(bench.random.integers(-126, 127, shape))
        bench.v[register] = (reals * bench.random.choice([-1, 1], shape)).astype(np.float32).view(np.uint32)
    bench.do(
        "v_div_scale_f32 v3, s[4:5], v2, v2, v1", "v_rcp_f32_e32 v4, v3", "v_div_scale_f32 v5, vcc, v1, v2, v1",
        "v_fma_f32 v6, -v3, v4, 1.0", "v_fmac_f32_e32 v4, v6, v4", "v_mul_f32_e32 v6, v5, v4", "v_fma_f32 v7, -v3, v6, v5",
        "v_fmac_f32_e32 v6, v7, v4", "v_fma_f32 v3, -v3, v6, v5", "v_div_fmas_f32 v3, v3, v4, v6",
        "v_div_fixup_f32 v0, v3, v2, v1",
    )  # fmt: skip
    found, a, b = (bench.v[n].view(np.float32) for n in range(3))
    with np.errstate(all="ignore"):
        expected = a / b
        ulp = np.spacing(np.abs(expected))
        inside = (np.abs(expected) > 2.0**-120) & (np.abs(expected) < 2.0**120)
        wrong = inside & ~((found == expected) | (np.abs(found - expected) <= ulp))
    assert inside.sum() > 300
    assert not wrong.any(), (a[wrong], b[wrong], found[wrong])


@pytest.mark.parametrize(
    "text", ["v_unheard_of_f32 v0, v1", "v_add_u32_dpp v0, v1, v2 row_unheard:1", "v_mov_b32_e32 v200, v1"]
)
def test_unknown_texts_stop(text):
    with pytest.raises(UnknownInstruction):
        Bench().do(text)
