"""fp8_mqa_logits in plain torch: the variant for machines without a GPU, and the judge of the others."""

import torch

from ..common.reference import Logits, fill_windows, score
from .operands import Inputs


def launch(
    inputs: Inputs, out: torch.Tensor, *, clean_logits: bool, compressed: bool, accumulate: torch.dtype = torch.float32
) -> None:
    """Fill ``out`` as :func:`capgate.kernels.fp8_mqa_logits` says; the arguments have been checked.

    accumulate : the type of products and sums, ``torch.float64`` to judge the other variants

    Nothing is read back from the device, so that the call can be captured in a GPU graph. Memory beyond the operands is
    bounded by a few times SCORE_BYTES.
    """
    q, k, k_scale, weights, starts, ends = inputs
    _, heads, dim = q.shape

    def scorer(rows: slice) -> Logits:
        query, weight = q[rows].to(accumulate), weights[rows].to(accumulate)

        def logits(near: torch.Tensor) -> torch.Tensor:
            keys = k.view(torch.uint8)[near].view(k.dtype).to(accumulate)  # indexing bytes works for every fp8 type
            if compressed:  # every row has keys of its own
                return score(query[:, None], weight[:, None], keys)[:, 0] * k_scale[near]
            return score(query, weight, keys) * k_scale[near]

        return logits

    options = {"clean_logits": clean_logits, "compressed": compressed, "accumulate": accumulate}
    fill_windows(out, starts, ends, k.shape[0], max(heads, dim), scorer, **options)
