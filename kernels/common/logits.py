"""What the logits operations share: sizes and formats of queries, the output, and how operands may lie in memory."""

import torch

from .operands import Limit, among
from .rules import BFLOAT16, DIMS, E4M3FN, E4M3FNUZ, FLOAT32, MAX_HEADS, MIN_HEADS

FP8 = {torch.float8_e4m3fn: E4M3FN, torch.float8_e4m3fnuz: E4M3FNUZ}
FLOATS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}  # of weights and logits; sums are float32
LOGITS = tuple(FLOATS)  # what an output may be, and first what it is by default
QUERY_SIZES = (Limit("H", MIN_HEADS, MAX_HEADS), among("D", DIMS))

# Rows of a new output start on 1024-byte boundaries (as DeepGEMM's and, at 256 elements, aiter's do), so stride(0) >= N.
ROW_BYTES = 1024
ROW_ALIGNMENT = ROW_BYTES // 4  # in float32 elements


def empty_logits(shape: tuple[int, int], device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A new output, its rows aligned."""
    rows, columns = shape
    alignment = ROW_BYTES // dtype.itemsize
    row_stride = (columns + alignment - 1) // alignment * alignment
    # The last row has its padding as well, so that every row can be read in whole vectors.
    return torch.empty((rows, row_stride), dtype=dtype, device=device)[:, :columns]


def mappable(tensor: torch.Tensor) -> bool:
    """Whether a tensor map of NVIDIA's copy engine can describe ``tensor``: aligned lines of adjacent elements."""
    *outer, (size, step) = zip(tensor.shape, tensor.stride(), strict=True)
    if tensor.numel() == 0 or tensor.data_ptr() % 16 or (size > 1 and step != 1):
        return False
    return all(size == 1 or (step > 0 and step * tensor.itemsize % 16 == 0) for size, step in outer)
