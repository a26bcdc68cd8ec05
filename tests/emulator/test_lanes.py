"""Lane moves against the lanes that the ISA guide names, one at a time."""

import numpy as np
import pytest

from emulator import UnknownInstruction
from emulator.bench import Bench

# DPP control -> the lane that a lane reads, or None.
CONTROLS = {
    "quad_perm:[1,0,3,2]": lambda lane: lane ^ 1,
    "quad_perm:[3,3,0,1]": lambda lane: lane // 4 * 4 + [3, 3, 0, 1][lane % 4],
    "row_shl:4": lambda lane: lane + 4 if lane % 16 < 12 else None,
    "row_shr:3": lambda lane: lane - 3 if lane % 16 >= 3 else None,
    "row_ror:8": lambda lane: lane ^ 8,
    "row_ror:1": lambda lane: lane // 16 * 16 + (lane + 15) % 16,
    "row_mirror": lambda lane: lane // 16 * 16 + 15 - lane % 16,
    "row_half_mirror": lambda lane: lane // 8 * 8 + 7 - lane % 8,
    "row_bcast:15": lambda lane: lane // 16 * 16 - 1 if lane >= 16 else None,
    "row_bcast:31": lambda lane: 31 if lane >= 32 else None,
    "row_newbcast:5": lambda lane: lane // 16 * 16 + 5,
    "wave_shr:1": lambda lane: lane - 1 if lane else None,
}


@pytest.mark.parametrize("bound_control", [False, True])
@pytest.mark.parametrize(("rows", "banks"), [(15, 15), (10, 15), (15, 5)])
@pytest.mark.parametrize("control", CONTROLS)
def test_data_parallel_primitives(control, rows, banks, bound_control):
    bench = Bench(waves=1)
    bench.random_words(0, 1, 2)
    before = bench.v.copy()
    bench.active = bench.random.random((1, 64)) < 0.8
    ending = f"{control} row_mask:{rows:#x} bank_mask:{banks:#x}" + (" bound_ctrl:1" if bound_control else "")
    bench.do(f"v_add_u32_dpp v0, v1, v2 {ending}")
    for lane in range(64):
        source = CONTROLS[control](lane)
        readable = source is not None and bench.active[0, source]
        enabled = bench.active[0, lane] and rows >> lane // 16 & 1 and banks >> lane % 16 // 4 & 1
        moved = int(before[1, 0, source]) if readable else 0
        written = enabled and (readable or bound_control)
        expected = (moved + int(before[2, 0, lane])) % 2**32 if written else before[0, 0, lane]
        assert bench.v[0, 0, lane] == expected, lane


@pytest.mark.parametrize("group", [16, 32])
def test_permlane_swap(group):
    bench = Bench()
    bench.random_words(0, 1)
    before = bench.v.copy()
    bench.do(f"v_permlane{group}_swap_b32_e32 v0, v1")
    for lane in range(64):
        odd = lane // group % 2
        assert (bench.v[0, :, lane] == (before[1, :, lane - group] if odd else before[0, :, lane])).all()
        assert (bench.v[1, :, lane] == (before[1, :, lane] if odd else before[0, :, lane + group])).all()
    bench.active = np.arange(64) < 60
    with pytest.raises(UnknownInstruction):
        bench.do(f"v_permlane{group}_swap_b32_e32 v0, v1")


def test_single_lanes_and_scalars():
    bench = Bench()
    bench.random_words(1)
    bench.active = np.array([[False] * 5 + [True] * 59, [False] * 63 + [True]])
    bench.s[8] = [3, 70]
    bench.do("v_readfirstlane_b32 s4, v1", "v_readlane_b32 s5, v1, 9", "v_readlane_b32 s6, v1, s8", "v_writelane_b32 v2, s4, 7")
    assert bench.s[4].tolist() == [bench.v[1, 0, 5], bench.v[1, 1, 63]]
    assert bench.s[5].tolist() == bench.v[1, :, 9].tolist()
    assert bench.s[6].tolist() == [bench.v[1, 0, 3], bench.v[1, 1, 6]]
    assert bench.v[2, :, 7].tolist() == bench.s[4].tolist()


