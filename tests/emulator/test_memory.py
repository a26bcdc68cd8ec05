"""Memory instructions, and what the emulator finds about them: missing waits, races, bounds, uninitialised reads, conflicts."""

import numpy as np
import pytest

from emulator import Deadlock, MissingWait, OutOfBounds, Pieces, Pointer, Race, Uninitialised, UnknownInstruction
from emulator.banks import cycles
from emulator.bench import Bench, run_small

WORDS = np.arange(256, dtype=np.uint32) * 0x0102_0305 + 0x80
LANE = "v_and_b32_e32 v0, 63, v0\nv_lshlrev_b32_e32 v1, 2, v0\n"  # v1: four bytes a lane
DESCRIPTOR = "s_mov_b32 s12, s4\ns_and_b32 s13, s5, 0xffff\ns_movk_i32 s14, 0x200\ns_mov_b32 s15, 0x27000\n"


def out(words: int = 256) -> np.ndarray:
    return np.zeros(words, np.uint32)


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        ("global_load_ubyte v2, v1, s[4:5] offset:1", WORDS[:64] >> 8 & 0xFF),
        ("global_load_sbyte v2, v1, s[4:5]", WORDS[:64].astype(np.uint8).view(np.int8).astype(np.int32).view(np.uint32)),
        ("global_load_ushort v2, v1, s[4:5] offset:2", WORDS[:64] >> 16),
        ("global_load_dword v2, v1, s[4:5] offset:256", WORDS[64:128]),
        ("buffer_load_dword v2, v1, s[12:15], 0 offen", WORDS[:64]),
        ("buffer_load_dword v2, v1, s[12:15], 0 offen offset:384", np.where(np.arange(64) < 32, WORDS[96:160], 0)),
        ("buffer_load_sshort v2, v1, s[12:15], 0 offen", (WORDS[:64] << 16).view(np.int32).__rshift__(16).view(np.uint32)),
    ],
)
def test_loads(load, expected):
    result = out(64)
    run_small(f"{LANE}{DESCRIPTOR}{load}\ns_waitcnt vmcnt(0)\nglobal_store_dword v1, v2, s[6:7]", WORDS, result)
    np.testing.assert_array_equal(result, expected)


def test_wide_loads_and_stores():
    result = out()
    body = "v_and_b32_e32 v0, 63, v0\nv_lshlrev_b32_e32 v1, 4, v0\n"
    body += "global_load_dwordx4 v[4:7], v1, s[4:5]\ns_waitcnt vmcnt(0)\nglobal_store_dwordx4 v1, v[4:7], s[6:7]"
    counters = run_small(body, WORDS, result).counters
    np.testing.assert_array_equal(result, WORDS)
    assert (counters.loaded_bytes, counters.loaded_lines, counters.stored_bytes, counters.stored_lines) == (1024, 8, 1024, 8)


def test_addresses_of_64_bits_scalar_loads_and_grids():
    result = out(8)
    body = """
        s_lshl_b32 s12, s2, 2
        s_load_dword s13, s[4:5], s12
        v_mov_b32_e32 v2, s6
        v_mov_b32_e32 v3, s7
        s_waitcnt lgkmcnt(0)
        v_mov_b32_e32 v4, s13
        v_mov_b32_e32 v5, s12
        v_add_co_u32_e32 v2, vcc, v2, v5
        v_addc_co_u32_e32 v3, vcc, 0, v3, vcc
        global_store_dword v[2:3], v4, off
    """
    run_small(body, WORDS, result, grid=8)
    np.testing.assert_array_equal(result, WORDS[:8])


@pytest.mark.parametrize("text", ["add", "smin", "umax", "swap"])
def test_atomics(text):
    combine = {"add": lambda a, b: (a + b) % 2**32, "smin": min, "umax": max, "swap": lambda a, b: b}[text]
    counts, before = np.full(4, 7, np.uint32), out(64)
    body = f"{LANE}v_and_b32_e32 v2, 12, v1\nglobal_atomic_{text} v3, v2, v0, s[4:5] sc0\ns_waitcnt vmcnt(0)\n"
    run_small(body + "global_store_dword v1, v3, s[6:7]", counts, before)
    expected, seen = [7] * 4, []
    for lane in range(64):
        seen.append(expected[lane % 4])
        expected[lane % 4] = combine(expected[lane % 4], lane)
    assert counts.tolist() == expected
    assert before.tolist() == seen


