"""The tuning tables of fp8_mqa_logits. What was tried for them: docs/design/classic.md, cdna4.md, hopper.md, mqa_logits.md."""

from capgate import compat

from ..common.rules import E4M3FN, FLOAT32, padded_heads
from ..common.tuning import ANY, Tuning, loadable, row_for, simd_waves
from .operation import Problem, operation

# --- classic, by target; for every H and D alike --------------------------------------------------------------------------

CLASSIC: dict[str, Tuning] = {
    # Measured on an H100 with Triton 3.6.0: larger tiles, 8 warps, 64 columns and 2 stages are 5-40 % slower.
    "sm90": Tuning(block_keys=64, columns=128, num_warps=4, num_stages=3, resident=3),
    # Compiled and emulated, never timed: 87 to 96 vector instructions per 32 keys of a row of 64 heads, and no spills.
    "gfx950": Tuning(block_keys=128, columns=128, num_warps=8, num_stages=2, resident=2),
    # Compiled, never run: as gfx950, in at most 20 of its 64 KiB of LDS.
    "gfx942": Tuning(block_keys=128, columns=128, num_warps=8, num_stages=2, resident=2),
    # Compiled for sm89, sm100 and sm120, never run there: fits 99 KiB of shared memory.
    ANY: Tuning(block_keys=64, columns=128, num_warps=4, num_stages=3, resident=2),
}
CLASSIC_CLEAN: dict[str, Tuning] = {
    **CLASSIC,
    # Measured on an H100 with Triton 3.6.0: of the 153 registers of the fill 128 do without a spill, and it is 1-7 % faster.
    "sm90": CLASSIC["sm90"]._replace(options=(("maxnreg", 128),)),
}


