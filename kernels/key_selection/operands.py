"""What the selections take: logits or what makes them, and what turns a key's number into an index."""

from typing import Annotated, NamedTuple

import torch

from ..common.cache import CACHE, LENGTHS, TABLE
from ..common.operands import Operand, Operands
from ..mqa_logits import operands as dense
from ..paged_mqa_logits import operands as paged

_OF_ROWS = Operand((("S",),), (torch.int32,))
_OF_DRAFTS = Operand((("B * next_n",),), (torch.int32,))
_PAGES = Operand((("R", "P"),), (torch.int32,))


class Inputs(NamedTuple):
    """The tensors of a selection from logits, but for its results."""

    logits: Annotated[torch.Tensor, Operand((("S", "N"),), (torch.float32, torch.bfloat16))]
    starts: Annotated[torch.Tensor | None, _OF_ROWS]
    ends: Annotated[torch.Tensor, _OF_ROWS]
    offsets: Annotated[torch.Tensor | None, _OF_ROWS] = None
    page_table: Annotated[torch.Tensor | None, _PAGES] = None
    requests: Annotated[torch.Tensor | None, _OF_ROWS] = None


class Dense(NamedTuple):
    """Those of select_keys."""

    q: Annotated[torch.Tensor, dense.OPERANDS.rows["q"]]
    k: Annotated[torch.Tensor, dense.OPERANDS.rows["k"]]
    k_scale: Annotated[torch.Tensor, dense.OPERANDS.rows["k_scale"]]
    weights: Annotated[torch.Tensor, dense.OPERANDS.rows["weights"]]
    starts: Annotated[torch.Tensor, _OF_ROWS]
    ends: Annotated[torch.Tensor, _OF_ROWS]
    offsets: Annotated[torch.Tensor | None, _OF_ROWS] = None
    page_table: Annotated[torch.Tensor | None, _PAGES] = None
    requests: Annotated[torch.Tensor | None, _OF_ROWS] = None


class Paged(NamedTuple):
    """Those of select_paged_keys."""

    q: Annotated[torch.Tensor, paged.QUERIES]
    kv_cache: Annotated[torch.Tensor, CACHE]
    weights: Annotated[torch.Tensor, paged.OPERANDS.rows["weights"]]
    context_lens: Annotated[torch.Tensor, LENGTHS]
    block_table: Annotated[torch.Tensor, TABLE]
    offsets: Annotated[torch.Tensor | None, _OF_DRAFTS] = None
    page_table: Annotated[torch.Tensor | None, _PAGES] = None
    requests: Annotated[torch.Tensor | None, _OF_DRAFTS] = None


OPERANDS, DENSE, PAGED = Operands(Inputs), Operands(Dense), Operands(Paged)


def in_quads(source: torch.Tensor) -> bool:
    """Whether the rows can be read four logits at a time: they begin on boundaries of 16 logits, and memory goes on to the next
    multiple of four."""
    rows, columns = source.shape
    if source.stride(1) != 1 or source.stride(0) % 16 or source.data_ptr() % 16:
        return False
    end = source.storage_offset() + (rows - 1) * source.stride(0) + -(-columns // 4) * 4
    return bool(source.itemsize * end <= source.untyped_storage().nbytes())
