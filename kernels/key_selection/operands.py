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


class Arguments:
    """What the kernels are given, in their order; what is None here is no parameter of the compiled kernel.

    tensors : logits, starts, ends, offsets, page table, requests, and where indices and scores are written
    counts : columns, keys, top_k, and the shape of the page table
    strides : of the tensors
    """

    def __init__(self, inputs: Inputs, indices: torch.Tensor, scores: torch.Tensor | None, num_keys: int | None) -> None:
        logits, starts, ends, offsets, page_table, requests = inputs
        columns = logits.shape[1]
        self.tensors = (*inputs, indices, scores)
        self.counts = (
            columns,
            columns if num_keys is None else num_keys,
            indices.shape[1],
            *((None, None) if page_table is None else page_table.shape),
        )
        self.strides = (
            *logits.stride(),
            0 if starts is None else starts.stride(0),
            ends.stride(0),
            None if offsets is None else offsets.stride(0),
            *((None, None) if page_table is None else page_table.stride()),
            None if requests is None else requests.stride(0),
            indices.stride(0),
            0 if scores is None else scores.stride(0),
        )


def in_quads(source: torch.Tensor) -> bool:
    """Whether the rows can be read four logits at a time: they begin on boundaries of 16 logits, and memory goes on to the next
    multiple of four."""
    rows, columns = source.shape
    if source.stride(1) != 1 or source.stride(0) % 16 or source.data_ptr() % 16:
        return False
    end = source.storage_offset() + (rows - 1) * source.stride(0) + -(-columns // 4) * 4
    return bool(source.itemsize * end <= source.untyped_storage().nbytes())
