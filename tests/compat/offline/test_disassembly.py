"""Loops and instruction counts of small listings, counted by hand; and what the figures of a compiler mean for a part."""

from itertools import chain

import pytest

from capgate.compat.offline import occupancy as resources
from capgate.compat.offline.control_flow import Flow, natural_loops
from capgate.compat.offline.disassembly import (
    HotLoop,
    hot_loop,
    matrix_instructions,
    normal_form,
    read_amdgcn,
    read_sass,
)

AMDGCN = """
	.text
	.globl	kernel
kernel:                                 ; @kernel
; %bb.0:
	s_load_dwordx2 s[4:5], s[0:1], 0x0
	v_mfma_f32_16x16x32_fp8_fp8 v[0:3], v[4:5], v[6:7], 0   ; before any loop
	s_branch .LBB0_3
.LBB0_1:                                ;   in Loop: Header=BB0_3 Depth=1
	.loc	1 0 32 is_stmt 0        ; kernel.py:0:32
	s_add_i32 s2, s2, 1
	s_cmp_lt_i32 s2, s3
	s_cbranch_scc0 .LBB0_4
	;;#ASMSTART
	v_nop
	;;#ASMEND
.LBB0_3:                                ; =>This Inner Loop Header: Depth=1
	buffer_load_dwordx4 v8, s[4:7], 0 offen lds
	s_waitcnt vmcnt(0)
	s_barrier
	ds_read_b128 v[10:13], v9
	ds_bpermute_b32 v14, v15, v16
	s_nop 7
	v_mfma_scale_f32_32x32x64_f8f6f4 v[0:15], v[4:11], v[6:13], 0, v1, v2
	v_mfma_f32_4x4x4_16b_f16 a[0:3], v[0:1], v[2:3], 0
	v_add_f32_dpp v3, v3, v3 row_shr:8 row_mask:0xf bank_mask:0xf
	v_accvgpr_read_b32 v1, a0
	v_pk_fma_f32 v[2:3], v[2:3], v[4:5], v[6:7]
	s_load_dword s9, s[0:1], 0x10
	s_cbranch_execz .LBB0_1
	scratch_store_dword off, v1, off
	s_branch .LBB0_1
.LBB0_4:
	global_store_dword v[0:1], v2, off
	s_endpgm
.Lfunc_end0:
	.amdgpu_metadata
amdhsa.kernels:
  - .agpr_count:     0
    s_not_an_instruction 1
	.end_amdgpu_metadata
"""


def test_the_hot_loop_of_amdgcn():
    """Its head does not come first in the text. s_waitcnt, s_barrier, s_nop, s_load and three branches are in no class."""
    listing = read_amdgcn(AMDGCN)
    products = 32 * 32 * 64 + 4 * 4 * 4 * 16
    assert hot_loop(listing, waves=4) == HotLoop(total=19, valu=4, salu=2, mfma=2, lds=2, vmem=2, products=products)
    assert matrix_instructions(listing) == {
        "v_mfma_f32_16x16x32_fp8_fp8": 1,
        "v_mfma_scale_f32_32x32x64_f8f6f4": 1,
        "v_mfma_f32_4x4x4_16b_f16": 1,
    }
    assert len(listing.instructions) == 3 + 19 + 2


