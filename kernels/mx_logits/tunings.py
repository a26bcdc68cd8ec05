"""The tuning tables of mx_mqa_logits. What was tried for them: docs/design/mx_logits.md."""

from functools import cache

from capgate import compat

from ..common.rules import padded_heads
from ..common.tuning import ANY, Tuning, row_for
from .operation import Problem

# --- classic, by target; for every H and D alike --------------------------------------------------------------------------

CLASSIC: dict[str, Tuning] = {
    # Compiled and emulated, never timed: as fp8_mqa_logits.
    "gfx950": Tuning(block_keys=128, columns=128, num_warps=8, num_stages=2, resident=2),
    # Compiled and emulated, never timed: as gfx950, but for the LDS that queries and keys in bfloat16 take, 32 of its 64 KiB.
    "gfx942": Tuning(block_keys=64, columns=128, num_warps=8, num_stages=2, resident=2),
    # Compiled, never run: block-scaled instructions there are of 128 keys at least; with 4 warps 72 to 324 registers spill.
    **dict.fromkeys(("sm100", "sm103"), Tuning(block_keys=128, columns=128, num_warps=8, num_stages=3, resident=2)),
    # Compiled for sm89, sm90 and sm120, never run there.
    ANY: Tuning(block_keys=64, columns=128, num_warps=4, num_stages=3, resident=2),
}


@cache
def classic(problem: Problem) -> Tuning:
    """The row for a problem's target, cut to its heads."""
    row = row_for(CLASSIC, compat.capabilities(problem.device).target.label)
    padded = padded_heads(problem.heads)
    return row.with_rows(row.columns // padded, padded)
