"""Scalar instructions against Python's integers: values and SCC."""

import numpy as np
import pytest

from emulator.bench import Bench

EDGES = [0, 1, 5, 31, 32, 63, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0x1234_5678, 0x0007_0003]
WORD, PAIR = 2**32, 2**64


def signed(value: int, bits: int = 32) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def overflows(total: int) -> bool:
    return not -(2**31) <= total < 2**31


# Result and SCC (None: unchanged).
BINARY = {
    "s_add_u32": lambda a, b: (a + b, a + b >= WORD),
    "s_sub_u32": lambda a, b: (a - b, b > a),
    "s_add_i32": lambda a, b: (a + b, overflows(signed(a) + signed(b))),
    "s_sub_i32": lambda a, b: (a - b, overflows(signed(a) - signed(b))),
    # Of the difference as 32 bits: the guide's D = 2**31 - 1, -1 gives 2**31.
    "s_absdiff_i32": lambda a, b: (abs(signed((a - b) % WORD)), (a - b) % WORD != 0),
    "s_mul_i32": lambda a, b: (a * b, None),
    "s_mul_hi_u32": lambda a, b: (a * b >> 32, None),
    "s_mul_hi_i32": lambda a, b: (signed(a) * signed(b) >> 32, None),
    "s_min_i32": lambda a, b: (min(signed(a), signed(b)), signed(a) < signed(b)),
    "s_max_u32": lambda a, b: (max(a, b), a > b),
    "s_and_b32": lambda a, b: (a & b, a & b != 0),
    "s_andn2_b32": lambda a, b: (a & ~b, a & ~b != 0),
    "s_xnor_b32": lambda a, b: (~(a ^ b), ~(a ^ b) % WORD != 0),
    "s_lshl_b32": lambda a, b: (a << (b & 31), (a << (b & 31)) % WORD != 0),
    "s_lshr_b32": lambda a, b: (a >> (b & 31), a >> (b & 31) != 0),
    "s_ashr_i32": lambda a, b: (signed(a) >> (b & 31), signed(a) >> (b & 31) != 0),
    "s_lshl2_add_u32": lambda a, b: ((a << 2) + b, (a << 2) + b >= WORD),
    "s_bfm_b32": lambda a, b: (((1 << (a & 31)) - 1) << (b & 31), None),
    "s_pack_ll_b32_b16": lambda a, b: (a & 0xFFFF | (b & 0xFFFF) << 16, None),
}
UNARY = {
    "s_not_b32": lambda a: (~a, ~a % WORD != 0),
    "s_abs_i32": lambda a: (abs(signed(a)), a != 0),
    "s_brev_b32": lambda a: (int(f"{a:032b}"[::-1], 2), None),
    "s_bcnt1_i32_b32": lambda a: (a.bit_count(), a != 0),
    "s_ff1_i32_b32": lambda a: ((a & -a).bit_length() - 1, None),
    "s_flbit_i32_b32": lambda a: (32 - a.bit_length() if a else -1, None),
    "s_sext_i32_i8": lambda a: (signed(a & 0xFF, 8), None),
}


@pytest.mark.parametrize("name", [*BINARY, *UNARY])
def test_words(name):
    bench = Bench(waves=len(EDGES))
    for b in EDGES:
        bench.s[4], bench.s[5] = EDGES, b
        before = bench.random.random(len(EDGES)) < 0.5
        bench.waves.scc[:] = before
        bench.do(f"{name} s6, s4, s5" if name in BINARY else f"{name} s6, s4")
        for wave, a in enumerate(EDGES):
            value, scc = BINARY[name](a, b) if name in BINARY else UNARY[name](a)
            assert bench.s[6, wave] == value % WORD, (a, b)
            assert bench.waves.scc[wave] == (before[wave] if scc is None else scc), (a, b)