SWIZZLES = {
    "swizzle(SWAP,16)": lambda lane: lane ^ 16,
    "swizzle(REVERSE,8)": lambda lane: lane ^ 7,
    "swizzle(BROADCAST,4,2)": lambda lane: lane // 4 * 4 + 2,
    "swizzle(QUAD_PERM,2,3,0,1)": lambda lane: lane ^ 2,
    'swizzle(BITMASK_PERM,"01pi0")': lambda lane: lane // 32 * 32 + (lane % 32 & 4) + 8 + (~lane & 2),
}


@pytest.mark.parametrize("pattern", SWIZZLES)
def test_swizzle(pattern):
    bench = Bench()
    bench.random_words(1)
    bench.do(f"ds_swizzle_b32 v0, v1 offset:{pattern}", "s_waitcnt lgkmcnt(0)")
    for lane in range(64):
        assert (bench.v[0, :, lane] == bench.v[1, :, SWIZZLES[pattern](lane)]).all()


def test_permutes():
    bench = Bench()
    bench.random_words(1)
    targets = np.array([bench.random.permutation(64) for _ in range(2)])
    bench.v[2] = targets * 4
    bench.do(
        "ds_bpermute_b32 v3, v2, v1", "ds_permute_b32 v4, v2, v1", "ds_bpermute_b32 v5, v2, v1 offset:8", "s_waitcnt lgkmcnt(0)"
    )
    for wave in range(2):
        for lane in range(64):
            there = targets[wave, lane]
            assert bench.v[3, wave, lane] == bench.v[1, wave, there]
            assert bench.v[4, wave, there] == bench.v[1, wave, lane]
            assert bench.v[5, wave, lane] == bench.v[1, wave, (there + 2) % 64]


def test_sub_dword_addressing():
    bench = Bench()
    bench.random_words(0, 1, 2)
    before = bench.v.astype(np.uint64)
    bench.do("v_add_u32_sdwa v3, v1, v2 dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:BYTE_1 src1_sel:WORD_1")
    bench.do("v_or_b32_sdwa v0, v1, v2 dst_sel:WORD_1 dst_unused:UNUSED_PRESERVE src0_sel:DWORD src1_sel:WORD_0")
    bench.do("v_or_b32_sdwa v4, v1, v2 dst_sel:BYTE_2 dst_unused:UNUSED_PAD src0_sel:DWORD src1_sel:DWORD")
    bench.do("v_add_u32_sdwa v5, sext(v1), v2 dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:BYTE_3 src1_sel:DWORD")
    bench.do("v_cmp_gt_u32_sdwa vcc, v1, v2 src0_sel:BYTE_1 src1_sel:BYTE_0")
    one, two = before[1], before[2]
    assert np.array_equal(bench.v[3], (one >> 8 & 0xFF) + (two >> 16))
    assert np.array_equal(bench.v[0], before[0] & 0xFFFF | ((one | two & 0xFFFF) & 0xFFFF) << 16)
    assert np.array_equal(bench.v[4], ((one | two) & 0xFF) << 16)
    assert np.array_equal(bench.v[5], ((one.astype(np.uint32).view(np.int32) >> 24) + two.astype(np.int64)) % 2**32)
    bits = [[int(bench.waves.s64[wave, 53]) >> lane & 1 for lane in range(64)] for wave in range(2)]
    assert np.array_equal(bits, (one >> 8 & 0xFF) > (two & 0xFF))
    bench.do("v_cndmask_b32_sdwa v6, v1, v2, vcc dst_sel:WORD_1 dst_unused:UNUSED_PAD src0_sel:DWORD src1_sel:BYTE_1")
    assert np.array_equal(bench.v[6], (np.where(bits, two >> 8 & 0xFF, one) & 0xFFFF) << 16)


def test_lanes_below():
    bench = Bench()
    bench.s[4], bench.s[5] = 0xF0F0_1234, 0x0FFF_8001
    bench.do("v_mbcnt_lo_u32_b32 v1, s4, 0", "v_mbcnt_hi_u32_b32 v2, s5, v1")
    mask = 0x0FFF_8001_F0F0_1234
    assert bench.v[2, 0].tolist() == [(mask & ((1 << lane) - 1)).bit_count() for lane in range(64)]
