"""Vector ALU: VOP1, VOP2, VOP3 and VOPC operations, each a formula over typed sources.

Meanings: "AMD Instinct MI300" and "CDNA4" Instruction Set Architecture guides, chapter "Vector ALU" and the opcode listings.
Denormals are kept, as the mode of Triton's kernels asks for. A fused multiply-add of float32 is computed in float64 and
rounded again, which differs from one rounding in rare ties. Transcendental functions are numpy's, correctly rounded or nearly.
"""

import re
from collections.abc import Callable

import numpy as np

from . import formats
from .assembly import VCC, Instruction, Operand
from .operands import DTYPES, FLOATS, Array, Reader, Writer, bfloat16, clamped, finished, modified, reader, source, writer
from .registers import Waves, lanes_of, mask_of
from .step import Step, bits_of

u32, u64, i64, f32, f64 = np.uint32, np.uint64, np.int64, np.float32, np.float64


def fma32(a: Array, b: Array, c: Array) -> Array:
    return (a.astype(f64) * b + c).astype(f32)


def mul24(a: Array, b: Array) -> Array:
    return (a & 0xFFFFFF) * (b & 0xFFFFFF)


def signed24(a: Array) -> Array:
    return ((a << 8) >> 8).astype(i64)


def bit_field_unsigned(value: Array, offset: Array, width: Array) -> Array:
    return (value >> (offset & 31)) & ((u32(1) << (width & 31)) - u32(1))


def bit_field_signed(value: Array, offset: Array, width: Array) -> Array:
    width = (width & 31).astype(i64)
    field = (value.astype(i64) >> (offset & 31).astype(i64)) & ((1 << width) - 1)
    sign = np.where(width > 0, 1 << np.maximum(width - 1, 0), 0)
    return ((field ^ sign) - sign).astype(np.int32)


def byte_permute(high: Array, low: Array, select: Array) -> Array:
    """v_perm_b32: selectors 0-3 bytes of the second source, 4-7 of the first, 8-11 sign bits, 12 zero, above 0xff."""
    high, low, select = np.broadcast_arrays(high, low, select)
    joined = (high.astype(u64) << u64(32)) | low
    result = np.zeros(joined.shape, u32)
    for position in range(4):
        choice = (select >> u32(8 * position)) & u32(0xFF)
        byte = (joined >> (u64(8) * (choice & u32(7)).astype(u64))) & u64(0xFF)
        if (choice > 7).any():
            signs = (joined >> (u64(16) * ((choice & u32(3)).astype(u64) + u64(1)) - u64(1))) & u64(1)
            byte = np.where(
                choice > 7, np.where(choice == 12, u64(0), np.where(choice > 12, u64(0xFF), signs * u64(0xFF))), byte
            )
        result |= byte.astype(u32) << u32(8 * position)
    return result


def bit_operation3(a: Array, b: Array, c: Array, table: int) -> Array:
    """Any boolean function of three bits: bit 4a + 2b + c of the table."""
    result = a.dtype.type(0)
    for minterm in range(8):
        if table >> minterm & 1:
            term = a if minterm & 4 else ~a
            term = term & (b if minterm & 2 else ~b)
            result = result | (term & (c if minterm & 1 else ~c))
    return result


def minimum_number(a: Array, b: Array) -> Array:
    """IEEE-754 2008 minNum: the number if one of two is NaN; -0 below +0."""
    return np.where((a < b) | np.isnan(b) | ((a == b) & np.signbit(a)), a, b)


def maximum_number(a: Array, b: Array) -> Array:
    return np.where((a > b) | np.isnan(b) | ((a == b) & ~np.signbit(a)), a, b)


def median3(a: Array, b: Array, c: Array) -> Array:
    return maximum_number(minimum_number(a, b), minimum_number(maximum_number(a, b), c))


def to_integer(low: float, high: float, dtype: type) -> Callable[[Array], Array]:
    """Truncating, saturating; NaN gives 0."""
    return lambda a: np.clip(np.nan_to_num(np.trunc(a.astype(f64)), nan=0.0, posinf=high, neginf=low), low, high).astype(dtype)


def first_high_bit(a: Array) -> Array:
    """v_ffbh_u32: leading zeros, -1 of 0."""
    return np.where(a == 0, -1, 31 - np.floor(np.log2(np.maximum(a, 1).astype(f64)))).astype(np.int32)


def first_low_bit(a: Array) -> Array:
    lowest = a & (~a + u32(1))
    return np.where(a == 0, -1, np.log2(np.maximum(lowest, 1).astype(f64))).astype(np.int32)


