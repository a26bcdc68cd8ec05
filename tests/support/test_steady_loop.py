"""The rules of steady loops can fail."""

import pytest

from emulator import parse
from support.steady_loop import busiest_loop, check_copies_stay_in_flight, check_inline_assembly, check_steady_loop

MFMA = "v_mfma_f32_32x32x16_fp8_fp8 v[0:15], v[20:21], v[22:23], 0"
COPY = "buffer_load_dwordx4 v60, s[4:7], 0 offen lds"
ENTRY = "buffer_load_dword v61, s[8:11], 0 offen lds"
STORE = "buffer_store_dword v62, v63, s[12:15], 0 offen"


LOOPS = """
	.amdgcn_target "amdgcn-amd-amdhsa--gfx950"
	.text
before:
	s_add_i32 s4, s4, 1
	s_cbranch_scc1 before
	s_mov_b32 s5, 0
inside:
	{mfma}
	s_cbranch_scc0 beside
	v_mov_b32_e32 v40, 0
beside:
	s_cbranch_scc1 inside
	s_endpgm
	.amdhsa_accum_offset 128
"""


def test_a_loop_of_as_many_passes_before_the_steady_one() -> None:
    program = parse(LOOPS.format(mfma=MFMA))
    assert busiest_loop(program, [3, 3, 1, 3, 3, 2, 3, 1]) == [3, 4, 6]
    assert busiest_loop(program, [3, 3, 1, 1, 1, 0, 1, 1]) == [3, 4, 6], "a loop of one pass"


def test_a_loop_whose_way_back_is_a_block_of_its_own() -> None:
    code = LOOPS.replace("\ts_cbranch_scc1 inside\n", "\ts_cbranch_scc1 behind\n\ts_branch inside\nbehind:\n")
    program = parse(code.format(mfma=MFMA))
    assert busiest_loop(program, [3, 3, 1, 3, 3, 2, 3, 2, 1]) == [3, 4, 6]


def test_packed_math_on_the_result_of_an_mfma() -> None:
    packed = "v_pk_fma_f32 v[40:41], v[0:1]"
    with pytest.raises(AssertionError, match="needs a wait for an MFMA"):
        check_inline_assembly([MFMA, "v_max_f32 v0, v0, 0", packed])
    check_inline_assembly([MFMA, "v_max_f32 v0, v0, 0", "v_max_f32 v1, v1, 0", packed])
    with pytest.raises(AssertionError, match="neither D nor a constant"):
        check_inline_assembly(["v_mfma_f32_32x32x16_fp8_fp8 v[0:15], v[20:21], v[22:23], v[40:55]"])


@pytest.mark.parametrize("read", ["v_readfirstlane_b32 s4, v50", "v_readlane_b32 s4, v50, s9"])
def test_a_lanes_value(read: str) -> None:
    scaled = "s_mul_i32 s4, s4, s30"
    check_inline_assembly(["v_mov_b32_e32 v50, s8", "ds_read_b32 v50, v50", read, scaled, COPY])
    with pytest.raises(AssertionError, match="needs a wait for a vector instruction"):
        check_inline_assembly(["ds_read_b32 v50, v51", "v_add_u32_e32 v50, 1, v50", read, scaled, COPY])
    with pytest.raises(AssertionError, match="needs a wait for a lane's value"):
        check_inline_assembly(["ds_read_b32 v50, v51", read, COPY])
    with pytest.raises(AssertionError, match="needs a wait for a lane's value"):
        check_inline_assembly(["ds_read_b32 v50, v51", read, "s_cmp_lt_i32 s4, s5", COPY])


def test_copies_that_a_wait_covers_too_early() -> None:
    check_copies_stay_in_flight(["s_waitcnt vmcnt(2) lgkmcnt(0)", STORE, COPY, ENTRY])
    check_copies_stay_in_flight([ENTRY, "s_waitcnt vmcnt(3)", COPY, STORE])
    check_copies_stay_in_flight([COPY, "s_waitcnt vmcnt(1)", STORE, COPY, "s_waitcnt vmcnt(1)"], passes=2)
    with pytest.raises(AssertionError, match="leaves too few"):
        check_copies_stay_in_flight([COPY, "s_waitcnt vmcnt(1)", COPY, STORE, "s_waitcnt vmcnt(1)"], passes=2)
    with pytest.raises(AssertionError, match="leaves too few"):
        check_copies_stay_in_flight(["s_waitcnt vmcnt(2)", COPY, ENTRY, STORE])
    with pytest.raises(AssertionError, match="one wait"):
        check_copies_stay_in_flight(["s_waitcnt vmcnt(2)", COPY, "s_waitcnt vmcnt(0)", ENTRY])


@pytest.mark.parametrize(
    "text",
    ["s_waitcnt vmcnt(0)", "ds_bpermute_b32 v1, v2, v3", "scratch_load_dword v1, off, s0", "v_readlane_b32 s40, v50, 12", ""],
)
def test_what_does_not_belong_into_a_steady_loop(text: str) -> None:
    check_steady_loop([COPY, MFMA, "v_readlane_b32 s40, v50, s41"])
    with pytest.raises(AssertionError):
        check_steady_loop([COPY, MFMA, text] if text else [ENTRY, MFMA])