def test_carries_and_pairs():
    bench = Bench(waves=2)
    bench.s[4:8] = np.array([[0xFFFF_FFFF, 5], [7, 0], [1, 9], [0xFFFF_FFF8, 0]])
    bench.do("s_add_u32 s10, s4, s6", "s_addc_u32 s11, s5, s7", "s_sub_u32 s12, s4, s6", "s_subb_u32 s13, s5, s7")
    for wave in range(2):
        a, b = (int(bench.waves.s64[wave, n]) for n in (2, 3))
        assert bench.waves.s64[wave, 5] == (a + b) % PAIR
        assert bench.waves.s64[wave, 6] == (a - b) % PAIR
        assert bench.waves.scc[wave] == (b > a)
    bench.do("s_lshl_b64 s[14:15], s[4:5], 9", "s_andn2_b64 s[16:17], s[4:5], s[6:7]", "s_ashr_i64 s[18:19], s[6:7], 3")
    for wave in range(2):
        a, b = (int(bench.waves.s64[wave, n]) for n in (2, 3))
        assert bench.waves.s64[wave, 7] == (a << 9) % PAIR
        assert bench.waves.s64[wave, 8] == a & ~b
        assert bench.waves.s64[wave, 9] == (signed(b, 64) >> 3) % PAIR


def test_bit_fields_and_bits():
    bench = Bench(waves=1)
    bench.s[4] = 0xF234_5678
    bench.do("s_bfe_u32 s5, s4, 0x80004", "s_bfe_i32 s6, s4, 0x8001c", "s_bfe_i32 s7, s4, 0x4001c", "s_bitcmp1_b32 s4, 3")
    assert (bench.s[5, 0], bench.s[6, 0], bench.s[7, 0]) == (0x67, 0xF, 0xFFFF_FFFF)
    assert bench.waves.scc[0]
    bench.do("s_bitcmp0_b32 s4, 3", "s_bitset1_b32 s4, 0")
    assert not bench.waves.scc[0]
    assert bench.s[4, 0] == 0xF234_5679


@pytest.mark.parametrize("kind", ["i32", "u32"])
def test_comparisons_and_selections(kind):
    relations = {"eq": "==", "lg": "!=", "gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    bench = Bench(waves=len(EDGES))
    for b in EDGES:
        bench.s[4], bench.s[5] = EDGES, b
        for relation, symbol in relations.items():
            bench.do(f"s_cmp_{relation}_{kind} s4, s5", "s_cselect_b32 s6, s4, 17", "s_cselect_b64 vcc, -1, 0")
            for wave, a in enumerate(EDGES):
                x, y = (signed(a), signed(b)) if kind == "i32" else (a, b)
                true = eval(f"{x} {symbol} {y}")
                assert bench.waves.scc[wave] == true
                assert bench.s[6, wave] == (a if true else 17)
                assert bench.waves.s64[wave, 53] == (PAIR - 1 if true else 0)


def test_immediates():
    bench = Bench(waves=2)
    bench.do("s_movk_i32 s4, 0xff80", "s_movk_i32 s5, 0x7f", "s_addk_i32 s5, 0x1", "s_mulk_i32 s5, 0x3", "s_mov_b64 s[6:7], -2")
    assert (bench.s[4, 0], bench.s[5, 0], int(bench.waves.s64[0, 3])) == (0xFFFF_FF80, 384, PAIR - 2)
    bench.do("s_mov_b64 s[6:7], 0x200", "v_mov_b64_e32 v[2:3], 0x200", "v_mov_b64_e32 v[4:5], 1.0")
    assert int(bench.waves.s64[0, 3]) == 0x200
    assert (bench.v[2:4, 0, 0].tolist(), bench.v[4:6, 0, 0].tolist()) == ([0x200, 0], [0, 0x3FF0_0000])
    bench.do("v_add_f64 v[2:3], v[4:5], 0x40000000")  # a real's literal is its high half: 2.0
    assert bench.v[2:4, 0, 0].tolist() == [0, 0x4008_0000]


def test_exec_is_saved_and_restored():
    bench = Bench(waves=2)
    bench.waves.s64[:, 2] = [0xFF, 0]
    bench.do("s_and_saveexec_b64 s[6:7], s[4:5]")
    assert bench.active.sum(axis=1).tolist() == [8, 0]
    assert bench.waves.scc.tolist() == [True, False]
    assert (bench.waves.s64[:, 3] == PAIR - 1).all()
    bench.do("s_or_b64 exec, exec, s[6:7]")
    assert bench.active.all()
