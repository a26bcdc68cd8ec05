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
CLASSIC_GATHER: dict[str, Gathering] = {
    # Run on an H100, and emulated for gfx950, not timed against others: 32 bytes of a thread where D = 128.
    ANY: Gathering(block_keys=32, num_warps=4, requests=256),
}
CLASSIC_GATHER_MX: dict[str, Gathering] = {
    # Compiled, never timed: with the lengths of 256 requests at a time sm90 spills 16 registers, gfx942 and gfx950 122 scalars.
    ANY: Gathering(block_keys=32, num_warps=4, requests=64),
}


@cache
def classic_write(problem: "Problem") -> Writing:
    """The row for a problem's target."""
    return row_for(CLASSIC_WRITE, compat.capabilities(problem.device).target.label)


@cache
def classic_gather(problem: "Problem") -> Gathering:
    """The row for a problem's target."""
    return row_for(CLASSIC_GATHER, compat.capabilities(problem.device).target.label)


@cache
def classic_gather_mx(problem: "MxProblem") -> Gathering:
    """The row for a problem's target, of keys in MX formats."""
    return row_for(CLASSIC_GATHER_MX, compat.capabilities(problem.device).target.label)
