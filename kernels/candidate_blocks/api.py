"""The public functions: checks, and dispatch through operators that torch.compile and GPU graphs understand."""

import torch

from ..common.checks import check_among, check_apart, check_integer, check_shared, check_variant
from ..common.logits import FLOATS
from ..common.torch_ops import register
from ..key_selection.api import select_from_logits
from ..key_selection.results import check_results
from ..sparse_logits.operation import CANDIDATE_BLOCKS
from .operands import MASKED, SCORED, Masked, Scored
from .operation import Problem, masking, scoring

MAX_COLUMNS = 65535 * 2048  # a grid's second dimension, each program of which looks at 256 blocks of 8 columns or more


def select_candidate_blocks(
    logits: torch.Tensor,
    starts: torch.Tensor | None,
    ends: torch.Tensor,
    *,
    top_blocks: int,
    candidate_block: int = 8,
    out: torch.Tensor | None = None,
    variant: str | None = None,
) -> torch.Tensor:
    """Choose the blocks of keys with the largest logits, for :func:`sparse_mqa_logits`.

    Parameters
    ----------
    logits : torch.Tensor, shape (S, N), float32 or bfloat16
        Of all keys. Only cells inside the windows are looked at.
    starts : torch.Tensor, shape (G,), int32, or None
        The first key that a row sees; None is 0 for every row.
    ends : torch.Tensor, shape (G,), int32
        One more than the last key that a row sees. G is a divisor of S: adjacent rows share a window. Windows that are
        empty, inverted or reach past the keys are fine.
    top_blocks : int
        How many blocks to choose for each row, 1 or more.
    candidate_block : int
        Keys in a block, 8, 16, 32 or 64. A row's blocks lie behind one another from its window's first key on, and the last may
        be short.
    out : torch.Tensor, shape (S, top_blocks), int32, optional
        Where to write: rows of adjacent elements. A new one is allocated otherwise.
    variant : str, optional
        Take this variant ("classic", "reference") or raise, of the selection behind it, too.

    A block's score is its largest logit. The window's last block, the newest, and blocks with a NaN have a score of +inf. Of
    equal scores the lower number goes first.

    Returns
    -------
    torch.Tensor
        ``out``, or a new tensor of its shape: numbers of blocks, counted from the window's first, in ascending order, then -1.
        A block whose logits are all -inf is -1, too, wherever it would stand. Nothing is read back from the device, and results
        of repeated calls are equal. Beside the operands it takes memory for the scores of all blocks, float32.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.
    capgate.compat.CapabilityError
        The variant that ``variant`` or CAPGATE_VARIANT names cannot run here.
    """
    inputs = Scored(logits, starts, ends)
    SCORED.check(inputs, "the selection")
    _check_columns(logits)
    check_shared("ends", ends, len(logits))
    top_blocks = check_integer("top_blocks", top_blocks, 1)
    candidate_block = check_among("candidate_block", candidate_block, CANDIDATE_BLOCKS)
    check_variant("variant", variant, scoring)
    options = (candidate_block, variant)
    if out is None:
        chosen: torch.Tensor = torch.ops.capgate.select_candidate_blocks(*inputs, top_blocks, *options)
        return chosen
    check_results(logits.shape[0], top_blocks, False, logits.device, out, None, None)
    torch.ops.capgate.select_candidate_blocks_out(*inputs, out, *options)
    return out


def apply_candidate_mask(
    logits: torch.Tensor,
    starts: torch.Tensor | None,
    ends: torch.Tensor,
    candidates: torch.Tensor,
    *,
    candidate_block: int = 8,
    variant: str | None = None,
) -> torch.Tensor:
    """Set every logit to -inf whose key is in none of its row's candidate blocks, or not in its window.

    Parameters
    ----------
    logits : torch.Tensor, shape (S, N), float32 or bfloat16
        Written in place; other cells keep their bits.
    starts : torch.Tensor, shape (G,), int32, or None
        The first key that a row sees; None is 0 for every row.
    ends : torch.Tensor, shape (G,), int32
        One more than the last key that a row sees. G is a divisor of S: adjacent rows share a window.
    candidates : torch.Tensor, shape (L, C), int32
        Numbers of blocks, counted from the window's first, in any order; those that the window does not have, such as -1, mean
        nothing. L is a divisor of S: adjacent rows share a list.
    candidate_block : int
        Keys in a block, as in :func:`select_candidate_blocks`.
    variant : str, optional
        Take this variant ("classic", "reference") or raise.

    Returns
    -------
    torch.Tensor
        ``logits``.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above; nothing has been written.
    capgate.compat.CapabilityError
        The variant that ``variant`` or CAPGATE_VARIANT names cannot run here.
    """
    inputs = Masked(logits, starts, ends, candidates)
    MASKED.check(inputs, "the mask")
    _check_columns(logits)
    check_shared("ends", ends, len(logits))
    check_shared("candidates", candidates, len(logits))
    candidate_block = check_among("candidate_block", candidate_block, CANDIDATE_BLOCKS)
    check_variant("variant", variant, masking)
    torch.ops.capgate.apply_candidate_mask(*inputs, candidate_block, variant)
    return logits


def _check_columns(logits: torch.Tensor) -> None:
    if logits.shape[1] > MAX_COLUMNS:
        raise ValueError(f"logits: got {logits.shape[1]} columns, needs {MAX_COLUMNS} at most")


def _select_into(inputs: Scored, out: torch.Tensor, candidate_block: int, variant: str | None) -> None:
    """Operator ``capgate::select_candidate_blocks_out``."""
    check_apart("out", out, inputs)
    logits, (rows, columns) = inputs.logits, inputs.logits.shape
    problem = Problem(logits.device, FLOATS[logits.dtype])
    if rows == 0:
        scoring.select(problem, variant)
        return
    scores = logits.new_empty((rows, -(-columns // candidate_block)), dtype=torch.float32)
    counts = logits.new_empty((rows,), dtype=torch.int32)
    scoring(problem, inputs, scores, counts, variant=variant, candidate_block=candidate_block)
    _, found = select_from_logits(scores, None, counts, top_k=out.shape[1], out=out, return_scores=True, variant=variant)
    out.masked_fill_(found == float("-inf"), -1)


def _select(inputs: Scored, top_blocks: int, candidate_block: int, variant: str | None) -> torch.Tensor:
    """Operator ``capgate::select_candidate_blocks``: the same into a new tensor."""
    out = _empty(inputs, top_blocks)
    _select_into(inputs, out, candidate_block, variant)
    return out


def _empty(inputs: Scored, top_blocks: int, *options: object) -> torch.Tensor:
    return inputs.logits.new_empty((inputs.logits.shape[0], top_blocks), dtype=torch.int32)


def _mask(inputs: Masked, candidate_block: int, variant: str | None) -> None:
    """Operator ``capgate::apply_candidate_mask``."""
    logits = inputs.logits
    check_apart("logits", logits, inputs)
    problem = Problem(logits.device, FLOATS[logits.dtype])
    if logits.numel() == 0:
        masking.select(problem, variant)
        return
    masking(problem, inputs, variant=variant, candidate_block=candidate_block)


_OPTIONS = "SymInt candidate_block, str? variant"
register("select_candidate_blocks", SCORED, f"SymInt top_blocks, {_OPTIONS}", "Tensor", _select, _empty)
register("select_candidate_blocks_out", SCORED, f"Tensor(a!) out, {_OPTIONS}", "()", _select_into)
register("apply_candidate_mask", MASKED, _OPTIONS, "()", _mask)
