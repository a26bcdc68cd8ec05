"""Checks that the functions share: memory that is written and read, and what an error says."""

import re
from typing import Annotated, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capgate.kernels.common.checks import check_apart
from capgate.kernels.common.operands import Limit, Operand, Operands, among

INT, FLOAT = (torch.int32,), (torch.float32,)


class Read(NamedTuple):
    read: torch.Tensor


@st.composite
def views(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Shape, strides and offset of a small view into 400 elements."""
    shape = draw(st.integers(0, 6)), draw(st.integers(0, 6))
    strides = draw(st.integers(0, 24)), draw(st.integers(0, 24))
    return shape, strides, draw(st.integers(0, 400 - 1 - 5 * 24 * 2))


def addresses(view: tuple, itemsize: int) -> set[int]:
    """Every byte of a view of elements of this size."""
    first = (torch.arange(1600 // itemsize) * itemsize).as_strided(*view)
    return set((first[..., None] + torch.arange(itemsize)).flatten().tolist())


@settings(deadline=None, max_examples=300)
@given(views(), views(), st.sampled_from([torch.uint8, torch.int16, torch.float32]))
def test_shared_memory_is_never_overlooked(one: tuple, other: tuple, dtype: torch.dtype) -> None:
    memory = torch.zeros(400, dtype=torch.float32)
    written, read = memory.as_strided(*one), memory.view(dtype).as_strided(*other)
    bytes_written, bytes_read = addresses(one, 4), addresses(other, dtype.itemsize)
    refused = False
    try:
        check_apart("written", written, Read(read))
    except ValueError:
        refused = True
    if not (bytes_written and bytes_read and max(bytes_written) >= min(bytes_read) and max(bytes_read) >= min(bytes_written)):
        assert not refused, "there is memory between them, or none at all"
    elif bytes_written & bytes_read:
        assert refused


class Table(NamedTuple):
    a: Annotated[torch.Tensor, Operand((("S", "H"),), FLOAT, (Limit("S", 2), among("H", (4, 8))))]
    b: Annotated[torch.Tensor, Operand((("H",), ("H", 1)), FLOAT)]
    c: Annotated[torch.Tensor, Operand((("S", "more"),), INT, (Limit("more", 1, 3),))]


TABLE = Operands(Table)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((1, 4), (4,), (1, 1)), "a: got shape (1, 4), needs [S, H] with S 2 or more and H in (4, 8)"),
        (((2, 5), (5,), (2, 1)), "a: got shape (2, 5), needs [S, H] with S 2 or more and H in (4, 8)"),
        (((2, 4), (5,), (2, 1)), "b: got shape (5,), needs [4] or [4, 1] to match a"),
        (((2, 4), (4, 2), (2, 1)), "b: got shape (4, 2), needs [4] or [4, 1] to match a"),
        (((2, 4), (), (2, 1)), "b: got shape (), needs [4] or [4, 1] to match a"),
        (((2, 4), (4, 1), (3, 1)), "c: got shape (3, 1), needs [2, more] to match a with more from 1 to 3"),
        (((2, 4), (4, 1), (2, 4)), "c: got shape (2, 4), needs [2, more] to match a with more from 1 to 3"),
    ],
    ids=str,
)
def test_a_wrong_shape_is_told_what_it_has_to_match(shapes: tuple, words: str) -> None:
    tensors = [torch.zeros(shape, dtype=dtype) for shape, dtype in zip(shapes, (*FLOAT, *FLOAT, *INT), strict=True)]
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        TABLE.check(tensors)


def test_what_is_as_declared_passes() -> None:
    TABLE.check((torch.zeros(2, 4), torch.zeros(4), torch.zeros(2, 3, dtype=torch.int32)))
    TABLE.check((torch.zeros(9, 8), torch.zeros(8, 1), torch.zeros(9, 1, dtype=torch.int32)))
