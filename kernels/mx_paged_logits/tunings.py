"""The tuning tables of mx_paged_mqa_logits. What was tried for them: docs/design/mx_logits.md."""

from capgate import compat

from ..common.rules import padded_heads
from ..common.tuning import ANY, Tuning, loadable, row_for
from .operation import Problem, operation

# --- classic, by target; for every H, D, block size, layout and output mode alike -----------------------------------------

CLASSIC: dict[str, Tuning] = {
    # Compiled and emulated, never timed: as fp8_paged_mqa_logits. On gfx942 Triton 3.8 and 3.9 spill 7 to 17 scalar registers.
    **dict.fromkeys(("gfx942", "gfx950"), Tuning(block_keys=64, columns=128, num_warps=4, num_stages=2, resident=2)),
    # Compiled, never run: block-scaled instructions there are of 128 keys at least.
    **dict.fromkeys(("sm100", "sm103"), Tuning(block_keys=128, columns=128, num_warps=8, num_stages=3, resident=2)),
    # Compiled for sm89, sm90 and sm120, never run there.
    ANY: Tuning(block_keys=64, columns=128, num_warps=4, num_stages=3, resident=2),
}


@loadable(operation, "classic")
def classic(problem: Problem) -> Tuning:
    """The row for a problem's target, cut to its heads and to the rows of a request."""
    row = row_for(CLASSIC, compat.capabilities(problem.device).target.label)
    return row.with_rows(1 << (problem.next_n - 1).bit_length(), padded_heads(problem.heads))
