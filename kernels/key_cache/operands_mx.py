"""What the functions of the key cache take where keys are in an MX format: a table for each format and kind of layout."""

from typing import Annotated, Any, NamedTuple

import torch

from ..common.cache import TABLE
from ..common.key_formats import layouts_of
from ..common.mx_cache import MX_FORMATS, cache_rows
from ..common.operands import Operand, Operands
from .operands import Between, Gathered, Written

_CACHE = Operand((("num_blocks", "block", 1, "W"), ("num_blocks", 1, "chunks", "block", "bytes")), (torch.uint8,))
_SCALES = Operand((("num_blocks", 1, "chunks", "block"),), (torch.uint8,))
_KEYS = Operand((("T", "D"),), (torch.float32, torch.bfloat16, torch.float16))
_SLOTS = Operand((("T",),), (torch.int32, torch.int64))
_INTEGERS = Operand((("B",),), (torch.int32,))


class MxWritten(NamedTuple):
    """The tensors of quantize_keys_to_cache."""

    k: Annotated[torch.Tensor, _KEYS]
    kv_cache: Annotated[torch.Tensor, _CACHE._replace(written=True)]
    slot_mapping: Annotated[torch.Tensor, _SLOTS]
    kv_scale: Annotated[torch.Tensor | None, _SCALES._replace(written=True)] = None


class MxGathered(NamedTuple):
    """The tensors of gather_keys, but for its results."""

    kv_cache: Annotated[torch.Tensor, _CACHE]
    block_table: Annotated[torch.Tensor, TABLE]
    lens: Annotated[torch.Tensor, _INTEGERS]
    kv_scale: Annotated[torch.Tensor | None, _SCALES] = None


class MxBetween(NamedTuple):
    """The tensors of gather_keys_between, but for what it writes."""

    kv_cache: Annotated[torch.Tensor, _CACHE]
    block_table: Annotated[torch.Tensor, TABLE]
    cu_lens: Annotated[torch.Tensor, Operand((("B + 1",),), (torch.int32,))]
    kv_scale: Annotated[torch.Tensor | None, _SCALES] = None


# As the operators take them, whatever the format. Calls are held against the narrower ones of TABLES.
MX_WRITTEN, MX_GATHERED, MX_BETWEEN = Operands(MxWritten, first="kv_cache"), Operands(MxGathered), Operands(MxBetween)


def _table(function: Any, key_format: str, layout: str) -> Operands[Any]:
    """The operands of a function for keys of one format in one layout: those of fp8 keys, but for the cache and its scales."""
    rows, caches = dict(Operands(function).rows), cache_rows(key_format, layout)
    rows |= {name: row._replace(written=function is Written) for name, row in caches.items()}
    fields = [(name, Annotated[torch.Tensor, row]) for name, row in rows.items()]
    inputs: Any = NamedTuple(function.__name__, fields)  # type: ignore[misc]
    return Operands(inputs, first="kv_cache")


# By function, format and layout. Ready when asked for: torch.compile follows no cache.
TABLES = {
    (function, key_format, layout): _table(function, key_format, layout)
    for function in (Written, Gathered, Between)
    for key_format in MX_FORMATS
    for layout in layouts_of(key_format)
}