@loadable(operation, "classic")
def classic(problem: Problem) -> Tuning:
    """The row for a problem's target and output mode, cut to its heads."""
    table = CLASSIC_CLEAN if problem.clean_logits else CLASSIC
    row = row_for(table, compat.capabilities(problem.device).target.label)
    padded = padded_heads(problem.heads)
    return row.with_rows(row.columns // padded, padded)


# --- gluon_cdna3, by padded heads; for every D and output mode alike but where said ---------------------------------------

_CDNA3 = Tuning(  # tiles of 64 keys: two of 128 dims take 16 of 64 KiB of LDS
    block_keys=64, columns=128, num_warps=4, num_stages=2, resident=3, options=simd_waves(3)
)
GLUON_CDNA3: dict[int, Tuning] = {
    # Compiled and emulated, never timed: as many columns of a wave as its MFMA has rows.
    16: _CDNA3,
    # Compiled and emulated, never timed: 57 to 60 vector instructions per 32 keys of two rows; with 256 columns 1 to 11 spill.
    32: _CDNA3,
    # Compiled and emulated, never timed: 53 to 54 vector instructions per 32 keys of a row, 165 and 166 registers.
    64: _CDNA3._replace(columns=256),
    # Compiled and emulated, never timed: 250 registers; with three waves 159 spill.
    128: _CDNA3._replace(columns=512, resident=2, options=simd_waves(2)),
}


@loadable(operation, "gluon_cdna3")
def gluon_cdna3(problem: Problem) -> Tuning:
    """The row for a problem's heads."""
    padded = padded_heads(problem.heads)
    row = GLUON_CDNA3[padded]
    converts = problem.dtype == E4M3FN
    if padded == 64 and problem.dim == 128 and (problem.clean_logits or converts or problem.logits_dtype != FLOAT32):
        row = row._replace(resident=2, options=simd_waves(2))  # with three waves 1 to 81 registers spill
    if padded == 128 and converts:
        row = row._replace(resident=1, options=simd_waves(1))  # Triton 3.9.0 spills with two: 64 dims, 100 heads
    return row.with_rows(row.columns // padded, padded)


# --- gluon_gfx1250, by padded heads; for every D and output mode alike ----------------------------------------------------

_GFX1250 = Tuning(  # four waves have 256 registers each; tiles of 64 keys would spill up to 27 on Triton 3.8.0
    block_keys=32, columns=256, num_warps=4, num_stages=2, resident=4, options=simd_waves(4)
)
GLUON_GFX1250: dict[int, Tuning] = {
    # Compiled, never run: 126 to 165 vector instructions per 32 keys of four rows, 210 to 225 registers.
    16: _GFX1250,
    # Compiled, never run: 115 to 148 vector instructions per 32 keys of two rows, 207 to 209 registers.
    32: _GFX1250,
    # Compiled, never run: 107 to 127 vector instructions per 32 keys of a row, 202 to 245 registers.
    64: _GFX1250,
    # Compiled, never run: 362 to 435 registers; with three waves 289 spill on Triton 3.9.0.
    128: _GFX1250._replace(columns=512, resident=2, options=simd_waves(2)),
}


@loadable(operation, "gluon_gfx1250")
def gluon_gfx1250(problem: Problem) -> Tuning:
    """The row for a problem's heads."""
    padded = padded_heads(problem.heads)
    row = GLUON_GFX1250[padded]
    return row.with_rows(row.columns // padded, padded)


# --- gluon_cdna4, by padded heads; for every output mode alike: as many waves of a SIMD as `resident` programs of 4 have ---

GLUON_CDNA4: dict[int, Tuning] = {
    # Compiled and emulated, never timed: with 256 columns the masks of four rows of a wave spill scalar registers.
    16: Tuning(block_keys=128, columns=128, num_warps=4, num_stages=3, resident=3, options=simd_waves(3), part_keys=64),
    # Compiled and emulated, never timed: two rows of a wave share each LDS read, 1 vector instruction less than 128 columns.
    32: Tuning(block_keys=128, columns=256, num_warps=4, num_stages=3, resident=3, options=simd_waves(3), part_keys=64),
    # Compiled and emulated, never timed: 52-53 vector instructions per 32 keys of a row; 512 columns spill 145 registers.
    64: Tuning(block_keys=128, columns=256, num_warps=4, num_stages=3, resident=3, options=simd_waves(3), part_keys=64),
    # Compiled and emulated, never timed: tiles of 128 keys spill, parts of 64 have no room, and neither has a third wave.
    128: Tuning(block_keys=64, columns=512, num_warps=4, num_stages=3, resident=2, options=simd_waves(2), part_keys=32),
}
# Compiled and emulated, never timed: queries of up to 64 dims leave the registers, and their keys the LDS, for a fourth wave.
GLUON_CDNA4_SHORT: dict[int, Tuning] = {
    padded: GLUON_CDNA4[padded]._replace(resident=4, options=simd_waves(4)) for padded in (16, 32, 64)
}
GLUON_CDNA4_SHORT[128] = GLUON_CDNA4[128]


@loadable(operation, "gluon_cdna4")
def gluon_cdna4(problem: Problem) -> Tuning:
    """The row for a problem's heads and dims."""
    padded = padded_heads(problem.heads)
    row = (GLUON_CDNA4_SHORT if problem.dim <= 64 else GLUON_CDNA4)[padded]
    return row.with_rows(row.columns // padded, padded)


# --- gluon_hopper, by padded heads; for every D and output mode alike -----------------------------------------------------

_HOPPER = Tuning(
    block_keys=128,
    columns=256,  # of two warpgroups
    num_warps=8,
    num_stages=4,
    resident=1,
    samples=128,
    group_cost=5,
    registers_thread=168,  # 384 threads share the 65,536 of an SM
    registers_consumer=208,
    registers_producer=88,
)
GLUON_HOPPER: dict[int, Tuning] = {
    # Compiled, not timed: of 208 registers Triton 3.9.0 would spill 6 with clean output.
    16: _HOPPER._replace(group_cost=7, registers_consumer=224, registers_producer=56),
    # Measured on an H100 with Triton 3.6.0: a group costs .85 of a tile; counted as half of one, calls took 5-13 % longer.
    32: _HOPPER._replace(group_cost=7),
    # Measured on an H100 with Triton 3.6.0: a group costs 5 to 7 eighths of a tile, all even; so are 5 and 6 stages.
    64: _HOPPER,
    # Compiled, not timed: as with 64 heads.
    128: _HOPPER,
}


@loadable(operation, "gluon_hopper")
def gluon_hopper(problem: Problem) -> Tuning:
    """The row for a problem's heads."""
    padded = padded_heads(problem.heads)
    row = GLUON_HOPPER[padded]
    return row.with_rows(row.columns // padded, padded)
