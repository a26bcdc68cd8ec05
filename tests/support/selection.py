"""What a selection must return, by the judge of ``capgate verify``, and selections that are cut short."""

from typing import Any

from capgate.kernels.key_selection import tunings
from capgate.kernels.tools.verify.selection import INF, KINDS, NAN, check, expected, judge, make_logits, placed, same

__all__ = ["INF", "KINDS", "NAN", "check", "expected", "judge", "make_logits", "placed", "same", "shorten_blocks"]


def shorten_blocks(patch: Any, programs: int = 1, **fields: Any) -> None:
    """One program of the classic variant selects from 512 logits at most, and takes as many of a longer row at a time.

    programs : wanted at once; fewer rows are cut in as many sections as that takes, of 300 logits or more
    """
    patch.setitem(tunings.CLASSIC, "", tunings.Tuning(block_logits=512, num_warps=1, planes=16))
    row = tunings.LongRows(block_logits=512, num_warps=1, planes=16, sample=256, resident=1, few_resident=programs, section=300)
    patch.setitem(tunings.LONG, "", row._replace(**fields))