def test_lds_reads_and_writes():
    bench = Bench()
    bench.random_words(2, 3, 4, 5)
    bench.v[1] = (np.arange(2)[:, None] * 64 + np.arange(64)) * 16  # each wave its own kilobyte
    bench.do("ds_write_b128 v1, v[2:5]", "ds_read_b64 v[6:7], v1 offset:8", "ds_read2_b32 v[8:9], v1 offset0:3 offset1:1")
    bench.do(
        "ds_read_u8 v10, v1 offset:2", "ds_read_i8 v11, v1 offset:3", "ds_read_u16 v12, v1 offset:6", "ds_read_b96 v[16:18], v1"
    )
    bench.do("s_waitcnt lgkmcnt(0)")
    for register, source in {6: 4, 7: 5, 8: 5, 9: 3, 16: 2, 17: 3, 18: 4}.items():
        assert np.array_equal(bench.v[register], bench.v[source])
    assert np.array_equal(bench.v[10], bench.v[2] >> 16 & 0xFF)
    assert np.array_equal(bench.v[11], (bench.v[2].view(np.int32) >> 24).view(np.uint32))
    assert np.array_equal(bench.v[12], bench.v[3] >> 16)
    bench.v[1] -= 64  # negative bases with positive offsets wrap
    bench.do(
        "ds_write_b8 v1, v2 offset:64",
        "ds_write_b16_d16_hi v1, v2 offset:66",
        "ds_read_b32 v13, v1 offset:64",
        "s_waitcnt lgkmcnt(0)",
    )
    assert np.array_equal(bench.v[13], bench.v[2])  # the byte between the two is as before


@pytest.mark.parametrize(("bits", "dtype"), [(16, np.uint16), (8, np.uint8)])
def test_transposing_reads(bits, dtype):
    """A row of 16 lanes reads a tile of 16 columns and gets one column each."""
    bench = Bench(waves=1)
    bench.random_words(2, 3)
    bench.v[1] = np.arange(64) * 8
    bench.do("ds_write_b64 v1, v[2:3]", f"ds_read_b64_tr_b{bits} v[4:5], v1", "s_waitcnt lgkmcnt(0)")
    tiles = np.ascontiguousarray(bench.v[2:4, 0].T).view(dtype).reshape(4, -1, 16)
    columns = np.ascontiguousarray(bench.v[4:6, 0].T).view(dtype).reshape(4, 16, -1)
    assert np.array_equal(columns, tiles.swapaxes(1, 2))


def test_lds_atomics():
    result = out(64)
    body = f"{LANE}v_mov_b32_e32 v2, 0\nds_write_b32 v1, v2\nv_and_b32_e32 v3, 28, v1\nds_add_u32 v3, v0\n"
    run_small(body + "ds_read_b32 v4, v1\ns_waitcnt lgkmcnt(0)\nglobal_store_dword v1, v4, s[4:5]", result)
    assert result.tolist() == [sum(range(lane, 64, 8)) if lane < 8 else 0 for lane in range(64)]


COPY = f"{LANE}s_mov_b32 m0, 0x100\nglobal_load_lds_dword v1, s[4:5] offset:16\n"
READ = "ds_read_b32 v2, v1 offset:272\ns_waitcnt lgkmcnt(0)\nglobal_store_dword v1, v2, s[6:7]"


@pytest.mark.parametrize("landing", ["early", "late"])
def test_copies_to_lds(landing):
    result = out(64)
    run_small(f"{COPY}s_waitcnt vmcnt(0)\n{READ}", WORDS, result, landing=landing)
    np.testing.assert_array_equal(result, WORDS[4:68])
    wide = out(64)
    body = "v_and_b32_e32 v0, 63, v0\nv_lshlrev_b32_e32 v1, 2, v0\nv_lshlrev_b32_e32 v3, 4, v0\n" + DESCRIPTOR
    body += (
        "s_mov_b32 m0, 64\nbuffer_load_dwordx4 v3, s[12:15], 0 offen lds\ns_waitcnt vmcnt(0)\nds_read_b32 v2, v3 offset:68\n"
    )
    run_small(body + "s_waitcnt lgkmcnt(0)\nglobal_store_dword v1, v2, s[6:7]", WORDS, wide, landing=landing)
    np.testing.assert_array_equal(wide, np.where(np.arange(64) < 32, WORDS[1::4], 0))  # out of the buffer's range: zeros


