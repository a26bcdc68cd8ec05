"""The tuning tables of mx_paged_mqa_logits. What was tried for them: docs/design/mx_logits.md."""

from capgate import compat

from ..common.key_formats import FORMATS
from ..common.rules import padded_heads
from ..common.tuning import ANY, Tuning, in_requests, lds_words, loadable, row_for, simd_waves
from .operation import Problem, operation

# --- classic, by target; for every H, D, block size, layout and output mode alike -----------------------------------------

CLASSIC: dict[str, Tuning] = {
    # Compiled and emulated, never timed: as fp8_paged_mqa_logits. On gfx942 Triton 3.8 and 3.9 spill 7 to 17 scalar registers.
    **dict.fromkeys(("gfx942", "gfx950"), Tuning(block_keys=64, columns=128, num_warps=4, num_stages=2, resident=2)),
    # Compiled, never run: block-scaled instructions there are of 128 keys at least.
    **dict.fromkeys(("sm100", "sm103"), Tuning(block_keys=128, columns=128, num_warps=8, num_stages=3, resident=2)),
    # Compiled for sm89, sm90 and sm120, never run there.
    ANY: Tuning(block_keys=64, columns=128, num_warps=4, num_stages=3, resident=2),
}
CLASSIC_FULL: dict[str, Tuning] = {  # of calls that fill the columns
    **CLASSIC,
    # Compiled, never run: of tiles of 64 keys 304 to 508 registers spill with Triton 3.5.1, 144 of some formats with 3.6.0.
    "sm120": CLASSIC[ANY]._replace(block_keys=32),
}


@loadable(operation, "classic")
def classic(problem: Problem) -> Tuning:
    """The row for a problem's target, cut to its heads and to the rows of a request."""
    label = compat.capabilities(problem.device).target.label
    rows, padded = 1 << (problem.next_n - 1).bit_length(), padded_heads(problem.heads)
    full = rows * padded >= row_for(CLASSIC, label).columns
    return row_for(CLASSIC_FULL if full else CLASSIC, label).with_rows(rows, padded)


# --- gluon_cdna4, by padded heads; for every format, layout, block size and output mode alike -----------------------------

_CDNA4 = Tuning(block_keys=64, columns=256, num_warps=4, num_stages=3, resident=3, options=simd_waves(3))
GLUON_CDNA4: dict[int, Tuning] = {
    # Compiled and emulated, never timed: as fp8_paged_mqa_logits.
    16: _CDNA4._replace(columns=128),
    # Compiled and emulated, never timed: as fp8_paged_mqa_logits.
    32: _CDNA4,
    # Compiled and emulated, never timed: as fp8_paged_mqa_logits.
    64: _CDNA4,
    # Compiled and emulated, never timed: as fp8_paged_mqa_logits.
    128: Tuning(block_keys=32, columns=512, num_warps=4, num_stages=3, resident=2, options=simd_waves(2)),
}
# Compiled and emulated, never timed: as in mx_mqa_logits, a fourth wave, of which LDS has room from two waves a program on.
GLUON_CDNA4_SHORT: dict[int, Tuning] = {
    padded: GLUON_CDNA4[padded]._replace(resident=4, options=simd_waves(4)) for padded in (16, 32, 64)
}
GLUON_CDNA4_SHORT[128] = GLUON_CDNA4[128]


@loadable(operation, "gluon_cdna4")
def gluon_cdna4(problem: Problem) -> Tuning:
    """The row for a problem's heads and the bytes of its queries and keys, cut to the rows of a request."""
    padded = padded_heads(problem.heads)
    row = (GLUON_CDNA4_SHORT if _short(problem) else GLUON_CDNA4)[padded]
    key_bytes = FORMATS[problem.k_format].key_bytes(problem.dim)
    return in_requests(row, problem.next_n, padded, key_bytes, lds_words(row, problem.block_size))


def _short(problem: Problem) -> bool:
    return problem.dim == 64 or problem.q_format == problem.k_format == "mxfp4"
