"""What the variants in plain torch share: a logit, and how much they compute at a time."""

import torch

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
