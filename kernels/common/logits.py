"""What the logits operations share: sizes and formats of queries, the output, and how operands may lie in memory."""

import torch

from .operands import Limit, among
from .rules import DIMS, E4M3FN, E4M3FNUZ, MAX_HEADS, MIN_HEADS

FP8 = {torch.float8_e4m3fn: E4M3FN, torch.float8_e4m3fnuz: E4M3FNUZ}
QUERY_SIZES = (Limit("H", MIN_HEADS, MAX_HEADS), among("D", DIMS))

# Rows of a new output start on 1024-byte boundaries (as DeepGEMM's and, at 256 elements, aiter's do), so stride(0) >= N.
ROW_ALIGNMENT = 256


def empty_logits(shape: tuple[int, int], device: torch.device) -> torch.Tensor:
    """A new output, its rows aligned."""
    rows, columns = shape
    row_stride = (columns + ROW_ALIGNMENT - 1) // ROW_ALIGNMENT * ROW_ALIGNMENT
    # The last row has its padding as well, so that every row can be read in whole vectors.
    return torch.empty((rows, row_stride), dtype=torch.float32, device=device)[:, :columns]


def mappable(tensor: torch.Tensor) -> bool:
    """Whether a tensor map of NVIDIA's copy engine can describe ``tensor``: aligned lines of adjacent elements."""
    *outer, (size, step) = zip(tensor.shape, tensor.stride(), strict=True)
    if tensor.numel() == 0 or tensor.data_ptr() % 16 or (size > 1 and step != 1):
        return False
    return all(size == 1 or (step > 0 and step * tensor.itemsize % 16 == 0) for size, step in outer)
