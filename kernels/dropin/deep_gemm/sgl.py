"""The function that sgl-deep-gemm has under a name of DeepGEMM's, with other names for its arguments."""

import torch

from . import dense


def fp8_mqa_logits(
    q: torch.Tensor,
    kv: tuple[torch.Tensor, torch.Tensor],
    weights: torch.Tensor,
    ks: torch.Tensor,
    ke: torch.Tensor,
    clean_logits: bool = False,
    max_seqlen_k: int = 0,
) -> torch.Tensor:
    """As :func:`.dense.fp8_mqa_logits`, with windows ``ks`` to ``ke``."""
    return dense.fp8_mqa_logits(q, kv, weights, ks, ke, clean_logits, max_seqlen_k)
