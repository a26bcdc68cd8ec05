"""mx_mqa_logits in plain torch: the variant for machines without a GPU, and the judge of the others."""

import torch

from ..common.mx_operands import dim_of, values_of
from ..common.reference import Logits, fill_windows, score, score_in_bfloat16
from .operands import Inputs


def launch(
    inputs: Inputs,
    out: torch.Tensor,
    *,
    clean_logits: bool,
    compressed: bool,
    accumulate: torch.dtype = torch.float32,
    bfloat16_sums: bool = False,
) -> None:
    """Fill ``out`` as :func:`capgate.kernels.mx_mqa_logits` says; the arguments have been checked.

    accumulate : the type of products and sums, ``torch.float64`` to judge the other variants
    bfloat16_sums : sum over the heads as DeepGEMM's kernels for sm100 do: see :func:`..common.reference.score_in_bfloat16`

    Nothing is read back from the device, so that the call can be captured in a GPU graph. Memory beyond the operands is
    bounded by a few times SCORE_BYTES.
    """
    q, q_scale, k, k_scale, weights, starts, ends = inputs
    of_heads, octets = score_in_bfloat16 if bfloat16_sums else score, k.view(torch.uint8)  # indexing bytes works for every type

    def scorer(rows: slice) -> Logits:
        query, weight = values_of(q[rows], q_scale[rows]).to(accumulate), weights[rows].to(accumulate)

        def logits(near: torch.Tensor) -> torch.Tensor:
            keys = values_of(octets[near].view(k.dtype), k_scale[near]).to(accumulate)
            # Compressed, every row has keys of its own.
            return of_heads(query[:, None], weight[:, None], keys)[:, 0] if compressed else of_heads(query, weight, keys)

        return logits

    options = {"clean_logits": clean_logits, "compressed": compressed, "accumulate": accumulate}
    fill_windows(out, starts, ends, k.shape[0], max(q.shape[1], dim_of(q)), scorer, **options)
