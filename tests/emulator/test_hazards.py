"""Wait states: what each rule asks for on gfx942 and gfx950, on every path, and that one less is found."""

import pytest

from emulator import Program, UnknownInstruction, parse
from emulator.hazards import dependences, hazards

TEXT = """
	.amdgcn_target "amdgcn-amd-amdhsa--{arch}"
	.text
{body}
	s_endpgm
	.amdhsa_accum_offset 128
"""


def program(*lines: str, arch: str = "gfx950") -> Program:
    return parse(TEXT.format(arch=arch, body="\n".join(lines)))


def apart(states: int) -> list[str]:
    """So many wait states, in s_nop."""
    return [f"s_nop {min(16, states - done) - 1}" for done in range(0, states, 16)]


SCALED = "v_mfma_scale_f32_32x32x64_f8f6f4 v[0:15], v[64:71], v[72:79], {c}, v90, v90 op_sel_hi:[0,0,0]"
LARGE, IN_PLACE = SCALED.format(c="0"), SCALED.format(c="v[0:15]")
SMALLER = "v_mfma_scale_f32_32x32x64_f8f6f4 v[0:15], v[64:67], v[72:75], 0, v90, v90 cbsz:4 blgp:4"
SMALL = "v_mfma_f32_16x16x32_fp8_fp8 v[0:3], v[64:65], v[72:73], 0"
WIDE = "v_mfma_f32_32x32x16_fp8_fp8 v[0:15], v[64:65], v[72:73], 0"
TINY = "v_mfma_f32_4x4x4_16b_f16 v[0:3], v[64:65], v[72:73], 0"
SIMPLE = "v_mfma_f32_32x32x2_f32 v[0:15], v64, v72, 0"
SUM, WRITTEN = "v_add_f32_e32 v40, v3, v41", "v_mov_b32_e32 v3, 1.0"
OF_LANE, COPY = "v_readfirstlane_b32 s4, v50", "buffer_load_dwordx4 v60, s[4:7], 0 offen lds"

# (first, second, wait states on gfx950, on gfx942, which lacks some of the instructions)
CASES = {
    "16 passes, read": (LARGE, SUM, 20, None),
    "16 passes, packed": (LARGE, "v_pk_fma_f32 v[40:41], v[2:3], v[42:43], v[44:45]", 20, None),
    "16 passes, written": (LARGE, WRITTEN, 20, None),
    "16 passes, stored": (LARGE, "global_store_dword v[40:41], v3, off", 20, None),
    "16 passes, to LDS": (LARGE, "ds_write_b32 v40, v3", 20, None),
    "16 passes, loaded over": (LARGE, "ds_read_b32 v3, v40", 20, None),
    "four bits, 8 passes": (SMALLER, SUM, 12, None),
    "8 passes": (WIDE, SUM, 12, 11),
    "4 passes": (SMALL, SUM, 8, 7),
    "2 passes": (TINY, SUM, 5, 5),
    "on float32": (SIMPLE, SUM, 18, 18),
    "an AGPR": (WIDE.replace("v[0:15]", "a[0:15]"), "v_accvgpr_read_b32 v40, a3", 12, 11),
    "as a factor": (WIDE, "v_mfma_f32_32x32x16_fp8_fp8 v[16:31], v[2:3], v[72:73], 0", 12, 11),
    "as the addend, in place": (LARGE, IN_PLACE, 0, None),
    "as the addend of two passes": (TINY, TINY.replace(", 0", ", v[0:3]"), 2, 2),
    "as a part of the addend": (WIDE, "v_mfma_f32_16x16x32_fp8_fp8 v[40:43], v[64:65], v[72:73], v[4:7]", 10, 9),
    "on float32, as a part of the addend": (WIDE, "v_mfma_f32_16x16x4_f32 v[40:43], v64, v72, v[4:7]", 10, 9),
    "addend overwritten": (WIDE.replace(", 0", ", v[16:31]"), "v_mov_b32_e32 v18, 0", 7, 7),
    "addend of 16 passes overwritten": (SCALED.format(c="v[16:31]"), "ds_read_b32 v18, v40", 15, None),
    "a vector result": ("v_mov_b32_e32 v64, 0", WIDE, 2, 2),
    "exec": ("v_cmpx_lt_u32_e32 vcc, v40, v41", WIDE, 4, 4),
    "scalar in memory": (OF_LANE, "buffer_load_dword v60, v61, s[4:7], 0 offen", 5, 5),
    "scalar of a copy": (OF_LANE, COPY, 5, 5),
    "offset of a copy": ("v_readfirstlane_b32 m0, v50", COPY, 5, 5),
    "scalar in a vector": (OF_LANE, "v_add_u32_e32 v51, s4, v52", 2, 2),
    "mask": ("v_cmp_lt_i32_e32 vcc, v40, v41", "v_cndmask_b32_e32 v42, v43, v44, vcc", 2, 2),
    "scalar in the scalar unit": (OF_LANE, "s_add_i32 s5, s4, 1", 0, 0),
    "read from a lane": ("v_mov_b32_e32 v50, 1.0", OF_LANE, 1, 1),
    "lane to read": (OF_LANE, "v_readlane_b32 s6, v51, s4", 4, 4),
    "DPP": ("v_mov_b32_e32 v50, 1.0", "v_mov_b32_dpp v51, v50 quad_perm:[1,0,3,2] row_mask:0xf bank_mask:0xf", 2, 2),
    "DPP and exec": (
        "v_cmpx_lt_u32_e32 vcc, v40, v41", "v_mov_b32_dpp v51, v50 quad_perm:[1,0,3,2] row_mask:0xf bank_mask:0xf", 5, 5,
    ),
    "swap": ("v_pk_fma_f32 v[40:41], v[2:3], v[42:43], v[44:45]", "v_permlane32_swap_b32_e32 v41, v51", 2, 0),
    "division": ("v_cmp_lt_i32_e32 vcc, v40, v41", "v_div_fmas_f32 v51, v52, v53, v54", 4, 4),
    "transcendental": ("v_exp_f32_e32 v50, v51", "v_add_f32_e32 v52, 1.0, v50", 1, 1),
    "two of them": ("v_exp_f32_e32 v50, v51", "v_rcp_f32_e32 v52, v50", 0, 0),
    "high half": (
        "v_add_u16_sdwa v50, v51, v52 dst_sel:WORD_1 dst_unused:UNUSED_PAD src0_sel:DWORD src1_sel:DWORD",
        "v_mov_b32_e32 v53, v50", 1, 1,
    ),
    "stored data": ("global_store_dwordx4 v[40:41], v[50:53], off", "v_mov_b32_e32 v53, 0", 2, 2),
    "stored data, scalar offset": ("buffer_store_dwordx4 v[50:53], v40, s[4:7], s8 offen", "v_mov_b32_e32 v53, 0", 1, 1),
    "two dwords": ("global_store_dwordx2 v[40:41], v[50:51], off", "v_mov_b32_e32 v51, 0", 0, 0),
    "M0": ("s_mov_b32 m0, s9", COPY, 1, 1),
    "M0, not of a copy": ("s_mov_b32 m0, s9", "buffer_load_dword v60, v61, s[4:7], 0 offen", 0, 0),
    "another register": (LARGE, "v_add_f32_e32 v40, v17, v41", 0, None),
}  # fmt: skip


