"""What mx_paged_mqa_logits takes."""

from operator import mul
from typing import Annotated, NamedTuple

import torch

from ..common.cache import LENGTHS, NEXT, TABLE
from ..common.key_formats import BLOCK_SIZES, BLOCK_WORDS
from ..common.logits import FLOATS
from ..common.mx_cache import WIDTHS_OF_ALL, cache_rows
from ..common.mx_operands import SCALES, VALUES, among_bytes
from ..common.operands import Derived, Limit, Operand, Operands, among
from ..common.rules import MAX_HEADS, MIN_HEADS

QUERIES = Operand(
    (("B", "next_n", "H", "Dq"),),
    VALUES,
    (NEXT, Limit("H", MIN_HEADS, MAX_HEADS), among_bytes("Dq")),
    (Derived("B * next_n", mul, ("B", "next_n")),),
)
CACHE = Operand(
    (("num_blocks", "block", 1, "W"),), (torch.uint8,), (among("block", BLOCK_SIZES, BLOCK_WORDS), among("W", WIDTHS_OF_ALL))
)
WORKERS = "num_workers + 1"


_SCALES = Operand((("B", "next_n", "H"),), SCALES)
_WEIGHTS = Operand((("B * next_n", "H"),), tuple(FLOATS))
_SCHEDULE = Operand(((WORKERS, 2),), (torch.int32,), (Limit(WORKERS, 2),))
_APART = cache_rows("mxfp4", "flydsl")


class Whole(NamedTuple):
    """The tensors of a call, but for the output, whose blocks hold the scales of their keys."""

    q: Annotated[torch.Tensor, QUERIES]
    q_scale: Annotated[torch.Tensor, _SCALES]
    kv_cache: Annotated[torch.Tensor, CACHE]
    weights: Annotated[torch.Tensor, _WEIGHTS]
    context_lens: Annotated[torch.Tensor, LENGTHS]
    block_table: Annotated[torch.Tensor, TABLE]
    schedule: Annotated[torch.Tensor | None, _SCHEDULE] = None


class Apart(NamedTuple):
    """The same with the scales of keys in a tensor of their own."""

    q: Annotated[torch.Tensor, QUERIES]
    q_scale: Annotated[torch.Tensor, _SCALES]
    kv_cache: Annotated[torch.Tensor, _APART["kv_cache"]]
    weights: Annotated[torch.Tensor, _WEIGHTS]
    context_lens: Annotated[torch.Tensor, LENGTHS]
    block_table: Annotated[torch.Tensor, TABLE]
    schedule: Annotated[torch.Tensor | None, _SCHEDULE]
    kv_scale: Annotated[torch.Tensor, _APART["kv_scale"]]


class Inputs(NamedTuple):
    """Either, as operators and variants take them."""

    q: Annotated[torch.Tensor, QUERIES]
    q_scale: Annotated[torch.Tensor, _SCALES]
    kv_cache: Annotated[torch.Tensor, CACHE._replace(shapes=CACHE.shapes + _APART["kv_cache"].shapes)]
    weights: Annotated[torch.Tensor, _WEIGHTS]
    context_lens: Annotated[torch.Tensor, LENGTHS]
    block_table: Annotated[torch.Tensor, TABLE]
    schedule: Annotated[torch.Tensor | None, _SCHEDULE] = None
    kv_scale: Annotated[torch.Tensor | None, _APART["kv_scale"]] = None


class Shaped(NamedTuple):
    """What says how many workers a schedule should have."""

    q: Annotated[torch.Tensor, QUERIES]
    kv_cache: Annotated[torch.Tensor, CACHE]


OPERANDS, APART, SHAPED = Operands(Whole), Operands(Apart), Operands(Shaped)
OPERATOR = Operands(Inputs)
