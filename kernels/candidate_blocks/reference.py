"""Scores of blocks and masked logits in plain torch: the variants for machines without a GPU, and the judges of the others."""

import torch

from .operands import Masked, Scored


def windows(inputs: Scored | Masked) -> tuple[torch.Tensor, torch.Tensor]:
    """(first column, one past the last) of each row's window, int64 [S]."""
    rows, columns = inputs.logits.shape
    ends = inputs.ends.long().clamp(max=columns)
    begins = torch.zeros_like(ends) if inputs.starts is None else inputs.starts.long().clamp(min=0)
    return begins.repeat_interleave(rows // len(ends)), ends.repeat_interleave(rows // len(ends))


def scoring(inputs: Scored, scores: torch.Tensor, counts: torch.Tensor, *, candidate_block: int) -> None:
    """Fill ``scores`` [S, blocks], float32, and ``counts`` [S], how many blocks a row's window has.

    A score is the largest logit of a block; of the window's last block and of one with a NaN it is +inf. Scores behind those of
    the window's blocks are not written.
    """
    begin, end = windows(inputs)
    count = ((end - begin).clamp(min=0) + candidate_block - 1) // candidate_block
    counts.copy_(count)
    if scores.numel() == 0:
        return
    block = torch.arange(scores.shape[1], device=scores.device)
    column = begin[:, None, None] + block[:, None] * candidate_block + torch.arange(candidate_block, device=scores.device)
    inside = column < end[:, None, None]
    columns = inputs.logits.shape[1]
    value = inputs.logits.float().gather(1, column.clamp(max=columns - 1).flatten(1)).view(column.shape)
    value = value.masked_fill(value.isnan(), float("inf")).masked_fill(~inside, float("-inf")).amax(-1)
    value = value.masked_fill(block == count[:, None] - 1, float("inf"))
    scores.copy_(torch.where(block < count[:, None], value, scores))


def masking(inputs: Masked, *, candidate_block: int) -> None:
    """-inf into the cells that no candidate block of the row's window holds."""
    logits, candidates, (begin, end) = inputs.logits, inputs.candidates.long(), windows(inputs)
    rows, columns = logits.shape
    blocks = -(-columns // candidate_block)
    known = (candidates >= 0) & (candidates < blocks)
    listed = torch.zeros((len(candidates), blocks + 1), dtype=torch.bool, device=logits.device)
    listed.scatter_(1, candidates.where(known, blocks), True)
    column = torch.arange(columns, device=logits.device)
    local = column - begin[:, None]
    block = (local.clamp(min=0) // candidate_block).clamp(max=blocks)
    kept = listed.repeat_interleave(rows // len(candidates), 0).gather(1, block)
    logits.masked_fill_(~(kept & (local >= 0) & (column < end[:, None])), float("-inf"))
