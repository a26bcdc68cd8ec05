"""What a selection needs in memory, and how many query rows a budget has room for: plain arithmetic on shapes."""

ROW_GRANULE = 128
CANDIDATE_BYTES = 8  # a logit and the index it stands for


def rooms(columns: int, top_k: int, block: int) -> list[int]:
    """Candidates that a row may have after each launch but the last, where one program selects from ``block`` at most.

    A program leaves ``top_k`` of its block, or all of what it has if that is less; the launch that finds a row's candidates
    in one block is the last. Needs ``top_k`` of at most half a block where a row has more columns than one.
    """
    found = []
    while columns > block:
        columns = columns // block * top_k + min(columns % block, top_k)
        found.append(columns)
    return found


def rows_within(budget: int, row_bytes: int, rows: int) -> int:
    """How many rows of ``row_bytes`` to take at a time within ``budget`` bytes; 0 where there is no room for one.

    All of them if they fit, otherwise a multiple of ROW_GRANULE, or a power of two below it, as serving engines cut theirs.
    """
    most = budget // row_bytes
    if most >= rows:
        return rows
    if most >= ROW_GRANULE:
        return most // ROW_GRANULE * ROW_GRANULE
    return 1 << most.bit_length() >> 1