def bit_count(a: Array) -> Array:
    octets = np.ascontiguousarray(a).view(np.uint8).reshape(*a.shape, 4)
    return np.unpackbits(octets, axis=-1).sum(-1).astype(u32)


def reverse_bits(a: Array) -> Array:
    octets = np.ascontiguousarray(a).view(np.uint8).reshape(*a.shape, 4)[..., ::-1]
    table = np.array([int(f"{byte:08b}"[::-1], 2) for byte in range(256)], np.uint8)
    return np.ascontiguousarray(table[octets]).view(u32)[..., 0]


def division_fixup(quotient: Array, denominator: Array, numerator: Array) -> Array:
    """v_div_fixup_f32: the quotient's special cases and its sign."""
    negative = np.signbit(denominator) ^ np.signbit(numerator)
    infinite = np.where(negative, f32(-np.inf), f32(np.inf))
    zero = np.where(negative, f32(-0.0), f32(0.0))
    result = np.where(negative, -np.abs(quotient), np.abs(quotient))
    result = np.where(np.isinf(denominator) | (numerator == 0), zero, result)
    result = np.where(np.isinf(numerator) | (denominator == 0), infinite, result)
    undefined = (np.isinf(denominator) & np.isinf(numerator)) | ((denominator == 0) & (numerator == 0))
    undefined |= np.isnan(denominator) | np.isnan(numerator)
    return np.where(undefined, f32(np.nan), result)


def packed_halves(convert: Callable[[Array], Array]) -> Callable[[Array, Array], Array]:
    """Two results of 16 bits in one register, the first one low."""
    return lambda a, b: convert(a) | (convert(b) << u32(16))


def half_bits(a: Array) -> Array:
    return np.ascontiguousarray(a.astype(np.float16)).view(np.uint16).astype(u32)


def half_bits_toward_zero(a: Array) -> Array:
    nearest = np.ascontiguousarray(a.astype(np.float16))
    away = np.abs(nearest.astype(f32)) > np.abs(a)
    return nearest.view(np.uint16).astype(u32) - away


def logical_shift_left(code: str) -> Callable[[Array, Array], Array]:
    bits = DTYPES[code]().itemsize * 8 - 1
    return lambda amount, value: value << (amount & bits).astype(value.dtype)


def shift_right(code: str) -> Callable[[Array, Array], Array]:
    bits = DTYPES[code]().itemsize * 8 - 1
    return lambda amount, value: value >> (amount & bits).astype(value.dtype)


def converted(code: str) -> Callable[[Array], Array]:
    return lambda a: a.astype(DTYPES[code])


def sum_of_absolute_differences(a: Array, b: Array, c: Array) -> Array:
    return np.where(a > b, a - b, b - a) + c


