"""The tuning tables of fp8_paged_mqa_logits. What was tried for them: docs/design/classic.md, cdna4.md and hopper.md."""

from capgate import compat
from capgate.compat.offline.occupancy import LDS

from ..common.rules import E4M3FN, padded_heads
from ..common.tuning import ANY, Tuning, in_requests, lds_words, loadable, row_for, simd_waves
from .operation import Problem, operation

# --- classic, by target; for every H, D, block size and output mode alike -------------------------------------------------

CLASSIC: dict[str, Tuning] = {
    # Measured on an H100 with Triton 3.6.0: with next_n of 2 and 64 heads, 151.5 us instead of the 197.6 of 4 programs an SM.
    "sm90": Tuning(block_keys=64, columns=128, num_warps=4, num_stages=3, resident=3),
    # Compiled and emulated, never timed: a tile of 64 keys lies in one block of a serving engine's cache.
    "gfx950": Tuning(block_keys=64, columns=128, num_warps=4, num_stages=2, resident=2),
    # Compiled, never run: as gfx950.
    "gfx942": Tuning(block_keys=64, columns=128, num_warps=4, num_stages=2, resident=2),
    # Compiled, never run on other GPUs: as the dense table's.
    ANY: Tuning(block_keys=64, columns=128, num_warps=4, num_stages=3, resident=2),
}
CLASSIC_NARROW: dict[str, Tuning] = {  # for problems that take no more columns
    **CLASSIC,
    # Measured on an H100 with Triton 3.6.0: one query row of 64 heads, 134.5 us instead of the 149.7 of 3 programs an SM.
    "sm90": Tuning(block_keys=64, columns=64, num_warps=4, num_stages=3, resident=4),
}


