"""The tuning tables of the fused selections. What was tried for them: docs/design/fused_selection.md."""

from typing import TYPE_CHECKING, NamedTuple

from capgate import compat

from ..common.rules import padded_heads
from ..common.tuning import ANY, Options, in_requests, row_for, simd_waves

if TYPE_CHECKING:
    from .operation import Problem

LANES = 32  # of an NVIDIA warp: entries of a run that are read side by side
MAX_TOP_K = 2048  # what models select at most; the list of 4096 keys would take a thread's registers twice over


class Tuning(NamedTuple):
    """How the keys of a problem are scored and its lists are cut; names as in :mod:`..common.tuning`.

    block_entries : entries that a row's list has room for, ``planes`` times a power of two; in a table the least
    planes : entries of the list that a thread takes side by side when it selects: as in :mod:`..key_selection.tunings`
    shares : of groups that are left at the end, the most for each program: more make the end more even, and take memory
    held_entries : of a run of a list, as many as a warpgroup's registers hold when it selects; Hopper's alone have runs
    """

    block_keys: int
    columns: int
    num_warps: int
    num_stages: int
    resident: int
    block_entries: int = 1536
    planes: int = 12
    shares: int = 1
    held_entries: int = 0
    options: Options = ()
    rows: int = 0
    registers_thread: int | None = None
    registers_consumer: int | None = None
    registers_producer: int | None = None

    def for_problem(self, heads: int, most_rows: int, top_k: int) -> "Tuning":
        """The row for a problem: with so many query rows, or as many as its columns have room for, and lists of three times
        ``top_k`` (as a power of two), so that a selection from one lets as many keys in as it drops."""
        return self.with_rows(most_rows, padded_heads(heads)).with_lists(top_k)

    def with_rows(self, rows: int, padded_heads: int) -> "Tuning":
        """As :meth:`..common.tuning.Tuning.with_rows`."""
        rows = max(1, min(rows, self.columns // padded_heads))
        return self._replace(rows=rows, columns=rows * padded_heads)

    def with_lists(self, top_k: int) -> "Tuning":
        """With lists of three times ``top_k`` as a power of two: see :meth:`for_problem`."""
        return self._replace(block_entries=max(self.block_entries, self.planes * slots_of(top_k) // 4))

    @property
    def segment_tiles(self) -> int:
        """Tiles after which the lists are looked at: of a sixth of a list. More would be fewer beginnings of a pipeline, fewer
        a list that is fuller when it is selected from."""
        return max(1, self.block_entries // (6 * self.block_keys))


def slots_of(top_k: int) -> int:
    """The selected keys of a row, and places up to a power of two, four at least."""
    return max(4, 1 << (top_k - 1).bit_length())


# --- classic, by target; for every H, D and top_k alike -------------------------------------------------------------------

CLASSIC: dict[str, Tuning] = {
    # Measured on an H200 with Triton 3.6.0: 4096 x 65536 for 2048 keys 9.27 ms; two programs an SM, of 238 registers, 11.87.
    "sm90": Tuning(block_keys=64, columns=128, num_warps=4, num_stages=3, resident=3, options=(("maxnreg", 168),)),
    # Compiled, never timed: scored as in fp8_mqa_logits; with 186 vector registers one program of eight waves fits a CU.
    "gfx950": Tuning(block_keys=128, columns=128, num_warps=8, num_stages=2, resident=1),
    # Compiled, never run: as gfx950.
    "gfx942": Tuning(block_keys=128, columns=128, num_warps=8, num_stages=2, resident=1),
    # Compiled for sm90, never run on other GPUs: as there.
    ANY: Tuning(block_keys=64, columns=128, num_warps=4, num_stages=3, resident=2),
}
CLASSIC_PAGED: dict[str, Tuning] = {
    # Measured on an H200 with Triton 3.6.0: 64 requests of 131072 keys for 2048 .665 ms; with two programs an SM .882.
    "sm90": Tuning(block_keys=64, columns=128, num_warps=4, num_stages=3, resident=3, options=(("maxnreg", 168),)),
    # Compiled, never timed: as in fp8_paged_mqa_logits.
    "gfx950": Tuning(block_keys=64, columns=128, num_warps=4, num_stages=2, resident=2),
    # Compiled, never run: as gfx950.
    "gfx942": Tuning(block_keys=64, columns=128, num_warps=4, num_stages=2, resident=2),
    # Compiled for sm90, never run on other GPUs: as there.
    ANY: Tuning(block_keys=64, columns=128, num_warps=4, num_stages=3, resident=2),
}


def classic(problem: "Problem") -> Tuning:
    """The row for a problem's target, cut to its heads, to the rows of a request and to what it selects."""
    target = compat.capabilities(problem.device).target
    label = target.label
    if problem.next_n is None:
        return row_for(CLASSIC, label).for_problem(problem.heads, 128, problem.top_k)
    most_rows = 1 << (problem.next_n - 1).bit_length()
    if target.backend == "hip":  # Triton 3.6.0 does not compile lists of one row for gfx950; one that is added sees no key
        most_rows = max(2, most_rows)
    return row_for(CLASSIC_PAGED, label).for_problem(problem.heads, most_rows, problem.top_k)


# --- gluon_cdna4, by padded heads; scored as in fp8_mqa_logits, but for the columns of 32 heads ---------------------------

MAX_WAVE_HEADS = 64  # of a row: with more a wave's lanes are 32 keys, each twice
GLUON_CDNA4: dict[int, Tuning] = {
    # Compiled and emulated, never timed: an MFMA's columns are two rows; 25 to 40 scalar registers spill, outside the loop.
    16: Tuning(block_keys=128, columns=128, num_warps=4, num_stages=3, resident=3, options=simd_waves(3)),
    # Compiled and emulated, never timed: with 256 columns a wave has two rows, and 25 to 40 scalar registers spill.
    32: Tuning(block_keys=128, columns=128, num_warps=4, num_stages=3, resident=3, options=simd_waves(3)),
    # Compiled and emulated, never timed: 56 vector instructions per 32 keys of a row; up to 18 scalars spill, outside the loop.
    64: Tuning(block_keys=128, columns=256, num_warps=4, num_stages=3, resident=3, options=simd_waves(3)),
}


def gluon_cdna4(problem: "Problem") -> Tuning:
    """As :func:`classic` of packed keys for the Gluon kernel."""
    return GLUON_CDNA4[padded_heads(problem.heads)].for_problem(problem.heads, 128, problem.top_k)


GLUON_CDNA4_PAGED: dict[int, Tuning] = {
    # Compiled and emulated, never timed: an MFMA's columns are two rows; 43 to 72 scalar registers spill, outside the loop.
    16: Tuning(block_keys=64, columns=128, num_warps=4, num_stages=3, resident=3, options=simd_waves(3)),
    # Compiled and emulated, never timed: as with 64 heads one row for each wave, where the logits' waves have two.
    32: Tuning(block_keys=64, columns=128, num_warps=4, num_stages=3, resident=3, options=simd_waves(3)),
    # Compiled and emulated, never timed: 56 vector instructions per 32 keys of a row; up to 49 scalars spill, outside the loop.
    64: Tuning(block_keys=64, columns=256, num_warps=4, num_stages=3, resident=3, options=simd_waves(3)),
}


def gluon_cdna4_paged(problem: "Problem") -> Tuning:
    """As :func:`classic` of cached keys for the Gluon kernel, whose programs have as many waves as a request's rows ask for, as
    in fp8_paged_mqa_logits."""
    padded = padded_heads(problem.heads)
    tune = in_requests(GLUON_CDNA4_PAGED[padded], problem.next_n or 1, padded, problem.dim, 2)  # a scale and an entry
    return tune.with_lists(problem.top_k)


# --- gluon_hopper, by padded heads; scored as in fp8_mqa_logits -----------------------------------------------------------

GLUON_HOPPER: dict[int, Tuning] = {
    # As in fp8_mqa_logits, but for the registers, of which Triton 3.8.0 and 3.9.0 spill none, and the lists:
    # measured on an H200 with Triton 3.6.0, top 2048 of 4096 x 65536 5.25 ms, 512 of 8192 x 32768 4.50; thrice top_k 5.45, 4.86
    64: Tuning(
        block_keys=128,
        columns=256,  # of two warpgroups
        num_warps=8,
        num_stages=8,  # a consumer is ahead by as many tiles while the other selects
        resident=1,
        block_entries=8192,
        planes=16,
        held_entries=1024,  # and half of top_k: of 65,536 random keys two selections for 2048 make room, of 32,768 one for 512
        shares=4,  # of 4096 rows' 1024 groups 132 programs take 7 each, and of the last 100 five shares each: 7.8 and not 8
        registers_thread=168,  # 384 threads share the 65,536 of an SM
        registers_consumer=224,
        registers_producer=56,
    ),
}


def gluon_hopper(problem: "Problem") -> Tuning:
    """As :func:`classic` of packed keys for the Gluon kernel. Its lists have twice the places, since all that is kept of a row
    may lie in one of its four runs; they are selected from when registers still hold the runs, half of the places at most."""
    tune = GLUON_HOPPER[padded_heads(problem.heads)].for_problem(problem.heads, 128, problem.top_k)
    held = min(tune.held_entries + slots_of(problem.top_k) // 2, tune.block_entries // 4) // LANES * LANES
    return tune._replace(block_entries=2 * tune.block_entries, held_entries=held)


HOPPER_ROWS = 2  # of a request that a program has, at most: a lane has keys of one row or of two
_HOPPER_PAGED = Tuning(
    block_keys=64,
    columns=128,
    num_warps=4,
    num_stages=5,
    resident=2,
    block_entries=8192,
    planes=16,
    held_entries=2048,  # of all rows: 64 of each thread
    registers_thread=128,
    registers_producer=72,
)
GLUON_HOPPER_PAGED: dict[int, Tuning] = {
    # Compiled, not timed: as with 64 heads.
    16: _HOPPER_PAGED,
    # Compiled, not timed: as with 64 heads.
    32: _HOPPER_PAGED,
    # Compiled, not timed: scored as in fp8_paged_mqa_logits, with lists as for packed keys.
    64: _HOPPER_PAGED,
    # Compiled, not timed: as with 64 heads.
    128: _HOPPER_PAGED,
}


def gluon_hopper_paged(problem: "Problem") -> Tuning:
    """As :func:`classic` of cached keys for the Gluon kernel, whose programs have two rows at most, and whose lists have twice
    the places, as those of :func:`gluon_hopper`."""
    most_rows = min(HOPPER_ROWS, 1 << ((problem.next_n or 1) - 1).bit_length())
    tune = GLUON_HOPPER_PAGED[padded_heads(problem.heads)].for_problem(problem.heads, most_rows, problem.top_k)
    held = min(tune.held_entries // tune.rows, tune.block_entries // 4) // LANES * LANES
    return tune._replace(block_entries=2 * tune.block_entries, held_entries=held)