# Mnemonic: types of destination and sources, formula. Comparisons, carries and fp8 conversions follow below.
OPERATIONS: dict[str, tuple[str, Callable[..., Array]]] = {
    "v_mov_b32": ("uu", lambda a: a),
    "v_mov_b64": ("qq", lambda a: a),
    "v_accvgpr_read_b32": ("uu", lambda a: a),
    "v_accvgpr_write_b32": ("uu", lambda a: a),
    "v_accvgpr_mov_b32": ("uu", lambda a: a),
    "v_not_b32": ("uu", lambda a: ~a),
    "v_bfrev_b32": ("uu", reverse_bits),
    "v_ffbh_u32": ("iu", first_high_bit),
    "v_ffbl_b32": ("iu", first_low_bit),
    "v_bcnt_u32_b32": ("uuu", lambda a, b: bit_count(a) + b),
    # 32-bit integers
    "v_add_u32": ("uuu", lambda a, b: a + b),
    "v_sub_u32": ("uuu", lambda a, b: a - b),
    "v_subrev_u32": ("uuu", lambda a, b: b - a),
    "v_add_i32": ("iii", lambda a, b: a + b),
    "v_sub_i32": ("iii", lambda a, b: a - b),
    "v_mul_lo_u32": ("uuu", lambda a, b: a * b),
    "v_mul_hi_u32": ("uuu", lambda a, b: (a.astype(u64) * b) >> u64(32)),
    "v_mul_hi_i32": ("iii", lambda a, b: (a.astype(i64) * b) >> 32),
    "v_mul_u32_u24": ("uuu", mul24),
    "v_mul_hi_u32_u24": ("uuu", lambda a, b: ((a & 0xFFFFFF).astype(u64) * (b & 0xFFFFFF)) >> u64(32)),
    "v_mul_i32_i24": ("iii", lambda a, b: signed24(a) * signed24(b)),
    "v_mad_u32_u24": ("uuuu", lambda a, b, c: mul24(a, b) + c),
    "v_mad_i32_i24": ("iiii", lambda a, b, c: signed24(a) * signed24(b) + c),
    "v_min_i32": ("iii", np.minimum),
    "v_max_i32": ("iii", np.maximum),
    "v_min_u32": ("uuu", np.minimum),
    "v_max_u32": ("uuu", np.maximum),
    "v_min3_i32": ("iiii", lambda a, b, c: np.minimum(np.minimum(a, b), c)),
    "v_max3_i32": ("iiii", lambda a, b, c: np.maximum(np.maximum(a, b), c)),
    "v_min3_u32": ("uuuu", lambda a, b, c: np.minimum(np.minimum(a, b), c)),
    "v_max3_u32": ("uuuu", lambda a, b, c: np.maximum(np.maximum(a, b), c)),
    "v_med3_i32": ("iiii", lambda a, b, c: np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))),
    "v_med3_u32": ("uuuu", lambda a, b, c: np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))),
    "v_and_b32": ("uuu", lambda a, b: a & b),
    "v_or_b32": ("uuu", lambda a, b: a | b),
    "v_xor_b32": ("uuu", lambda a, b: a ^ b),
    "v_xnor_b32": ("uuu", lambda a, b: ~(a ^ b)),
    "v_lshlrev_b32": ("uuu", logical_shift_left("u")),
    "v_lshrrev_b32": ("uuu", shift_right("u")),
    "v_ashrrev_i32": ("iui", shift_right("i")),
    "v_lshlrev_b64": ("quq", logical_shift_left("q")),
    "v_lshrrev_b64": ("quq", shift_right("q")),
    "v_ashrrev_i64": ("lul", shift_right("l")),
    "v_bfe_u32": ("uuuu", bit_field_unsigned),
    "v_bfe_i32": ("iiuu", bit_field_signed),
    "v_bfi_b32": ("uuuu", lambda a, b, c: (a & b) | (~a & c)),
    "v_bfm_b32": ("uuu", lambda a, b: ((u32(1) << (a & 31)) - u32(1)) << (b & 31)),
    "v_alignbit_b32": ("uuuu", lambda a, b, c: ((a.astype(u64) << u64(32)) | b) >> (c & 31).astype(u64)),
    "v_alignbyte_b32": ("uuuu", lambda a, b, c: ((a.astype(u64) << u64(32)) | b) >> ((c & 3).astype(u64) * u64(8))),
    "v_perm_b32": ("uuuu", byte_permute),
    "v_sad_u32": ("uuuu", sum_of_absolute_differences),
    "v_add3_u32": ("uuuu", lambda a, b, c: a + b + c),
    "v_lshl_add_u32": ("uuuu", lambda a, b, c: (a << (b & 31)) + c),
    "v_add_lshl_u32": ("uuuu", lambda a, b, c: (a + b) << (c & 31)),
    "v_lshl_or_b32": ("uuuu", lambda a, b, c: (a << (b & 31)) | c),
    "v_and_or_b32": ("uuuu", lambda a, b, c: (a & b) | c),
    "v_or3_b32": ("uuuu", lambda a, b, c: a | b | c),
    "v_xad_u32": ("uuuu", lambda a, b, c: (a ^ b) + c),
    "v_lshl_add_u64": ("qquq", lambda a, b, c: (a << (b & 7).astype(u64)) + c),
    # 16-bit integers
    "v_add_u16": ("www", lambda a, b: a + b),
    "v_sub_u16": ("www", lambda a, b: a - b),
    "v_mul_lo_u16": ("www", lambda a, b: a * b),
    "v_min_u16": ("www", np.minimum),
    "v_max_u16": ("www", np.maximum),
    "v_min_i16": ("nnn", np.minimum),
    "v_max_i16": ("nnn", np.maximum),
    "v_lshlrev_b16": ("www", logical_shift_left("w")),
    "v_lshrrev_b16": ("www", shift_right("w")),
    "v_ashrrev_i16": ("nwn", shift_right("n")),
    # float32
    "v_add_f32": ("fff", lambda a, b: a + b),
    "v_sub_f32": ("fff", lambda a, b: a - b),
    "v_subrev_f32": ("fff", lambda a, b: b - a),
    "v_mul_f32": ("fff", lambda a, b: a * b),
    "v_mul_legacy_f32": ("fff", lambda a, b: np.where((a == 0) | (b == 0), f32(0), a * b)),
    "v_fma_f32": ("ffff", fma32),
    "v_min_f32": ("fff", minimum_number),
    "v_max_f32": ("fff", maximum_number),
    "v_min3_f32": ("ffff", lambda a, b, c: minimum_number(minimum_number(a, b), c)),
    "v_max3_f32": ("ffff", lambda a, b, c: maximum_number(maximum_number(a, b), c)),
    "v_med3_f32": ("ffff", median3),
    "v_minimum3_f32": ("ffff", lambda a, b, c: np.minimum(np.minimum(a, b), c)),
    "v_maximum3_f32": ("ffff", lambda a, b, c: np.maximum(np.maximum(a, b), c)),
    "v_rcp_f32": ("ff", lambda a: f32(1) / a),
    "v_rcp_iflag_f32": ("ff", lambda a: f32(1) / a),
    "v_rsq_f32": ("ff", lambda a: (1 / np.sqrt(a.astype(f64))).astype(f32)),
    "v_sqrt_f32": ("ff", np.sqrt),
    "v_exp_f32": ("ff", lambda a: np.exp2(a.astype(f64)).astype(f32)),
    "v_log_f32": ("ff", lambda a: np.log2(a.astype(f64)).astype(f32)),
    "v_sin_f32": ("ff", lambda a: np.sin(2 * np.pi * a.astype(f64)).astype(f32)),
    "v_cos_f32": ("ff", lambda a: np.cos(2 * np.pi * a.astype(f64)).astype(f32)),
    "v_floor_f32": ("ff", np.floor),
    "v_ceil_f32": ("ff", np.ceil),
    "v_trunc_f32": ("ff", np.trunc),
    "v_rndne_f32": ("ff", np.rint),
    "v_fract_f32": ("ff", lambda a: a - np.floor(a)),
    "v_ldexp_f32": ("ffi", lambda a, b: np.ldexp(a.astype(f64), np.clip(b, -400, 400)).astype(f32)),
    "v_frexp_mant_f32": ("ff", lambda a: np.where(np.isfinite(a), np.frexp(a)[0], a)),
    "v_frexp_exp_i32_f32": ("if", lambda a: np.where(np.isfinite(a), np.frexp(a)[1], 0)),
    "v_div_fixup_f32": ("ffff", division_fixup),
    # float64
    "v_add_f64": ("ddd", lambda a, b: a + b),
    "v_mul_f64": ("ddd", lambda a, b: a * b),
    "v_max_f64": ("ddd", maximum_number),
    "v_min_f64": ("ddd", minimum_number),
    # float16 and bfloat16
    "v_add_f16": ("hhh", lambda a, b: a + b),
    "v_sub_f16": ("hhh", lambda a, b: a - b),
    "v_mul_f16": ("hhh", lambda a, b: a * b),
    "v_max_f16": ("hhh", maximum_number),
    "v_min_f16": ("hhh", minimum_number),
    "v_fma_f16": ("hhhh", lambda a, b, c: (a.astype(f64) * b + c).astype(np.float16)),
    # conversions
    "v_cvt_f32_u32": ("fu", converted("f")),
    "v_cvt_f32_i32": ("fi", converted("f")),
    "v_cvt_u32_f32": ("uf", to_integer(0, 2**32 - 1, u32)),
    "v_cvt_i32_f32": ("if", to_integer(-(2**31), 2**31 - 1, np.int32)),
    "v_cvt_f16_f32": ("hf", converted("h")),
    "v_cvt_f32_f16": ("fh", converted("f")),
    "v_cvt_f32_bf16": ("fb", lambda a: a),
    "v_cvt_f64_f32": ("df", converted("d")),
    "v_cvt_f32_f64": ("fd", converted("f")),
    "v_cvt_f64_i32": ("di", converted("d")),
    "v_cvt_f64_u32": ("du", converted("d")),
    "v_cvt_i32_f64": ("id", to_integer(-(2**31), 2**31 - 1, np.int32)),
    "v_cvt_u32_f64": ("ud", to_integer(0, 2**32 - 1, u32)),
    "v_cvt_f16_u16": ("hw", converted("h")),
    "v_cvt_f16_i16": ("hn", converted("h")),
    **{f"v_cvt_f32_ubyte{n}": ("fu", lambda a, n=n: ((a >> u32(8 * n)) & u32(0xFF)).astype(f32)) for n in range(4)},
    "v_cvt_pk_f16_f32": ("uff", packed_halves(half_bits)),
    "v_cvt_pkrtz_f16_f32": ("uff", packed_halves(half_bits_toward_zero)),
    "v_cvt_pk_bf16_f32": ("uff", packed_halves(bfloat16)),
    "v_pack_b32_f16": ("uww", lambda a, b: a.astype(u32) | (b.astype(u32) << u32(16))),
}  # fmt: skip