SASS = """
	.section	.text.kernel,"ax",@progbits
kernel:
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P1 BRA `(.L_x_0) ;
.L_x_1:
        /*0020*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R2 ;
        /*0030*/              @!P0 BRA `(.L_x_8) ;
.L_x_2:
        /*0040*/                   WARPGROUP.ARRIVE ;
        /*0050*/                   UIADD3 UR8, UR8, 0x2, URZ ;
        /*0060*/                   QGMMA.64x128x32.F32.E4M3.E4M3 R24, gdesc[UR12], R24, gsb0 ;
        /*0070*/                   FFMA R3, R24.reuse, R4, R3 ;
        /*0080*/                   SHFL.BFLY PT, R5, R3, 0x1, 0x1f ;
        /*0090*/              @P2  STG.E desc[UR26][R6.64], R5 ;
        /*00a0*/                   R2UR UR4, R7 ;
        /*00a8*/              @P4  EXIT ;
        /*00b0*/                   BRA.U !UP0, `(.L_x_1) ;
.L_x_0:
        /*00c0*/              @P3  EXIT ;
        /*00d0*/                   QMMA.16832.F32.E4M3.E4M3 R4, R8, R10, R4 ;
        /*00e0*/                   EXIT ;
.L_x_8:
        /*00f0*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R2 ;
        /*0100*/              @!P0 BRA `(.L_x_8) ;
        /*0110*/                   BRA `(.L_x_2) ;
.L_x_9:
        /*0120*/                   BRA `(.L_x_9);
"""


def test_the_hot_loop_of_sass():
    """A wait that fails goes on behind the end, spins there and comes back: all that belongs to the loop."""
    listing = read_sass(SASS)
    products = 64 * 128 * 32 // 4  # a warp's share of what its warpgroup issues
    assert hot_loop(listing, waves=8) == HotLoop(total=14, valu=2, salu=1, mfma=1, lds=1, vmem=1, products=products)
    assert matrix_instructions(listing) == {"QGMMA.64x128x32.F32.E4M3.E4M3": 1, "QMMA.16832.F32.E4M3.E4M3": 1}


TENSOR_MEMORY = """
        /*0000*/                   {moved} ;
.L_x_1:
        /*0010*/                   UTCQMMA gdesc[UR6], gdesc[UR10], tmem[UR21], tmem[UR32], idesc[UR33], !UPT ;
        /*0020*/                   LDTM.x64 R4, tmem[UR21] ;
        /*0030*/              @P0  BRA `(.L_x_1) ;
"""


