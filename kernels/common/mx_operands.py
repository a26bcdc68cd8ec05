"""Queries and keys in MX formats as the logits functions take them: the dtype says the format."""

import torch

from . import mx
from .checks import either
from .key_formats import FORMATS
from .operands import Limit, among
from .rules import DIMS

FORMAT_OF = {torch.float8_e4m3fn: "mxfp8", torch.uint8: "mxfp4"}  # two values of mxfp4 in a byte
VALUES = tuple(FORMAT_OF)
SCALES = (torch.int32,)  # four UE8M0 bytes, the first lowest


def among_bytes(name: str) -> Limit:
    """The limit of the last dimension of values: D, or D / 2 in mxfp4."""
    return among(name, DIMS)


def dim_of(values: torch.Tensor) -> int:
    """D of values in an MX format."""
    size: int = values.shape[-1]
    return size * 8 // FORMATS[FORMAT_OF[values.dtype]].element_bits


def check_dim(name: str, values: torch.Tensor) -> int:
    """D of values that are otherwise as their table says; ValueError for one that their format lacks."""
    key_format, dim = FORMAT_OF[values.dtype], dim_of(values)
    dims = FORMATS[key_format].dims
    if dim not in dims:
        raise ValueError(f"{name}: got D {dim} in {key_format} ({values.dtype}), needs {either(dims)}")
    return dim


def check_dims(q: torch.Tensor, k: torch.Tensor) -> None:
    """Raise ValueError for queries and keys of dims that a format lacks, or not of the same."""
    wanted, found = check_dim("q", q), check_dim("k", k)
    if found != wanted:
        raise ValueError(f"k: got D {found} in {FORMAT_OF[k.dtype]} ({k.dtype}), needs {wanted}, as q has")


def values_of(octets: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """float32 values of queries or keys [..., D or D / 2] and of their scales' words [...]."""
    return mx.dequantize(octets.view(torch.uint8), mx.unpacked(words, dim_of(octets)), FORMAT_OF[octets.dtype])
