"""The tuning tables of what writes and gathers cached keys."""

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from capgate import compat

from ..common.tuning import ANY, row_for

if TYPE_CHECKING:
    from .operation import Problem
    from .operation_mx import Problem as MxProblem


class Writing(NamedTuple):
    """How the keys to write are cut; names as in :mod:`..common.tuning`."""

    block_keys: int
    num_warps: int


class Gathering(NamedTuple):
    """How the keys to gather are cut; names as in :mod:`..common.tuning`.

    requests : whose lengths are summed at a time
    """

    block_keys: int
    num_warps: int
    requests: int


# --- classic, by target ---------------------------------------------------------------------------------------------------

CLASSIC_WRITE: dict[str, Writing] = {
    # Run on an H100, and emulated for gfx950, not timed against others: 8 elements of a thread where D = 128.
    ANY: Writing(block_keys=8, num_warps=4),
}
CLASSIC_GATHER: dict[str, Gathering] = {  # of keys in any format
    # Compiled and emulated, never timed: of 64 requests at a time Triton 3.9.0 spills 16 bytes on sm90.
    ANY: Gathering(block_keys=32, num_warps=4, requests=32),
}


@cache
def classic_write(problem: "Problem | MxProblem") -> Writing:
    """The row for a problem's target."""
    return row_for(CLASSIC_WRITE, compat.capabilities(problem.device).target.label)


@cache
def classic_gather(problem: "Problem | MxProblem") -> Gathering:
    """The row for a problem's target."""
    return row_for(CLASSIC_GATHER, compat.capabilities(problem.device).target.label)