@pytest.mark.parametrize(
    ("moved", "products"),
    [
        ("UMOV UR33, 0x4200010", 64 * 128 * 32 // 4),
        ("UMOV UR33, 0x8400010", 128 * 256 * 32 // 4),
        ("UMOV UR33, UR5", None),
        ("UIADD3 UR33, 0x4200010, UR5", None),
        ("UMOV UR3, 0x4200010", None),
    ],
)
def test_a_tensor_memory_product_takes_its_shape_from_the_descriptor(moved, products):
    """M / 16 stands from bit 24 on and N / 8 from bit 17 on; one thread issues it for the four warps of the block."""
    loop = hot_loop(read_sass(TENSOR_MEMORY.format(moved=moved)), waves=4)
    assert loop == HotLoop(total=3, valu=0, salu=0, mfma=1, lds=1, vmem=0, products=products)


def test_sparse_and_scaled_mma_of_one_warp():
    text = TENSOR_MEMORY.replace("UTCQMMA", "QMMA.SF.16832.F32.E4M3.E4M3.E8")
    assert hot_loop(read_sass(text), waves=4).products == 16 * 8 * 32


NESTED = """
	s_mov_b32 s0, 0
.LOuter:
	v_mfma_f32_32x32x16_fp8_fp8 v[0:15], v[0:1], v[0:1], 0
	v_mfma_f32_32x32x16_fp8_fp8 v[0:15], v[0:1], v[0:1], 0
.LInner:
	v_mfma_f32_32x32x16_fp8_fp8 v[0:15], v[0:1], v[0:1], 0
.LSpin:
	s_sleep 1
	s_cbranch_vccnz .LSpin
	s_cbranch_scc1 .LInner
	s_cbranch_scc1 .LOuter
.LOther:
	v_mfma_f32_32x32x16_fp8_fp8 v[0:15], v[0:1], v[0:1], 0
	s_nop 0
	s_nop 0
	s_nop 0
	s_cbranch_scc1 .LOther
	s_endpgm
"""


def test_the_innermost_loop_with_products_is_meant():
    """Not the loop around it, nor the one inside it that waits; and of two with as many products the shorter one."""
    assert hot_loop(read_amdgcn(NESTED), waves=1) == HotLoop(4, valu=0, salu=0, mfma=1, lds=0, vmem=0, products=32 * 32 * 16)


def test_no_hot_loop_without_products_in_a_loop():
    straight = NESTED.replace("s_cbranch_scc1", "s_nop").replace("s_cbranch_vccnz", "s_nop")
    assert hot_loop(read_amdgcn(straight), waves=1) is None
    assert hot_loop(read_amdgcn(""), waves=1) is None


def test_a_loop_with_two_entries_and_code_that_nothing_reaches():
    #        0: may jump into the middle   1 <-> 2: no head         3: end      4: leads into 0's code, reached by nothing
    flow = [Flow([2], True), Flow([], True), Flow([1], True), Flow([], False), Flow([2], False)]
    assert natural_loops(flow) == []
    assert natural_loops([]) == []


def test_a_part_behind_the_end_belongs_to_its_loop_and_the_end_does_not():
    far = 3  # behind the end, which does not go on there
    flow = [Flow([far], True), Flow([0], True), Flow([], False), Flow([1], False)]
    assert natural_loops(flow) == [frozenset({0, 1, far})]


@pytest.mark.parametrize("end", ["s_endpgm", "s_setpc_b64 s[30:31]"])
def test_nothing_follows_the_end_of_amdgcn(end):
    text = """
.LBB0_1:
	s_cbranch_scc0 .LBB0_3
.LBB0_2:
	v_mfma_f32_16x16x16_f16 v[0:3], v[4:5], v[6:7], 0
	s_cbranch_scc1 .LBB0_1
	END
.LBB0_3:
	s_branch .LBB0_2
"""
    assert hot_loop(read_amdgcn(text.replace("END", end)), waves=1).total == 4


def test_loops_with_one_head_are_one():
    flow = [Flow([], True), Flow([], True), Flow([1], True), Flow([1], True), Flow([], False)]
    assert natural_loops(flow) == [frozenset({1, 2, 3})]


METADATA = """
; codeLenInByte = 3936
; Occupancy: {occupancy}
	.amdgpu_metadata
amdhsa.kernels:
  - .agpr_count:     {agprs}
    .max_flat_workgroup_size: {threads}
    .private_segment_fixed_size: 12
    .sgpr_count:     36
    .sgpr_spill_count: 2
    .vgpr_count:     {vgprs}
    .vgpr_spill_count: 3
    .wavefront_size: 64
	.end_amdgpu_metadata
"""


def amd(arch="gfx950", *, vgprs=128, agprs=0, occupancy=4, waves=8, lds=0):
    text = METADATA.format(vgprs=vgprs, agprs=agprs, occupancy=occupancy, threads=64 * waves)
    return resources.of_amdgcn(text, arch, lds)


def test_figures_of_amdgcn():
    taken = amd(vgprs=172, agprs=44, occupancy=2, lds=35328)
    assert (taken.vgprs, taken.agprs, taken.sgprs) == (128, 44, 36)
    assert (taken.spills, taken.scratch_bytes, taken.lds_bytes, taken.code_bytes) == (5, 12, 35328, 3936)


@pytest.mark.parametrize(
    ("arch", "kernel", "waves"),
    [
        ("gfx950", {"occupancy": 4}, 4),
        ("gfx950", {"occupancy": 3}, 2),  # a second workgroup would need 4 waves on each SIMD
        ("gfx950", {"occupancy": 3, "waves": 4}, 3),
        ("gfx950", {"occupancy": 8, "waves": 4, "lds": 80 * 1024}, 2),
        ("gfx950", {"occupancy": 8, "waves": 4, "lds": 80 * 1024 + 1}, 1),
        ("gfx950", {"occupancy": 8, "waves": 4, "lds": 54613}, 2),  # three would fit if LDS were not given in steps
        ("gfx942", {"occupancy": 8, "waves": 4, "lds": 33 * 1024}, 1),
        ("gfx950", {"occupancy": 8, "waves": 1, "lds": 54 * 1024}, 0.5),  # two workgroups leave two SIMDs idle
        ("gfx1250", {"occupancy": 8}, None),
    ],
)
def test_waves_on_a_simd(arch, kernel, waves):
    assert amd(arch, **kernel).waves_per_simd == waves


PTXAS = """ptxas info    : Compiling entry function 'kernel' for 'sm_90a'
ptxas info    : Function properties for kernel
    {stack} bytes stack frame, {stored} bytes spill stores, {loaded} bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers
"""


def nvidia(arch="90", *, registers=128, warps=4, shared=0, columns=0, stack=0, stored=0, loaded=0):
    log = PTXAS.format(registers=registers, stack=stack, stored=stored, loaded=loaded)
    return resources.of_ptxas(log, arch, warps=warps, shared_bytes=shared, tensor_columns=columns, code_bytes=160)


def test_figures_of_ptxas():
    taken = nvidia(registers=255, shared=41472, stack=24, stored=20, loaded=28)
    assert (taken.vgprs, taken.agprs, taken.sgprs) == (255, 0, None)
    assert (taken.spills, taken.scratch_bytes, taken.lds_bytes, taken.code_bytes) == (48, 24, 41472, 160)


@pytest.mark.parametrize(
    ("arch", "kernel", "warps"),
    [
        ("90", {"registers": 128}, 4),
        ("90", {"registers": 129}, 3),
        ("90", {"registers": 32, "shared": 41472}, 5),
        ("90", {"registers": 32}, 16),
        ("89", {"registers": 32}, 12),
        ("90", {"registers": 168, "warps": 12, "shared": 200 * 1024}, 3),
        ("100", {"registers": 64, "columns": 128}, 4),
        ("90", {"registers": 32, "warps": 1}, 8),  # an SM takes 32 blocks
        ("75", {"registers": 32}, None),
    ],
)
def test_warps_on_a_sub_partition(arch, kernel, warps):
    assert nvidia(arch, **kernel).waves_per_simd == warps


@pytest.mark.parametrize(
    ("read", "text", "old", "new", "changed"),
    [
        (read_amdgcn, AMDGCN, ("kernel", ".LBB0_"), ("renamed", ".LBB7_"), ("s2, s2, 1", "s2, s2, 2")),
        (read_amdgcn, AMDGCN, (".loc\t1 0 32",), (".loc\t1 0 99",), ("s_cbranch_scc0 .LBB0_4", "s_cbranch_scc0 .LBB0_3")),
        (read_sass, SASS, (".L_x_",), (".L_y_",), ("0x1", "0x2")),
    ],
)
def test_programs_that_differ_in_names_have_one_normal_form(read, text, old, new, changed):
    renamed = text
    for was, now in zip(old, new, strict=True):
        assert was in text
        renamed = renamed.replace(was, now)
    lines = normal_form(read(text))
    assert len(lines) == len(read(text).instructions)
    assert normal_form(read(renamed)) == lines
    assert changed[0] in text
    assert normal_form(read(text.replace(*changed, 1))) != lines


def test_what_a_compiler_does_not_say_is_unknown():
    taken = chain(
        resources.of_amdgcn("", "gfx950", 7),
        resources.of_ptxas("", "90", warps=4, shared_bytes=7, tensor_columns=0, code_bytes=None),
    )
    assert set(taken) == {None, 0, 7}


@pytest.mark.parametrize(("ptx", "warps"), [(".reqntid 384\n", 12), (".maxntid 128, 1, 1\n", 4), ("", 8)])
def test_warps_of_a_block_include_its_other_partitions(ptx, warps):
    assert resources.warps_of_ptx(ptx, 8) == warps
