"""What the functions of the key cache take."""

from typing import Annotated, NamedTuple

import torch

from ..common.cache import CACHE, TABLE, with_scale
from ..common.key_formats import SCALE_BYTES
from ..common.operands import Derived, Operand, Operands, among
from ..common.rules import DIMS

_ALONE = CACHE._replace(  # without queries, which would say what D is
    limits=(*CACHE.limits, among("D + 4", tuple(map(with_scale, DIMS)))),
    derived=(Derived("D", lambda width: width - SCALE_BYTES, ("D + 4",)),),
)

_TABLE_OF_ENDS = TABLE._replace(derived=(Derived("B + 1", lambda requests: requests + 1, ("B",)),))


class Written(NamedTuple):
    """The tensors of quantize_keys_to_cache."""

    k: Annotated[torch.Tensor, Operand((("T", "D"),), (torch.float32, torch.bfloat16, torch.float16))]
    kv_cache: Annotated[torch.Tensor, _ALONE._replace(written=True)]
    slot_mapping: Annotated[torch.Tensor, Operand((("T",),), (torch.int32, torch.int64))]


class Gathered(NamedTuple):
    """The tensors of gather_keys, but for its results."""

    kv_cache: Annotated[torch.Tensor, _ALONE]
    block_table: Annotated[torch.Tensor, TABLE]
    lens: Annotated[torch.Tensor, Operand((("B",),), (torch.int32,))]


class Between(NamedTuple):
    """The tensors of gather_keys_between, but for what it writes."""

    kv_cache: Annotated[torch.Tensor, _ALONE]
    block_table: Annotated[torch.Tensor, _TABLE_OF_ENDS]
    cu_lens: Annotated[torch.Tensor, Operand((("B + 1",),), (torch.int32,))]


WRITTEN, GATHERED, BETWEEN = Operands(Written, first="kv_cache"), Operands(Gathered), Operands(Between)