# Fused multiply-adds whose destination is the addend, and those with a literal as a source.
ACCUMULATING = {"v_fmac_f32": "f", "v_mac_f32": "f", "v_fmac_f16": "h"}
LITERAL_FMA = {"v_fmamk_f32", "v_fmaak_f32", "v_madmk_f32", "v_madak_f32"}

COMPARISONS: dict[str, Callable[[Array, Array], Array]] = {
    "lt": np.less, "eq": np.equal, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "ne": np.not_equal, "neq": np.not_equal,
    "lg": lambda a, b: (a < b) | (a > b),
    "o": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "u": lambda a, b: np.isnan(a) | np.isnan(b),
    "nlt": lambda a, b: ~(a < b), "nle": lambda a, b: ~(a <= b), "ngt": lambda a, b: ~(a > b), "nge": lambda a, b: ~(a >= b),
    "nlg": lambda a, b: ~((a < b) | (a > b)),
}  # fmt: skip
COMPARED_TYPES = {"i32": "i", "u32": "u", "f32": "f", "i64": "l", "u64": "q", "f64": "d", "i16": "n", "u16": "w", "f16": "h"}


def decode(instruction: Instruction, accum_offset: int) -> Step | None:
    """The step of a vector ALU instruction, or None if it is not one of this module's."""
    name = instruction.mnemonic
    operands = instruction.operands
    if name in OPERATIONS:
        return _plain(instruction, accum_offset)
    if name in ACCUMULATING:
        code = ACCUMULATING[name]
        a, b = (source(instruction, 1 + n, n, code, accum_offset) for n in range(2))
        c, write = reader(operands[0], code, accum_offset), writer(operands[0], code, accum_offset)
        dtype = DTYPES[code]

        def accumulate(g: Waves) -> None:
            write(g, (a(g).astype(f64) * b(g) + c(g)).astype(dtype))

        return valu(instruction, accumulate, operands[:1], operands, accum_offset)
    if name in LITERAL_FMA:
        a, b, c = (source(instruction, 1 + n, n, "f", accum_offset) for n in range(3))
        write = writer(operands[0], "f", accum_offset)
        return valu(instruction, lambda g: write(g, fma32(a(g), b(g), c(g))), operands[:1], operands[1:], accum_offset)
    if name.startswith("v_bitop3_b"):
        code = {"32": "u", "16": "w"}[name[-2:]]
        a, b, c = (source(instruction, 1 + n, n, code, accum_offset) for n in range(3))
        write, table = writer(operands[0], code, accum_offset), int(instruction.modifiers.get("bitop3", 0))
        return valu(
            instruction, lambda g: write(g, bit_operation3(a(g), b(g), c(g), table)), operands[:1], operands[1:], accum_offset
        )
    for family in (_comparison, _with_mask, _fp8):
        step = family(instruction, accum_offset)
        if step is not None:
            return step
    return None


