"""What the quantisers of MX formats take."""

from typing import Annotated, Any, NamedTuple

import torch

from ..common.key_formats import FORMATS
from ..common.operands import Limit, Operand, Operands, among
from ..common.rules import DIMS

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
WEIGHTS = (*FLOATS, torch.float64)
_QUERIES = Operand((("S", "H", "D"), ("B", "next_n", "H", "D")), FLOATS, (Limit("H", 1), among("D", DIMS)))
_FP4 = (among("D", FORMATS["mxfp4"].dims),)


class Inputs(NamedTuple):
    """The tensor of operator ``capgate::quantize_mx``: keys, or the heads of queries side by side."""

    values: Annotated[torch.Tensor, Operand((("rows", "D"),), FLOATS, (among("D", DIMS),))]


class _Mxfp8Keys(NamedTuple):
    k: Annotated[torch.Tensor, Operand((("N", "D"),), FLOATS, (among("D", DIMS),))]


class _Mxfp4Keys(NamedTuple):
    k: Annotated[torch.Tensor, Operand((("N", "D"),), FLOATS, _FP4)]


class _Mxfp8Prefill(NamedTuple):
    q: Annotated[torch.Tensor, _QUERIES]
    weights: Annotated[torch.Tensor, Operand((("S", "H"),), WEIGHTS)]


class _Mxfp8Decode(NamedTuple):
    q: Annotated[torch.Tensor, _QUERIES]
    weights: Annotated[torch.Tensor, Operand((("B", "next_n", "H"),), WEIGHTS)]


class _Mxfp4Prefill(NamedTuple):
    q: Annotated[torch.Tensor, _QUERIES._replace(limits=(Limit("H", 1), *_FP4))]
    weights: Annotated[torch.Tensor, Operand((("S", "H"),), WEIGHTS)]


class _Mxfp4Decode(NamedTuple):
    q: Annotated[torch.Tensor, _QUERIES._replace(limits=(Limit("H", 1), *_FP4))]
    weights: Annotated[torch.Tensor, Operand((("B", "next_n", "H"),), WEIGHTS)]


OPERANDS = Operands(Inputs)
KEYS: dict[str, Operands[Any]] = {"mxfp8": Operands(_Mxfp8Keys), "mxfp4": Operands(_Mxfp4Keys)}
PREFILL: dict[str, Operands[Any]] = {"mxfp8": Operands(_Mxfp8Prefill), "mxfp4": Operands(_Mxfp4Prefill)}
DECODE: dict[str, Operands[Any]] = {"mxfp8": Operands(_Mxfp8Decode), "mxfp4": Operands(_Mxfp4Decode)}