EACH = [
    pytest.param(arch, first, second, needed, id=f"{case}-{arch}")
    for case, (first, second, *each) in CASES.items()
    for arch, needed in zip(("gfx950", "gfx942"), each, strict=True)
    if needed is not None
]


@pytest.mark.parametrize(("arch", "first", "second", "needed"), EACH)
def test_so_many_and_no_less(arch: str, first: str, second: str, needed: int) -> None:
    assert hazards(program(first, *apart(needed), second, arch=arch)) == []
    if needed:
        (found,) = hazards(program(first, *apart(needed - 1), second, arch=arch))
        assert (found.first, found.needed, found.found) == (0, needed, needed - 1)
    else:
        assert dependences(program(first, second, arch=arch)) == []


def test_any_instruction_is_a_wait_state() -> None:
    """Inline assembly, too, which the compiler does not count."""
    others = [f"v_mov_b32_e32 v{64 + number}, 0" for number in range(20)]
    assert hazards(program(LARGE, *others, SUM)) == []
    assert len(hazards(program(LARGE, *others[1:], SUM))) == 1
    inline = program(LARGE, ";;#ASMSTART", "v_pk_mul_f32 v[40:41], v[2:3], v[42:43]", ";;#ASMEND")
    assert [(found.found, found.inline) for found in hazards(inline)] == [(0, True)]


def test_the_shortest_path_counts() -> None:
    """Over a branch, and round a loop that ends with what its head would use."""
    assert hazards(program(LARGE, *apart(20), "around:", SUM)) == []
    (short,) = hazards(program(LARGE, "s_cbranch_scc1 around", *apart(20), "around:", SUM))
    assert short.found == 1
    assert hazards(program(LARGE, "s_branch out", "around:", SUM, "out:", *apart(20), SUM)) == []
    (looping,) = hazards(program("head:", SUM, *apart(20), LARGE, "s_nop 3", "s_cbranch_scc1 head"))
    assert (looping.first, looping.second, looping.found) == (3, 0, 5)


@pytest.mark.parametrize("text", ["v_dot4_i32_i8 v0, v1, v2, v3", "v_mfma_f64_16x16x4_f64 v[0:7], v[64:65], v[72:73], 0"])
def test_what_no_rule_is_known_for_is_refused(text: str) -> None:
    with pytest.raises(UnknownInstruction):
        hazards(program(text))
    with pytest.raises(ValueError, match="needs one of gfx942, gfx950"):
        hazards(program(SUM, arch="gfx90a"))
