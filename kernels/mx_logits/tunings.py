"""The tuning tables of mx_mqa_logits. What was tried for them: docs/design/mx_logits.md."""

from capgate import compat

from ..common.rules import padded_heads
from ..common.tuning import ANY, Tuning, loadable, row_for, simd_waves
from .operation import Problem, operation

# --- classic, by target; for every H and D alike --------------------------------------------------------------------------

CLASSIC: dict[str, Tuning] = {
    # Compiled and emulated, never timed: as fp8_mqa_logits.
    "gfx950": Tuning(block_keys=128, columns=128, num_warps=8, num_stages=2, resident=2),
    # Compiled and emulated, never timed: as gfx950, but for the LDS that queries and keys in bfloat16 take, 32 of its 64 KiB.
    "gfx942": Tuning(block_keys=64, columns=128, num_warps=8, num_stages=2, resident=2),
    # Compiled, never run: block-scaled instructions there are of 128 keys at least; with 4 warps 72 to 324 registers spill.
    **dict.fromkeys(("sm100", "sm103"), Tuning(block_keys=128, columns=128, num_warps=8, num_stages=3, resident=2)),
    # Compiled for sm89, sm90 and sm120, never run there.
    ANY: Tuning(block_keys=64, columns=128, num_warps=4, num_stages=3, resident=2),
}


@loadable(operation, "classic")
def classic(problem: Problem) -> Tuning:
    """The row for a problem's target, cut to its heads."""
    row = row_for(CLASSIC, compat.capabilities(problem.device).target.label)
    padded = padded_heads(problem.heads)
    return row.with_rows(row.columns // padded, padded)


# --- gluon_cdna4, by padded heads; for every format and output mode alike -------------------------------------------------

_CDNA4 = Tuning(block_keys=128, columns=256, num_warps=4, num_stages=3, resident=3, options=simd_waves(3), part_keys=64)
GLUON_CDNA4: dict[int, Tuning] = {
    # Compiled and emulated, never timed: as fp8_mqa_logits.
    16: _CDNA4._replace(columns=128),
    # Compiled and emulated, never timed: as fp8_mqa_logits.
    32: _CDNA4,
    # Compiled and emulated, never timed: as fp8_mqa_logits.
    64: _CDNA4,
    # Compiled and emulated, never timed: as fp8_mqa_logits.
    128: Tuning(block_keys=64, columns=512, num_warps=4, num_stages=3, resident=2, options=simd_waves(2), part_keys=32),
}
# Compiled and emulated, never timed: queries of 64 bytes leave the registers, and their keys the LDS, for a fourth wave.
GLUON_CDNA4_SHORT: dict[int, Tuning] = {
    padded: GLUON_CDNA4[padded]._replace(resident=4, options=simd_waves(4)) for padded in (16, 32, 64)
}
GLUON_CDNA4_SHORT[128] = GLUON_CDNA4[128]


@loadable(operation, "gluon_cdna4")
def gluon_cdna4(problem: Problem) -> Tuning:
    """The row for a problem's heads and the bytes of its queries and keys."""
    padded = padded_heads(problem.heads)
    short = problem.dim == 64 or problem.q_format == problem.k_format == "mxfp4"
    row = (GLUON_CDNA4_SHORT if short else GLUON_CDNA4)[padded]
    return row.with_rows(row.columns // padded, padded)
