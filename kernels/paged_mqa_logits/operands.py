"""What fp8_paged_mqa_logits takes."""

from operator import mul
from typing import Annotated, NamedTuple

import torch

from ..common.cache import CACHE, LENGTHS, NEXT, TABLE, with_scale
from ..common.logits import FLOATS, FP8, QUERY_SIZES
from ..common.operands import Derived, Limit, Operand, Operands

QUERIES = Operand(
    (("B", "next_n", "H", "D"),),
    tuple(FP8),
    (NEXT, *QUERY_SIZES),
    (Derived("B * next_n", mul, ("B", "next_n")), Derived("D + 4", with_scale, ("D",))),
)
WORKERS = "num_workers + 1"


class Inputs(NamedTuple):
    """The tensors of a call, but for the output."""

    q: Annotated[torch.Tensor, QUERIES]
    kv_cache: Annotated[torch.Tensor, CACHE]
    weights: Annotated[torch.Tensor, Operand((("B * next_n", "H"),), tuple(FLOATS))]
    context_lens: Annotated[torch.Tensor, LENGTHS]
    block_table: Annotated[torch.Tensor, TABLE]
    schedule: Annotated[torch.Tensor | None, Operand(((WORKERS, 2),), (torch.int32,), (Limit(WORKERS, 2),))] = None


class Shaped(NamedTuple):
    """What says how many workers a schedule should have."""

    q: Annotated[torch.Tensor, QUERIES]
    kv_cache: Annotated[torch.Tensor, CACHE]


OPERANDS, SHAPED = Operands(Inputs), Operands(Shaped)
