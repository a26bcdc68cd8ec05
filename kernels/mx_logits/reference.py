"""mx_mqa_logits in plain torch: the variant for machines without a GPU, and the judge of the others."""

import torch

from ..common import mx
from ..common.mx_operands import FORMAT_OF, dim_of
from ..common.reference import KEY_TILE, SCORE_BYTES, score, score_in_bfloat16
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
    rows, heads, _ = q.shape
    (num_keys, columns), dim = (k.shape[0], out.shape[1]), dim_of(q)
    of_heads = score_in_bfloat16 if bfloat16_sums else score
    key_tile = min(KEY_TILE, columns)
    row_tile = max(1, SCORE_BYTES // (max(heads, dim) * key_tile * accumulate.itemsize))
    for row in range(0, rows, row_tile):
        block = slice(row, row + row_tile)
        query, weight = _values(q[block], q_scale[block]).to(accumulate), weights[block].to(accumulate)
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
                keys = _values(k, k_scale, near).to(accumulate)
                # Compressed, every row has keys of its own.
                logits = of_heads(query[:, None], weight[:, None], keys)[:, 0] if compressed else of_heads(query, weight, keys)
                cells.copy_(torch.where(inside, logits.to(out.dtype), outside))


def _values(octets: torch.Tensor, scales: torch.Tensor, places: torch.Tensor | None = None) -> torch.Tensor:
    """float32 values of queries or keys; of those at some places alone."""
    key_format, dim = FORMAT_OF[octets.dtype], dim_of(octets)
    octets = octets.view(torch.uint8)
    if places is not None:
        octets, scales = octets[places], scales[places]
    return mx.dequantize(octets, mx.unpacked(scales, dim), key_format)
