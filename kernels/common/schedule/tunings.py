"""The tuning table of what makes a schedule."""

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from capgate import compat

from ..tuning import ANY, row_for

if TYPE_CHECKING:
    from .operation import Problem


class Tuning(NamedTuple):
    """How a worker's beginning is found; names as in :mod:`..tuning`.

    requests : whose lengths are summed at a time
    """

    num_warps: int
    requests: int


# --- classic, by target ---------------------------------------------------------------------------------------------------

CLASSIC: dict[str, Tuning] = {
    # Compiled, not timed: a warp alone needs no barrier and no shared memory; 8 requests of each of 32 threads, 4 of 64.
    ANY: Tuning(num_warps=1, requests=256),
}


@cache
def classic(problem: "Problem") -> Tuning:
    """The row for a problem's target."""
    return row_for(CLASSIC, compat.capabilities(problem.device).target.label)
