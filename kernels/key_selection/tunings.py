"""How rows are cut for a selection, and what memory that takes: plain arithmetic on shapes, which needs no Triton."""

from typing import Any, NamedTuple

from capgate import compat

CANDIDATE_BYTES = 8  # a logit and the index that it stands for
ROW_GRANULE = 128


class Tuning(NamedTuple):
    """How the work is cut, and what is asked of the compiler."""

    block: int  # most logits that one program selects from: a power of two
    warp_logits: int  # of them, those of one warp or wave
    planes: int  # of those, adjacent ones of one thread: 16 at most, which have a bit each in a word
    options: tuple[tuple[str, Any], ...] = ()  # for the launch on logits; one backend alone knows them


# arch -> the tuning, for every top_k and number of columns alike. sm90's was the fastest of five on an H100.
TUNINGS: dict[str, Tuning] = {
    # With 96 registers five programs of 8192 logits share an SM. On candidates a few bytes would spill on Triton 3.9.
    "sm90": Tuning(16384, 2048, 16, (("maxnreg", 96),)),
    "": Tuning(16384, 2048, 16),
}
SMALLEST_BLOCK = 512


def tuning(target: compat.Target) -> Tuning:
    """The table's row for a target."""
    return TUNINGS.get(target.label, TUNINGS[""])


def max_top_k(target: compat.Target) -> int:
    """The most keys to select on a target: a program must leave at most half of its block for the next launch."""
    return tuning(target).block // 2


def block_of(target: compat.Target, columns: int) -> int:
    """Logits that one program selects from: a power of two, and a whole row if that is not too long."""
    return min(max(SMALLEST_BLOCK, 1 << max(columns - 1, 0).bit_length()), tuning(target).block)


def rooms(columns: int, top_k: int, block: int) -> list[int]:
    """Candidates that a row may have after each launch but the last.

    A program leaves ``top_k`` of its block, or all of what it has if that is less; the launch that finds a row's candidates
    in one block is the last.
    """
    found = []
    while columns > block:
        columns = columns // block * top_k + min(columns % block, top_k)
        found.append(columns)
    return found


def scratch_rooms(columns: int, top_k: int, block: int) -> list[int]:
    """Candidates that a row has room for in each scratch buffer: two at most, which the launches fill in turn. Their rows
    begin on 16-byte boundaries, and Triton is told of multiples of 16 elements."""
    return [-(-room // 16) * 16 for room in rooms(columns, top_k, block)[:2]]


def scratch_bytes(target: compat.Target, columns: int, top_k: int) -> int:
    """Bytes of scratch that the classic variant allocates for each row."""
    return CANDIDATE_BYTES * sum(scratch_rooms(columns, top_k, block_of(target, columns)))


def rows_within(budget: int, row_bytes: int, rows: int) -> int:
    """How many rows of ``row_bytes`` to take at a time within ``budget`` bytes; 0 where there is no room for one.

    All of them if they fit, otherwise a multiple of ROW_GRANULE, or a power of two below it, as serving engines cut theirs.
    """
    if rows * row_bytes <= budget:
        return rows
    most = budget // row_bytes
    if most >= ROW_GRANULE:
        return most // ROW_GRANULE * ROW_GRANULE
    return 1 << most.bit_length() >> 1