def valu(
    instruction: Instruction,
    execute: Callable[[Waves], None],
    destinations: tuple[Operand, ...],
    sources: tuple[Operand, ...],
    accum_offset: int,
) -> Step:
    """A step; EXEC is read by every vector instruction, but no memory operation writes it."""
    return Step(instruction, execute, bits_of(sources, accum_offset), bits_of(destinations, accum_offset), "valu")


def _plain(instruction: Instruction, accum_offset: int) -> Step:
    codes, compute = OPERATIONS[instruction.mnemonic]
    operands, sources = instruction.operands, codes[1:]
    if len(operands) != len(codes):
        raise instruction.unknown("operands")
    select = instruction.modifiers.get("op_sel", ())
    if "clamp" in instruction.modifiers and instruction.mnemonic in SATURATING:
        compute = SATURATING[instruction.mnemonic]
    else:
        compute = finished(instruction, codes[0], compute)
    readers = [source(instruction, 1 + n, n, code, accum_offset) for n, code in enumerate(sources)]
    high = len(select) > len(sources) and bool(select[len(sources)])
    write = writer(operands[0], codes[0], accum_offset, high)
    if "clamp" in instruction.modifiers and instruction.mnemonic not in SATURATING:
        write = clamping(instruction, codes[0], write)
    reads = operands if high else operands[1:]
    return valu(instruction, applied(compute, readers, write), operands[:1], reads, accum_offset)


def clamping(instruction: Instruction, code: str, write: Writer) -> Writer:
    if code not in FLOATS:
        raise instruction.unknown("output modifier")
    return lambda g, value: write(g, clamped(g, value))