@pytest.mark.parametrize("landing", ["early", "late"])
@pytest.mark.parametrize("wait", ["", "s_waitcnt lgkmcnt(0)", "s_waitcnt vmcnt(1)"])
def test_copies_that_nobody_waited_for(landing, wait):
    with pytest.raises(MissingWait):
        run_small(f"{COPY}{wait}\n{READ}", WORDS, out(64), landing=landing)


def test_newer_copies_stay_in_flight():
    two = f"{COPY}s_mov_b32 m0, 0x300\nglobal_load_lds_dword v1, s[4:5]\ns_waitcnt vmcnt(1)\n"
    run_small(f"{two}{READ}\ns_waitcnt vmcnt(0)", WORDS, out(64))
    with pytest.raises(MissingWait):
        run_small(two + READ.replace("272", "768"), WORDS, out(64))


def test_copies_over_what_is_still_being_read():
    """A wave may be alone, with no barrier that would order the two: its read must have returned."""
    body = f"{COPY}s_waitcnt vmcnt(0)\nds_read_b32 v2, v1 offset:272\n{{wait}}\ns_mov_b32 m0, {{place}}\n"
    body += "global_load_lds_dword v1, s[4:5]\ns_waitcnt vmcnt(0) lgkmcnt(0)\nglobal_store_dword v1, v2, s[6:7]"
    run_small(body.format(wait="s_waitcnt lgkmcnt(0)", place="0x20c"), WORDS, out(64))
    run_small(body.format(wait="s_waitcnt vmcnt(0)", place="0x210"), WORDS, out(64))
    with pytest.raises(MissingWait, match="ds_read_b32 v2, v1 offset:272 in flight still needs"):
        run_small(body.format(wait="s_waitcnt vmcnt(0)", place="0x20c"), WORDS, out(64))


@pytest.mark.parametrize(
    "body",
    [
        "global_load_dword v2, v1, s[4:5]\nv_add_u32_e32 v3, 1, v2",
        "global_load_dword v2, v1, s[4:5]\nglobal_load_dword v3, v1, s[4:5]\ns_waitcnt vmcnt(1)\nv_mov_b32_e32 v4, v3",
        "global_load_dword v2, v1, s[4:5]\nv_mov_b32_e32 v2, 0",
        "s_load_dword s20, s[4:5], 0x0\ns_load_dword s21, s[4:5], 0x4\ns_waitcnt lgkmcnt(1)\ns_mov_b32 s22, s20",
        "ds_write_b32 v1, v0\nds_read_b32 v2, v1\ns_waitcnt lgkmcnt(1)\nv_mov_b32_e32 v3, v2",
        "ds_write_b32 v1, v0\nds_read_b32 v2, v1\ns_waitcnt vmcnt(0)\nglobal_store_dword v1, v2, s[4:5]",
        "v_mov_b32_e32 v2, 4\nds_swizzle_b32 v3, v2 offset:swizzle(SWAP,16)\nv_mov_b32_e32 v4, v3",
        "s_load_dwordx2 s[20:21], s[4:5], 0x0\ns_load_dword s22, s[20:21], 0x0",
    ],
)
def test_registers_used_before_their_wait(body):
    with pytest.raises(MissingWait):
        run_small(LANE + body, WORDS)


def test_waits_that_suffice():
    body = "global_load_dword v2, v1, s[4:5]\nglobal_load_dword v3, v1, s[4:5]\ns_waitcnt vmcnt(1)\nv_mov_b32_e32 v4, v2\n"
    body += "ds_write_b32 v1, v4\nds_read_b32 v5, v1\nds_read_b32 v6, v1\ns_waitcnt lgkmcnt(1)\nv_mov_b32_e32 v7, v5\n"
    run_small(LANE + body + "global_load_dword v3, v1, s[4:5]\ns_waitcnt vmcnt(0) lgkmcnt(0)", WORDS)


SHARE = """
    v_lshlrev_b32_e32 v1, 2, v0
    ds_write_b32 v1, v0
    {wait}
    {barrier}
    v_xor_b32_e32 v2, 0x100, v1
    ds_read_b32 v3, v2
    s_waitcnt lgkmcnt(0)
    {again}
    ds_write_b32 v1, v3
    global_store_dword v1, v3, s[4:5]
"""
WAIT = "s_waitcnt lgkmcnt(0)"


