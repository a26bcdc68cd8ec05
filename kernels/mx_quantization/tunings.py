"""The tuning table of what quantises to MX formats."""

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from capgate import compat

from ..common.tuning import ANY, row_for

if TYPE_CHECKING:
    from .operation import Problem


class Quantizing(NamedTuple):
    """How the rows to quantise are cut; names as in :mod:`..common.tuning`."""

    block_keys: int
    num_warps: int


CLASSIC: dict[str, Quantizing] = {
    # Compiled, never timed: as the writer of cached keys, 8 elements of a thread where D = 128.
    ANY: Quantizing(block_keys=8, num_warps=4),
}


@cache
def classic(problem: "Problem") -> Quantizing:
    """The row for a problem's target."""
    return row_for(CLASSIC, compat.capabilities(problem.device).target.label)
