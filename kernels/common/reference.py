"""What the variants in plain torch share: a logit, which cells get one, and how much they compute at a time."""

from collections.abc import Callable

import torch

Logits = Callable[[torch.Tensor], torch.Tensor]  # of some rows, by the indices of keys

SCORE_BYTES = 2**28  # of products, rows * heads * keys in the accumulation type, that are held at a time
KEY_TILE = 8192


def score(query: torch.Tensor, weight: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """[..., rows, keys] logits, not yet times the keys' scales, in the type of the operands.

    query, weight, keys : [..., rows, heads, D], [..., rows, heads] and [..., keys, D]
    """
    dots = query.flatten(-3, -2) @ keys.mT  # fp8 products are exact in TF32 too
    positive = dots.relu_().unflatten(-2, query.shape[-3:-1])
    return positive.mul_(weight[..., None]).sum(-2)  # no matmul: that one TF32 would round


def score_in_bfloat16(query: torch.Tensor, weight: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """As :func:`score` in the arithmetic of DeepGEMM's kernels for sm100: head sums in bfloat16, to nearest and ties to even.

    The float32 products' relu and the weights are rounded to bfloat16. Head by head, ascending, each product is added by a
    fused multiply-add to one of four sums, that of the head's number modulo 4; the logit is ``(p0 + p2) + (p1 + p3)``. From
    the headers of DeepGEMM 2.8. The result has the operands' type.
    """
    heads, dots = query.shape[-2], query.flatten(-3, -2) @ keys.mT
    positive = dots.relu_().unflatten(-2, query.shape[-3:-1]).bfloat16()
    factor = weight.bfloat16()[..., None]
    sums = [positive.new_zeros(positive.shape[:-2] + positive.shape[-1:]) for _ in range(4)]
    for head in range(heads):
        sums[head % 4] = _fma(positive[..., head, :], factor[..., head, :], sums[head % 4])
    return ((sums[0] + sums[2]) + (sums[1] + sums[3])).to(query.dtype)


def _fma(one: torch.Tensor, other: torch.Tensor, addend: torch.Tensor) -> torch.Tensor:
    """``one * other + addend`` of bfloat16, rounded once."""
    product, addend = one.float() * other.float(), addend.float()  # exact
    total = product + addend
    back = total - product
    lost = (product - (total - back)) + (addend - back)  # what the sum was rounded by
    # Rounded to odd in float32, which a second rounding to bfloat16 makes the nearest of the exact sum.
    bits = total.view(torch.int32)
    odd = torch.where(lost != 0, bits - (torch.signbit(lost) != torch.signbit(total)).int() | 1, bits)
    return torch.where(total.isfinite(), odd, bits).view(torch.float32).bfloat16()


def row_lengths(context_lens: torch.Tensor, next_n: int) -> torch.Tensor:
    """How many keys each row sees, [B, next_n] in int64; 0 or less for none."""
    if context_lens.ndim == 2:
        return context_lens.long()
    return context_lens.long()[:, None] + torch.arange(1 - next_n, 1, device=context_lens.device)


def fill_windows(
    out: torch.Tensor,
    starts: torch.Tensor,
    ends: torch.Tensor,
    num_keys: int,
    widest: int,
    scorer: Callable[[slice], Logits],
    *,
    clean_logits: bool,
    compressed: bool,
    accumulate: torch.dtype,
) -> None:
    """Fill ``out`` [rows, columns], a tile of rows and keys at a time: every row's window, and with clean_logits the rest.

    widest : of heads and dims, what a row and a key take together while they are scored
    scorer : gives for a slice of rows what makes their logits [rows, n] of keys [n], or with compressed of keys [rows, n]
    """
    rows, columns = out.shape
    key_tile = min(KEY_TILE, columns)
    row_tile = max(1, SCORE_BYTES // (widest * key_tile * accumulate.itemsize))
    for row in range(0, rows, row_tile):
        block = slice(row, row + row_tile)
        logits_of = scorer(block)
        start, end = starts[block, None].long(), ends[block, None].long()
        for column in range(0, columns, key_tile):
            cells = out[block, column : column + key_tile]
            key = torch.arange(column, column + cells.shape[1], device=out.device)
            if compressed:
                key = key + start
            inside = (key >= start.clamp(min=0)) & (key < end.clamp(max=num_keys))
            outside = torch.full_like(cells, float("-inf")) if clean_logits else cells
            if num_keys == 0 or (out.device.type == "cpu" and not inside.any()):  # a look that would stop a GPU's queue
                cells.copy_(outside)
            else:
                logits = logits_of(key.clamp(0, num_keys - 1))
                cells.copy_(torch.where(inside, logits.to(out.dtype), outside))


def fill_requests(
    out: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    cache: tuple[int, int],
    next_n: int,
    widest: int,
    logits_of: Callable[[slice, torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    clean_logits: bool,
    accumulate: torch.dtype,
) -> None:
    """Fill ``out`` [requests * next_n, columns], a tile of requests and keys at a time: what every row sees, with clean_logits
    the rest, and -inf for keys of blocks that the cache does not have.

    cache : how many blocks, and the keys of each
    widest : of next_n * heads and dims, what a request and a key take together while they are scored
    logits_of : [b, next_n, n] of a slice of requests, of the keys in blocks [b, n] at places [n] in them
    """
    (requests, columns), (blocks, block) = (len(block_table), out.shape[1]), cache
    limit = min(columns, block_table.shape[1] * block)
    lengths = row_lengths(context_lens, next_n)[..., None].clamp(max=limit)  # [B, next_n, 1]
    key_tile = min(KEY_TILE, columns)
    request_tile = max(1, SCORE_BYTES // (widest * key_tile * accumulate.itemsize))
    for first in range(0, requests, request_tile):
        batch = slice(first, first + request_tile)
        length = lengths[batch]
        for column in range(0, columns, key_tile):
            cells = out[first * next_n : (first + len(length)) * next_n, column : column + key_tile]
            position = torch.arange(column, column + cells.shape[1], device=out.device)
            inside = position < length  # [b, next_n, columns]
            outside = torch.full_like(cells, float("-inf")) if clean_logits else cells
            if column >= limit or (out.device.type == "cpu" and not inside.any()):  # a look that would stop a GPU's queue
                cells.copy_(outside)
                continue
            # What the table holds past a request's longest row is not looked at.
            entry = block_table[batch, (position // block).clamp(max=block_table.shape[1] - 1)].long()
            held = inside.any(1) & (entry >= 0) & (entry < blocks)  # [b, columns]
            logits = logits_of(batch, torch.where(held, entry, 0), position % block)
            logits.masked_fill_(~held[:, None], float("-inf"))
            cells.copy_(torch.where(inside.flatten(0, 1), logits.flatten(0, 1).to(out.dtype), outside))