SATURATING: dict[str, Callable[..., Array]] = {
    "v_add_u32": lambda a, b: np.minimum(a.astype(u64) + b, u64(2**32 - 1)),
    "v_sub_u32": lambda a, b: np.where(a > b, a - b, u32(0)),
    "v_add_i32": lambda a, b: np.clip(a.astype(i64) + b, -(2**31), 2**31 - 1),
    "v_sub_i32": lambda a, b: np.clip(a.astype(i64) - b, -(2**31), 2**31 - 1),
}


def applied(compute: Callable[..., Array], readers: list[Reader], write: Writer) -> Callable[[Waves], None]:
    """Without a loop over the sources at run time."""
    if len(readers) == 1:
        (first,) = readers
        return lambda g: write(g, compute(first(g)))
    if len(readers) == 2:
        first, second = readers
        return lambda g: write(g, compute(first(g), second(g)))
    first, second, third = readers
    return lambda g: write(g, compute(first(g), second(g), third(g)))


def write_mask(g: Waves, destination: Operand, result: Array) -> None:
    """A bit per lane; inactive lanes give 0."""
    result = np.broadcast_to(result, g.active.shape)
    g.s64[:, destination.index // 2] = mask_of(result if g.all_active else result & g.active)


def read_mask(g: Waves, operand: Operand) -> Array:
    if operand.kind == "integer":
        return np.full(g.active.shape, operand.value != 0)
    return lanes_of(g.s64[:, operand.index // 2])


def comparison_of(name: str) -> tuple[str, Callable[[Array, Array], Array]] | None:
    """(type code, predicate) of v_cmp_<predicate>_<type>."""
    _, prefix, *rest = name.split("_")
    if prefix not in ("cmp", "cmpx") or len(rest) != 2 or rest[0] not in COMPARISONS or rest[1] not in COMPARED_TYPES:
        return None
    return COMPARED_TYPES[rest[1]], COMPARISONS[rest[0]]


def _comparison(instruction: Instruction, accum_offset: int) -> Step | None:
    name, operands = instruction.mnemonic, instruction.operands
    if name == "v_cmp_class_f32":
        a, classes = source(instruction, 1, 0, "f", accum_offset), reader(operands[2], "u", accum_offset)
        return valu(
            instruction,
            lambda g: write_mask(g, operands[0], in_classes(a(g), classes(g))),
            operands[:1],
            operands[1:],
            accum_offset,
        )
    found = comparison_of(name)
    if found is None:
        return None
    code, predicate = found
    a, b = (source(instruction, 1 + n, n, code, accum_offset) for n in range(2))
    if name.startswith("v_cmpx"):

        def compare_and_set_exec(g: Waves) -> None:
            write_mask(g, operands[0], predicate(a(g), b(g)))
            g.s64[:, 63] = g.s64[:, operands[0].index // 2]
            g.exec_changed()

        return valu(instruction, compare_and_set_exec, operands[:1], operands[1:], accum_offset)
    return valu(
        instruction, lambda g: write_mask(g, operands[0], predicate(a(g), b(g))), operands[:1], operands[1:], accum_offset
    )


def in_classes(a: Array, classes: Array) -> Array:
    """Signalling and quiet NaN, -infinity, negative normal, denormal, zero, and the positive ones in reverse."""
    quiet = (np.ascontiguousarray(a).view(u32) & u32(0x0040_0000)) != 0
    tiny = np.abs(a) < f32(2.0**-126)
    negative = np.signbit(a)
    kinds = [
        np.isnan(a) & ~quiet, np.isnan(a) & quiet,
        np.isneginf(a), np.isfinite(a) & ~tiny & negative, tiny & (a != 0) & negative, (a == 0) & negative,
        (a == 0) & ~negative, tiny & (a != 0) & ~negative, np.isfinite(a) & ~tiny & ~negative, np.isposinf(a),
    ]  # fmt: skip
    result = np.zeros(np.broadcast(a, classes).shape, bool)
    for bit, kind in enumerate(kinds):
        result |= kind & ((classes >> u32(bit)) & u32(1)).astype(bool)
    return result


def _with_mask(instruction: Instruction, accum_offset: int) -> Step | None:
    """Operations that read or write a bit per lane in scalar registers."""
    name, operands = instruction.mnemonic, instruction.operands

    def sources(first: int, codes: str) -> list[Reader]:
        return [source(instruction, first + n, n, code, accum_offset) for n, code in enumerate(codes)]

    if name == "v_cndmask_b32":
        (a, b), write = (
            sources(1, "ff" if any(o.negate or o.absolute for o in operands) else "uu"),
            writer(operands[0], "u", accum_offset),
        )

        def select(g: Waves) -> None:
            write(g, np.where(read_mask(g, operands[3]), b(g), a(g)).view(u32))

        return valu(instruction, select, operands[:1], operands[1:], accum_offset)
    if name in CARRYING:
        combine, carries_in = CARRYING[name]
        (a, b), write = sources(2, "uu"), writer(operands[0], "u", accum_offset)

        def add(g: Waves) -> None:
            carry = read_mask(g, operands[4]).astype(i64) if carries_in else 0
            total = combine(a(g).astype(i64), b(g).astype(i64), carry)
            write(g, (total & 0xFFFF_FFFF).astype(u32))
            write_mask(g, operands[1], (total < 0) | (total > 0xFFFF_FFFF))

        return valu(instruction, add, operands[:2], operands[2:], accum_offset)
    if name in ("v_mad_u64_u32", "v_mad_i64_i32"):
        codes = "uuq" if name == "v_mad_u64_u32" else "iil"
        (a, b, c), write = sources(2, codes), writer(operands[0], codes[2], accum_offset)
        wide = DTYPES[codes[2]]

        def multiply_add(g: Waves) -> None:
            product, addend = a(g).astype(wide) * b(g).astype(wide), c(g)
            total = product + addend
            write(g, np.broadcast_to(total, g.active.shape))
            overflow = total < product if wide is u64 else ((product ^ total) & (addend ^ total)) < 0
            write_mask(g, operands[1], overflow)

        return valu(instruction, multiply_add, operands[:2], operands[2:], accum_offset)
    if name == "v_div_scale_f32":
        (a, b, c), write = sources(2, "fff"), writer(operands[0], "f", accum_offset)

        def scale(g: Waves) -> None:
            value, flags = division_scale(a(g), b(g), c(g))
            write(g, value)
            write_mask(g, operands[1], flags)

        return valu(instruction, scale, operands[:2], operands[2:], accum_offset)
    if name == "v_div_fmas_f32":
        (a, b, c), write = sources(1, "fff"), writer(operands[0], "f", accum_offset)
        vcc = Operand("s", VCC, 2)

        def fused(g: Waves) -> None:
            # v_div_scale moved the quotient by 64 powers of two, towards 1.
            undo = np.where(exponent(c(g)) > 127, f64(2.0**64), f64(2.0**-64))
            exact = a(g).astype(f64) * b(g) + c(g)
            write(g, (exact * np.where(read_mask(g, vcc), undo, f64(1))).astype(f32))

        return valu(instruction, fused, operands[:1], (*operands[1:], vcc), accum_offset)
    if name in ("v_mbcnt_lo_u32_b32", "v_mbcnt_hi_u32_b32"):
        (a, b), write = sources(1, "uu"), writer(operands[0], "u", accum_offset)
        lane = np.arange(64)
        below = np.clip(lane - (32 if "hi" in name else 0), 0, 32)
        thread_mask = ((np.uint64(1) << below.astype(u64)) - np.uint64(1)).astype(u32)
        return valu(
            instruction, lambda g: write(g, bit_count(a(g) & thread_mask) + b(g)), operands[:1], operands[1:], accum_offset
        )
    return None


CARRYING: dict[str, tuple[Callable[..., Array], bool]] = {
    "v_add_co_u32": (lambda a, b, c: a + b, False),
    "v_sub_co_u32": (lambda a, b, c: a - b, False),
    "v_subrev_co_u32": (lambda a, b, c: b - a, False),
    "v_addc_co_u32": (lambda a, b, c: a + b + c, True),
    "v_subb_co_u32": (lambda a, b, c: a - b - c, True),
    "v_subbrev_co_u32": (lambda a, b, c: b - a - c, True),
}


def exponent(a: Array) -> Array:
    """The biased exponent field."""
    return ((np.ascontiguousarray(a).view(u32) >> u32(23)) & u32(0xFF)).astype(np.int64)


def division_scale(value: Array, denominator: Array, numerator: Array) -> tuple[Array, Array]:
    """v_div_scale_f32: scale a division's operands away from overflow and denormals; the flag asks v_div_fmas to undo it."""
    value, denominator, numerator = np.broadcast_arrays(value, denominator, numerator)
    is_denominator = value.view(u32) == denominator.view(u32)
    up, down = f32(2.0**64), f32(2.0**-64)
    gap = exponent(numerator) - exponent(denominator)
    tiny_denominator = exponent(denominator) == 0
    with np.errstate(all="ignore"):
        reciprocal_tiny = exponent(f32(1) / denominator) == 0
        quotient_tiny = exponent(numerator / denominator) == 0
    result, flag = value.copy(), np.zeros(value.shape, bool)
    undefined = (denominator == 0) | (numerator == 0)
    cases = [
        (undefined, f32(np.nan), False),
        (gap >= 96, np.where(is_denominator, value * up, value), True),
        (tiny_denominator, value * up, False),
        (reciprocal_tiny & quotient_tiny, np.where(is_denominator, value * down, value), True),
        (reciprocal_tiny, value * down, False),
        (quotient_tiny, np.where(is_denominator, value, value * up), True),
        (exponent(numerator) <= 23, value * up, False),
    ]
    decided = np.zeros(value.shape, bool)
    for condition, scaled, flagged in cases:
        here = condition & ~decided
        result = np.where(here, scaled, result)
        flag |= here & flagged
        decided |= condition
    return result.astype(f32), flag


def _fp8(instruction: Instruction, accum_offset: int) -> Step | None:
    """Conversions between float32 and pairs of fp8 (OCP formats on gfx950)."""
    name, operands = instruction.mnemonic, instruction.operands
    select = tuple(instruction.modifiers.get("op_sel", ()))
    if name in ("v_cvt_pk_fp8_f32", "v_cvt_pk_bf8_f32", "v_cvt_scalef32_pk_fp8_f32", "v_cvt_scalef32_pk_bf8_f32"):
        number_format = formats.E4M3 if "fp8" in name else formats.E5M2
        scaled = "scalef32" in name
        a, b = (source_without_select(instruction, 1 + n, accum_offset) for n in range(2))
        scale = source_without_select(instruction, 3, accum_offset) if scaled else None
        high = any(select[2:])
        write, index = writer(operands[0], "u", accum_offset), reader(operands[0], "u", accum_offset)

        def convert(g: Waves) -> None:
            low_value, high_value = a(g), b(g)
            if scale is not None:
                step = np.exp2(exponent(scale(g)).astype(f64) - 127)
                low_value, high_value = low_value / step, high_value / step
            packed = formats.encode(low_value, number_format, g.saturate_fp8).astype(u32)
            packed = packed | (formats.encode(high_value, number_format, g.saturate_fp8).astype(u32) << u32(8))
            old = index(g)
            write(g, (old & u32(0xFFFF)) | (packed << u32(16)) if high else (old & u32(0xFFFF_0000)) | packed)

        return valu(instruction, convert, operands[:1], operands, accum_offset)
    if name in ("v_cvt_f32_fp8", "v_cvt_f32_bf8") and not select:
        a, write = reader(operands[1], "u", accum_offset), writer(operands[0], "f", accum_offset)
        values32 = formats.table(formats.E4M3 if name.endswith("fp8") else formats.E5M2).astype(f32)
        return valu(instruction, lambda g: write(g, values32[a(g) & u32(0xFF)]), operands[:1], operands[1:], accum_offset)
    match = EXPANSION.fullmatch(name)
    if match:
        scaled, result, kind = match.groups()
        number_format = {"fp8": formats.E4M3, "bf8": formats.E5M2, "fp4": formats.E2M1}[kind]
        a = reader(operands[1], "u", accum_offset)
        write = writer(operands[0], "q" if result == "f32" else "u", accum_offset)
        scale = reader(operands[2], "f", accum_offset) if scaled else None
        bits = number_format.bits
        # op_sel chooses the pair: one of two halves, or one of four bytes.
        chosen = sum(bit << number for number, bit in enumerate(select[:2]))
        shift, mask, values = u32(chosen * 2 * bits), u32((1 << bits) - 1), formats.table(number_format)

        def expand(g: Waves) -> None:
            word = np.broadcast_to(a(g) >> shift, g.active.shape)
            step = f64(1) if scale is None else np.exp2(exponent(scale(g)).astype(f64) - 127)
            pair = [(values[(word >> u32(bits * number)) & mask] * step).astype(f32) for number in range(2)]
            if result == "f32":
                write(g, np.stack(pair, axis=-1).view(u64)[..., 0])
            else:
                write(g, packed_halves(half_bits if result == "f16" else bfloat16)(*pair))

        return valu(instruction, expand, operands[:1], operands[1:], accum_offset)
    return None


EXPANSION = re.compile(r"v_cvt_(scalef32_)?pk_(f32|f16|bf16)_(fp8|bf8|fp4)")


def source_without_select(instruction: Instruction, position: int, accum_offset: int) -> Reader:
    """op_sel of the packed conversions chooses the half of the destination."""
    operand = instruction.operands[position]
    return modified(reader(operand, "f", accum_offset), operand, "f")
