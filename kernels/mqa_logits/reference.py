"""fp8_mqa_logits in plain torch: the variant for machines without a GPU, and the judge of the others."""

import torch

from ..common.reference import KEY_TILE, SCORE_BYTES, score
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
    rows, heads, dim = q.shape
    num_keys, columns = k.shape[0], out.shape[1]
    key_tile = min(KEY_TILE, columns)
    row_tile = max(1, SCORE_BYTES // (max(heads, dim) * key_tile * accumulate.itemsize))
    for row in range(0, rows, row_tile):
        block = slice(row, row + row_tile)
        query, weight = q[block].to(accumulate), weights[block].to(accumulate)
        start, end = starts[block, None].long(), ends[block, None].long()
        for column in range(0, columns, key_tile):
            cells = out[block, column : column + key_tile]
            key = torch.arange(column, column + cells.shape[1], device=q.device)
            if compressed:
                key = key + start
            inside = (key >= start.clamp(min=0)) & (key < end.clamp(max=num_keys))
            outside = torch.full_like(cells, float("-inf")) if clean_logits else cells
            if num_keys == 0 or (q.device.type == "cpu" and not inside.any()):  # a look that would stop a GPU's queue
                cells.copy_(outside)
            else:
                near = key.clamp(0, num_keys - 1)
                keys = k.view(torch.uint8)[near].view(k.dtype).to(accumulate)  # indexing bytes works for every fp8 type
                if compressed:  # every row has keys of its own
                    logits = score(query[:, None], weight[:, None], keys)[:, 0] * k_scale[near]
                else:
                    logits = score(query, weight, keys) * k_scale[near]
                cells.copy_(torch.where(inside, logits.to(out.dtype), outside))