def test_waves_exchange_through_lds():
    result = out(128)
    run_small(SHARE.format(wait=WAIT, barrier="s_barrier", again="s_barrier"), result, waves=2)
    assert result.tolist() == [*range(64, 128), *range(64)]


@pytest.mark.parametrize(
    "missing",
    [
        {"barrier": "", "again": "s_barrier"},
        {"barrier": "s_barrier", "again": ""},
        {"wait": "", "barrier": "s_barrier", "again": ""},
    ],
)
def test_races(missing):
    with pytest.raises((Race, Uninitialised)):
        run_small(SHARE.format(**{"wait": WAIT, **missing}), out(128), waves=2)


EXCHANGE = """
    v_lshlrev_b32_e32 v1, 2, v0
    global_store_dword v1, v0, s[4:5]
    {barrier}
    v_xor_b32_e32 v2, {other}, v1
    global_load_dword v3, v2, s[4:5]
    s_waitcnt vmcnt(0)
    global_store_dword v1, v3, s[6:7]
"""


@pytest.mark.parametrize("grid", [1, 3])
def test_waves_exchange_through_global_memory(grid):
    result = out(128)
    run_small(EXCHANGE.format(barrier="s_barrier", other=0x100), out(128), result, waves=2, grid=grid)
    assert result.tolist() == [*range(64, 128), *range(64)]


def test_a_wave_may_load_what_it_stored_itself():
    result = out(128)
    run_small(EXCHANGE.format(barrier="", other=4), out(128), result, waves=2)
    assert result.tolist() == [lane ^ 1 for lane in range(128)]


def test_a_load_of_what_another_wave_stored_needs_a_barrier():
    with pytest.raises(Race, match=r"reads what wave \d stored in argument 0, with no barrier between"):
        run_small(EXCHANGE.format(barrier="", other=0x100), out(128), out(128), waves=2)


def test_a_write_still_in_flight_at_the_barrier_races():
    with pytest.raises(Race):
        run_small(SHARE.format(wait="", barrier="s_barrier", again="s_barrier"), out(128), waves=2)


def test_equal_values_do_not_race_and_different_ones_do():
    same = f"{LANE}v_mov_b32_e32 v2, 17\nds_write_b32 v1, v2\ns_waitcnt lgkmcnt(0)\nds_read_b32 v3, v1\ns_waitcnt lgkmcnt(0)"
    run_small(same, waves=4)
    with pytest.raises(Race):
        run_small("v_and_b32_e32 v1, 63, v0\nv_lshlrev_b32_e32 v1, 2, v1\nds_write_b32 v1, v0", waves=2)


def test_waves_that_part_meet_again():
    """Waves take different paths, write what the others read, and pass the same barriers."""
    body = """
        v_lshlrev_b32_e32 v1, 2, v0
        v_readfirstlane_b32 s12, v0
        s_cmp_lg_u32 s12, 0
        s_cbranch_scc1 .other
        v_mov_b32_e32 v2, 1
        s_branch .join
    .other:
        v_mov_b32_e32 v2, 2
    .join:
        ds_write_b32 v1, v2
        s_waitcnt lgkmcnt(0)
        s_barrier
        v_xor_b32_e32 v3, 0x100, v1
        ds_read_b32 v4, v3
        s_waitcnt lgkmcnt(0)
        global_store_dword v1, v4, s[4:5]
    """
    result = out(128)
    run_small(body, result, waves=2)
    assert result.tolist() == [2] * 64 + [1] * 64


@pytest.mark.parametrize("offset", [1024, -4, 1 << 20])
def test_bounds(offset):
    with pytest.raises(OutOfBounds):
        run_small(
            f"{LANE}v_mov_b32_e32 v2, {offset & 0xFFFFFFFF:#x}\nv_add_u32_e32 v1, v1, v2\nglobal_load_dword v3, v1, s[4:5]",
            WORDS,
        )
    with pytest.raises(OutOfBounds):
        run_small(f"{LANE}v_add_u32_e32 v1, 0x1000, v1\nds_write_b32 v1, v0")


