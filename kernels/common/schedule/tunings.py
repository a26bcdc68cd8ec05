"""The tuning table of what makes a schedule."""

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from capgate import compat

from ..tuning import ANY, row_for

if TYPE_CHECKING:
    from .operation import Problem


class Tuning(NamedTuple):
    """How the workers of a schedule are cut; names as in :mod:`..tuning`.

    block_workers : workers whose beginnings a program finds
    requests : whose lengths are summed at a time
    """

    block_workers: int
    num_warps: int
    requests: int


# --- classic, by target ---------------------------------------------------------------------------------------------------

CLASSIC: dict[str, Tuning] = {
    # Run on an H100, not timed against others: every program sums all lengths, two of a thread.
    ANY: Tuning(block_workers=16, num_warps=4, requests=256),
    # Compiled and emulated, never timed: of 128 requests at a time Triton 3.7.1 spills 10 scalars.
    "gfx950": Tuning(block_workers=16, num_warps=4, requests=64),
    # Compiled, never run: as gfx950.
    "gfx942": Tuning(block_workers=16, num_warps=4, requests=64),
}


@cache
def classic(problem: "Problem") -> Tuning:
    """The row for a problem's target."""
    return row_for(CLASSIC, compat.capabilities(problem.device).target.label)