@loadable(operation, "classic")
def classic(problem: Problem) -> Tuning:
    """The row for a problem's target, cut to its heads and to the rows of a request."""
    target, padded = compat.capabilities(problem.device).target, padded_heads(problem.heads)
    wanted = _power_of_two(problem.next_n)
    row = row_for(CLASSIC_NARROW, target.label)
    if wanted * padded > row.columns:
        row = row_for(CLASSIC, target.label)
    row = row.with_rows(wanted, padded)
    if target.backend == "hip" and row.columns == 32:
        # Two products of 32x32 in a tile: with more waves, two would compute the same.
        return row._replace(num_warps=row.num_warps // 2)
    return row


# --- gluon_cdna3, by padded heads; for every D, block size and output mode alike ------------------------------------------

_CDNA3 = Tuning(  # LDS has a part of a tile or two: of 128 dims 4 of 64 KiB for a wave alone, 8 for waves that share
    block_keys=64, columns=128, num_warps=4, num_stages=2, resident=3, options=simd_waves(3), part_keys=32
)
GLUON_CDNA3: dict[int, Tuning] = {
    # Compiled and emulated, never timed: as many columns of a wave as its MFMA has rows.
    16: _CDNA3,
    # Compiled and emulated, never timed: as in the dense table, one row for each wave.
    32: _CDNA3,
    # Compiled and emulated, never timed: 53 to 54 vector instructions per 32 keys of a row, 142 to 168 registers.
    64: _CDNA3._replace(columns=256),
    # Compiled and emulated, never timed: 226 to 256 registers.
    128: _CDNA3._replace(columns=512, resident=2, options=simd_waves(2)),
}
# Compiled, never timed: what so many heads and waves have registers for with 128 dims, e4m3fn counted as 3, tiles of several
# blocks as 1, and blocks of one key as 1 more. Beyond it 1 to 72 registers spill: a SIMD then has a wave less.
_CDNA3_ROOM = {(16, 1): 4, (32, 1): 4, (64, 1): 0, (64, 2): 2, (64, 4): 3, (128, 1): 1}


@loadable(operation, "gluon_cdna3")
def gluon_cdna3(problem: Problem) -> Tuning:
    """The row for a problem's heads, cut to the rows of a request: fewer waves, of which a CU holds more programs."""
    padded = padded_heads(problem.heads)
    row = GLUON_CDNA3[padded]
    part_bytes = row.block_keys * problem.dim // 2
    wave_columns = row.columns // row.num_warps
    most_waves = min(row.num_warps, part_bytes // 1024)  # each has keys to load, 1024 bytes at a time
    wanted = max(_power_of_two(problem.next_n), 32 // padded)
    tune = row._replace(columns=most_waves * wave_columns).with_rows(wanted, padded)
    waves = max(1, tune.columns // wave_columns)
    strain = 3 * (problem.dtype == E4M3FN) + (problem.block_size % 64 > 0) + (problem.block_size == 1)
    if problem.dim == 128 and strain > _CDNA3_ROOM.get((padded, waves), strain):
        tune = tune._replace(resident=tune.resident - 1, options=simd_waves(tune.resident - 1))
    lds_bytes = part_bytes * min(waves, 2) + 4 * max(tune.rows * min(padded, 64), 64 * waves)  # keys and weights
    size, granule = LDS["gfx942"]
    resident = min(tune.resident * row.num_warps // waves, size // (-(-lds_bytes // granule) * granule))
    return tune._replace(num_warps=waves, resident=resident)


# --- gluon_cdna4, by padded heads; for every D, block size and output mode alike ------------------------------------------

GLUON_CDNA4: dict[int, Tuning] = {
    # Compiled and emulated, never timed: as many columns of a wave as its MFMA has rows.
    16: Tuning(block_keys=64, columns=128, num_warps=4, num_stages=3, resident=3, options=simd_waves(3)),
    # Compiled and emulated, never timed: as with 64 heads, two rows for each wave.
    32: Tuning(block_keys=64, columns=256, num_warps=4, num_stages=3, resident=3, options=simd_waves(3)),
    # Compiled and emulated, never timed: 52.7 vector instructions per 32 keys of a row; twice the columns of a wave spill.
    64: Tuning(block_keys=64, columns=256, num_warps=4, num_stages=3, resident=3, options=simd_waves(3)),
    # Compiled and emulated, never timed: tiles of 64 keys have no room, and neither has a third wave.
    128: Tuning(block_keys=32, columns=512, num_warps=4, num_stages=3, resident=2, options=simd_waves(2)),
}


@loadable(operation, "gluon_cdna4")
def gluon_cdna4(problem: Problem) -> Tuning:
    """The row for a problem's heads, cut to the rows of a request: fewer waves, of which a CU holds more programs."""
    padded = padded_heads(problem.heads)
    row = GLUON_CDNA4[padded]
    return in_requests(row, problem.next_n, padded, problem.dim, lds_words(row, problem.block_size))


# --- gluon_hopper, by padded heads; for every D, block size, next_n and output mode alike ---------------------------------

_HOPPER = Tuning(
    block_keys=64,
    columns=128,
    num_warps=4,
    num_stages=5,
    resident=2,
    registers_thread=128,
    registers_producer=72,
    passes=1,
)
GLUON_HOPPER: dict[int, Tuning] = {
    # Compiled, not timed: as with 64 heads.
    16: _HOPPER,
    # As with 64 heads, with which it was chosen; measured.md has its times on an H100.
    32: _HOPPER,
    # Measured on an H100 with Triton 3.6.0: 116.4 us, one program of 128-key tiles 116.8 to 119.4; 8 stages are 2.5 % slower.
    64: _HOPPER,
    # Compiled, not timed: as with 64 heads.
    128: _HOPPER,
}


@loadable(operation, "gluon_hopper")
def gluon_hopper(problem: Problem) -> Tuning:
    """The row for a problem's heads, cut to the rows of a request."""
    padded = padded_heads(problem.heads)
    row = GLUON_HOPPER[padded].with_rows(_power_of_two(problem.next_n), padded)
    if -(-problem.next_n // row.rows) % 2 or padded == 16:
        return row
    # Measured on an H200 with Triton 3.6.0, 64 heads, 64k contexts: next_n of 4 takes 928 us in two passes, which read keys
    # once, and 1020 in two programs; of 6, whose last program would have no row in its second pass, 1784 and not 1524. With 56
    # registers of a producer 6 to 12 of a consumer spill, with 16 heads 2; a third pass would leave an SM one program.
    return row._replace(passes=2, registers_producer=40)


def _power_of_two(number: int) -> int:
    """The smallest that is not less."""
    return 1 << (number - 1).bit_length()
