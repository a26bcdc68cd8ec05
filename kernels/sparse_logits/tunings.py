"""The tuning table of the sparse logits."""

from functools import cache

from capgate import compat

from ..common.key_formats import FORMATS
from ..common.rules import padded_heads
from ..common.tuning import ANY, Tuning, in_requests, row_for, simd_waves
from .operation import Problem

# --- classic, by target; for every H, D, candidate block and output mode alike --------------------------------------------

_OTHERS: dict[str, Tuning] = {
    # Compiled, never run: as in the paged table.
    "gfx950": Tuning(block_keys=64, columns=128, num_warps=4, num_stages=2, resident=2),
    # Compiled, never run: as in the paged table.
    "gfx942": Tuning(block_keys=64, columns=128, num_warps=4, num_stages=2, resident=2),
    # Compiled, never run on other GPUs: as the dense table's.
    ANY: Tuning(block_keys=64, columns=128, num_warps=4, num_stages=3, resident=2),
}
# Compiled, never timed: a load that waits for another has a stage of its own, of keys in a cache three, of packed keys two.
# Tiles of 128 keys take a third fewer instructions for each key than those of 64.
CACHED = {**_OTHERS, "sm90": Tuning(block_keys=128, columns=128, num_warps=4, num_stages=4, resident=4)}
PACKED = {**_OTHERS, "sm90": Tuning(block_keys=128, columns=128, num_warps=4, num_stages=5, resident=3)}
# As many rows to a tile as in the dense kernel. Left to itself ptxas takes 198 to 204 registers, with which an SM holds two
# programs and not three; of 168 none spills. Measured on an H200 with 32 heads: docs/design/hopper.md.
SHARED = {
    **_OTHERS,
    "sm90": Tuning(block_keys=64, columns=128, num_warps=4, num_stages=4, resident=3, options=(("maxnreg", 168),)),
}
# Compiled, never timed: as mx_paged_mqa_logits, but for what spilled with Triton 3.5.1: four rows of 32 heads on sm120.
MX_CACHED = {
    **_OTHERS,
    **dict.fromkeys(("sm100", "sm103"), Tuning(block_keys=128, columns=128, num_warps=8, num_stages=3, resident=2)),
    "sm120": Tuning(block_keys=64, columns=64, num_warps=4, num_stages=3, resident=2),
}
# With two stages 8 to 40 registers spill on sm100 with Triton 3.6.0 and 3.8.0, with three 64 with 3.5.1, and 40 there on sm120.
MX_PACKED = {**MX_CACHED, **{name: MX_CACHED[name]._replace(num_stages=1) for name in ("sm100", "sm103", "sm120")}}


@cache
def classic(problem: Problem) -> Tuning:
    """The row for a problem's target, cut to its heads, and to the rows that share a list."""
    target = compat.capabilities(problem.device).target
    if problem.k_format is not None:
        table = MX_PACKED if problem.next_n is None else MX_CACHED
    else:
        table = SHARED if problem.list_rows > 1 else PACKED if problem.next_n is None else CACHED
    widest = row_for(table, target.label)
    row = widest.with_rows(problem.list_rows, padded_heads(problem.heads))
    if row.columns > widest.columns:  # 128 heads on sm120: with 4 warps 72 to 396 registers spill with Triton 3.5.1
        row = row._replace(num_warps=2 * row.num_warps)
    if target.backend == "hip" and row.columns == 32:
        # Two products of 32x32 in a tile: with more waves, two would compute the same.
        return row._replace(num_warps=row.num_warps // 2)
    return row


# --- gluon_cdna4, by padded heads; for every D, candidate block, block size and output mode alike --------------------------

_CDNA4 = Tuning(block_keys=64, columns=256, num_warps=4, num_stages=3, resident=3, options=simd_waves(3))
GLUON_CDNA4: dict[int, Tuning] = {
    # Compiled and emulated, never timed: as fp8_paged_mqa_logits.
    16: _CDNA4._replace(columns=128),
    # Compiled and emulated, never timed: as fp8_paged_mqa_logits.
    32: _CDNA4,
    # Compiled and emulated, never timed: 85.7 vector instructions per 32 keys of a row, in lists of blocks of 8.
    64: _CDNA4,
    # Compiled and emulated, never timed: as fp8_paged_mqa_logits.
    128: Tuning(block_keys=32, columns=512, num_warps=4, num_stages=3, resident=2, options=simd_waves(2)),
}
_FOURTH = {padded: row._replace(resident=4, options=simd_waves(4)) for padded, row in GLUON_CDNA4.items()}
# Of queries and keys in MX formats that are short enough for a fourth wave. With 32 heads, and over packed keys with 64, 1 to 4
# registers would spill with Triton 3.6.0 where rows share lists.
GLUON_CDNA4_CACHED: dict[int, Tuning] = {
    **GLUON_CDNA4,
    # Compiled and emulated, never timed: as mx_paged_mqa_logits.
    16: _FOURTH[16],
    # Compiled and emulated, never timed: as mx_paged_mqa_logits.
    64: _FOURTH[64],
}
GLUON_CDNA4_PACKED: dict[int, Tuning] = {
    **GLUON_CDNA4,
    # Compiled and emulated, never timed: as of cached keys.
    16: _FOURTH[16],
}


@cache
def gluon_cdna4(problem: Problem) -> Tuning:
    """The row for a problem's heads and the bytes of its queries and keys, cut to the rows that share a list.

    That is fewer waves, of which a CU holds more programs.
    """
    padded = padded_heads(problem.heads)
    words = 2 if problem.next_n is None else 4  # one of them of lists, or two and one of a table
    key_bytes = FORMATS[problem.k_format or "fp8"].key_bytes(problem.dim)
    return in_requests(_cdna4_table(problem)[padded], problem.list_rows, padded, key_bytes, words)


def _cdna4_table(problem: Problem) -> dict[int, Tuning]:
    short = problem.k_format and (problem.dim == 64 or problem.dtype == problem.k_format == "mxfp4")
    if not short:
        return GLUON_CDNA4
    return GLUON_CDNA4_PACKED if problem.next_n is None else GLUON_CDNA4_CACHED


# --- gluon_hopper, by padded heads; for every D, candidate block and output mode alike -------------------------------------

_HOPPER = Tuning(  # as fp8_mqa_logits; measured on an H200 with 32 heads
    block_keys=128,
    columns=256,  # of two warpgroups
    num_warps=8,
    num_stages=4,
    resident=1,
    registers_thread=168,  # 384 threads share the 65,536 of an SM
    registers_consumer=208,
    registers_producer=88,
)
GLUON_HOPPER: dict[int, Tuning] = dict.fromkeys((16, 32, 64, 128), _HOPPER)


@cache
def gluon_hopper(problem: Problem) -> Tuning:
    """The row for a problem's heads, cut to the rows that share a list, but to 64 products of a warpgroup at least."""
    padded = padded_heads(problem.heads)
    return GLUON_HOPPER[padded].with_rows(max(problem.list_rows, 128 // padded, 2), padded)