def test_memory_of_which_only_pieces_exist():
    far = 5 * 2**30
    body = f"{LANE}v_mov_b32_e32 v2, s4\nv_mov_b32_e32 v3, s5\nv_add_co_u32_e32 v2, vcc, v2, v1\n"
    body += "v_addc_co_u32_e32 v3, vcc, {high}, v3, vcc\nv_add_co_u32_e32 v2, vcc, {low:#x}, v2\n"
    body += "v_addc_co_u32_e32 v3, vcc, 0, v3, vcc\nglobal_load_dword v4, v[2:3], off\ns_waitcnt vmcnt(0)\n"
    body += "v_add_u32_e32 v4, 1, v4\nglobal_store_dword v[2:3], v4, off"
    pieces = {0: WORDS[:64].copy(), far: WORDS[64:128].copy()}
    run_small(body.format(high=far >> 32, low=far & 0xFFFFFFFF), Pieces(pieces), out(1))
    np.testing.assert_array_equal(pieces[0], WORDS[:64])
    np.testing.assert_array_equal(pieces[far], WORDS[64:128] + 1)
    for distance in (far + 4, 2**30, 2**33 - 256):
        with pytest.raises(OutOfBounds):
            run_small(body.format(high=distance >> 32, low=distance & 0xFFFFFFFF), Pieces(pieces), out(1))
    with pytest.raises(ValueError, match="is not behind"):
        run_small("s_nop 0", Pieces({0: out(1), -4: out(1)}))


def test_uninitialised_reads():
    with pytest.raises(Uninitialised):
        run_small(f"{LANE}ds_read_b32 v2, v1")
    with pytest.raises(Uninitialised):
        run_small(f"{LANE}global_load_dword v2, v1, s[4:5]", Pointer(WORDS.copy(), initialised=False))
    fresh = Pointer(WORDS.copy(), offset=256, initialised=False)
    result = run_small(f"{LANE}global_store_dword v1, v0, s[4:5]\nglobal_load_dword v2, v1, s[4:5]\ns_waitcnt vmcnt(0)", fresh)
    assert fresh.array[64:128].tolist() == list(range(64))
    assert np.flatnonzero(result.written[0]).tolist() == list(range(256, 512))


def test_endless_loops_stop():
    with pytest.raises(Deadlock):
        run_small(".again:\ns_branch .again", limit=1000)


def test_unknown_instructions_stop_with_their_text():
    with pytest.raises(UnknownInstruction, match="v_dance_b32 v0, v1"):
        run_small("v_dance_b32 v0, v1")


LANES = np.arange(64)[None, :]
EVERY = np.ones((1, 64), bool)


@pytest.mark.parametrize(
    ("addresses", "size", "direction", "taken", "ideal"),
    [
        (LANES * 16, 16, "read", 4, 4),
        (LANES * 0, 16, "read", 4, 4),  # one address is broadcast
        (LANES * 256, 16, "read", 64, 4),  # every lane in the same four banks
        (LANES * 8, 8, "read", 2, 2),
        (LANES * 4, 4, "read", 1, 1),
        (LANES * 8, 4, "read", 2, 1),
        (LANES * 8, 8, "write", 4, 4),
        (LANES * 128, 8, "write", 64, 4),
        (LANES * 4, 4, "write", 2, 2),
    ],
)
def test_bank_conflicts(addresses, size, direction, taken, ideal):
    assert cycles(addresses, EVERY, size, direction) == (taken, ideal)
    assert cycles(addresses, ~EVERY, size, direction) == (0, 0)


def test_measured_phases_of_wide_reads():
    """Lanes 0-3, 12-15 and 20-27 are served together: lanes 0 and 12 conflict in a bank, 0 and 4 are never there at once."""
    for other, ideal in ((12, 1), (27, 1), (4, 2), (32, 2)):
        active = np.isin(LANES, [0, other])
        assert cycles(np.where(other == LANES, 1024, 0), active, 16, "read") == (2, ideal)


@pytest.mark.parametrize("per_phase", [1, 2, 4])
def test_banks_of_gfx942(per_phase):
    """128 bytes a cycle: rows of packets swizzled by their number are free of conflicts, and as they come they are not."""
    packets = 8 // per_phase  # of a row
    for swizzled in (True, False):
        packet = LANES // 32 ^ (LANES % 32 // per_phase % packets if swizzled else 0)
        taken, ideal = cycles((LANES % 32 * packets + packet) * 16, EVERY, 16, "read", "gfx942")
        assert ideal == 8
        assert taken == (8 if swizzled else 8 * packets)
    assert cycles(LANES * 16, EVERY, 16, "write", "gfx942") == (8, 8)
