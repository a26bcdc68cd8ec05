"""What the functions of the key cache take."""

from typing import Annotated, NamedTuple

import torch

from ..common.cache import CACHE, LENGTHS, SCALE_BYTES, TABLE, with_scale
from ..common.operands import Derived, Operand, Operands, among
from ..common.rules import DIMS

_ALONE = CACHE._replace(  # without queries, which would say what D is
    limits=(*CACHE.limits, among("D + 4", tuple(map(with_scale, DIMS)))),
    derived=(Derived("D", lambda width: width - SCALE_BYTES, ("D + 4",)),),
)


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


class Unshuffled(NamedTuple):
    """The tensors of unshuffle_keys, but for the copy."""

    kv_cache: Annotated[torch.Tensor, CACHE]
    block_table: Annotated[torch.Tensor, TABLE]
    context_lens: Annotated[torch.Tensor, LENGTHS]


WRITTEN, GATHERED, UNSHUFFLED = Operands(Written, first="kv_cache"), Operands(Gathered), Operands(Unshuffled)
