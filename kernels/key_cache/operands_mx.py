"""What the functions of the key cache take where keys are in an MX format: a table for each format and kind of layout."""

from functools import cache
from typing import Annotated, Any, NamedTuple

import torch

from ..common.cache import TABLE
from ..common.mx_cache import cache_rows
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


# As the operators take them, whatever the format. Calls are held against the narrower tables of :func:`table`.
MX_WRITTEN, MX_GATHERED, MX_BETWEEN = Operands(MxWritten, first="kv_cache"), Operands(MxGathered), Operands(MxBetween)


@cache
def table(function: type[Written] | type[Gathered] | type[Between], key_format: str, layout: str) -> Operands[Any]:
    """The operands of a function for keys of one format in one layout: those of fp8 keys, but for the cache and its scales."""
    rows = {name: row for name, row in Operands(function).rows.items() if name != "kv_cache"}
    caches = cache_rows(key_format, layout)
    written = {name: row._replace(written=function is Written) for name, row in caches.items()}
    names = [name for name in function._fields if name != "kv_scale"] + [name for name in caches if name == "kv_scale"]
    fields = [(name, Annotated[torch.Tensor, (rows | written)[name]]) for name in names]
    inputs: Any = NamedTuple(function.__name__, fields)  # type: ignore[misc]
    return Operands(inputs, first="kv_cache")
