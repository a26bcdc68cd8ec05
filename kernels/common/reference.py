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
