"""The tuning table of what makes a schedule."""

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from capgate import compat

from ..tuning import ANY, row_for

if TYPE_CHECKING:
    from .operation import Problem


class Tuning(NamedTuple):
    """How a worker's beginning is found; names as in :mod:`..tuning`.

    block_requests : requests whose lengths are summed at a time
    """

    num_warps: int
    block_requests: int


# --- classic, by target ---------------------------------------------------------------------------------------------------

CLASSIC: dict[str, Tuning] = {
    # Measured on an H200 with Triton 3.6.0: 4.3 us for 256 requests; 16 workers of a program with 4 warps took 6.2. Elsewhere
    # compiled, and emulated for gfx950: no barrier, no shared memory, no spills.
    ANY: Tuning(num_warps=1, block_requests=256),
}


@cache
def classic(problem: "Problem") -> Tuning:
    """The row for a problem's target."""
    return row_for(CLASSIC, compat.capabilities(problem.device).target.label)
