"""Device functions that classic Triton and Gluon need one each of are the same function: by their names, their parameters and
the cells that they write.

Both are compiled for gfx950 and executed in the emulator, so that one reference in plain Python judges both.
"""

# ruff: noqa: N803 - Triton's constants are written in capitals

from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from capgate.compat import capabilities
from capgate.kernels.common.device import classic
from emulator import run
from support.emulation import bound, compile_kernel

pytestmark = pytest.mark.skipif(not capabilities("hip:gfx950").gluon_cdna4, reason="Gluon's side needs Triton 3.6")

ROWS, COLUMNS, STRIP, WARPS = 4, 320, 64, 2  # of the output there are 3 rows
WRITTEN, LEFT = float("-inf"), 7.0
LANGUAGES = ("classic", "gluon")
OF_GLUON = {
    "LAYOUT",
    "first",
    "KEYS",
    "PACKED_RELU",
    "query_scale",
    "scales",
    "first_scale",
    "Q_KIND",
    "K_KIND",
}  # layouts, which of the products in LDS are meant, how relu is taken, and scales of MX formats


def functions(module: Any) -> dict[str, list[str]]:
    """The names of a module's own jit functions, in the order of the file, and of their parameters."""
    found = [value for value in vars(module).values() if isinstance(value, triton.JITFunction)]
    own = sorted((one for one in found if one.__module__ == module.__name__), key=lambda one: one.starting_line_number)
    return {one.__name__: list(one.arg_names) for one in own}


def test_names_and_parameters() -> None:
    from capgate.kernels.common.device import cdna4

    ours, theirs = functions(classic), functions(cdna4)
    shared = [name for name in ours if name in theirs]
    assert shared == [name for name in theirs if name in ours], "the same order"
    assert set(shared) >= {"relu", "score", "fill", "fill_strip", "fill_edge", "fill_outside"}
    for name in shared:
        same = [parameter for parameter in ours[name] if parameter != "MAXIMUM"]  # gfx950 has the instruction
        assert same == [parameter for parameter in theirs[name] if parameter in same], name
        assert set(theirs[name]) - set(same) <= OF_GLUON, name


@triton.jit
def classic_fills(
    out, base, width, strip, first, last, num_keys, num_rows, stride, begins, ends,
    ROWS: tl.constexpr, STRIP: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    row = tl.arange(0, ROWS)
    offset = row.to(tl.int64) * stride
    wanted = row < num_rows
    if KIND == "fill":
        classic.fill(out, base, width, offset, wanted, 1, STRIP, tl.int32)
    elif KIND == "fill_strip":
        classic.fill_strip(out, strip, first, last, offset, wanted, 1, STRIP, tl.int32)
    else:
        begin, end = tl.load(begins + row), tl.load(ends + row)
        classic.fill_edge(out, base, begin, end, num_keys, offset, wanted, 1, STRIP, tl.int32)


def written(language: str, kind: str, **numbers: int) -> set[tuple[int, int]]:
    """The cells that a function writes, of an output of 3 rows and 320 columns."""
    out = torch.full((ROWS, COLUMNS), LEFT)
    begins, ends = (torch.tensor(each, dtype=torch.int32) for each in ((70, 0, 128, 0), (100, 300, 90, 320)))
    scalars = [numbers.get(name, 0) for name in ("base", "width", "strip", "first", "last", "num_keys")]
    arguments = (out, *scalars, 3, COLUMNS, begins, ends)
    constants = {"ROWS": ROWS, "STRIP": STRIP, "KIND": kind}
    if language == "classic":
        compiled = compile_kernel(classic_fills, arguments, constants, num_warps=WARPS)
    else:
        from capgate.compat.gluon import GluonASTSource
        from support.twin_gluon_kernel import fills

        compiled = compile_kernel(fills, arguments, constants, GluonASTSource, num_warps=WARPS)
    run(compiled, (1,), bound(compiled, arguments))
    assert set(out.unique().tolist()) <= {WRITTEN, LEFT}
    return {(row, column) for row, column in (out == WRITTEN).nonzero().tolist()}


def cells(columns: range) -> set[tuple[int, int]]:
    return {(row, column) for row in range(3) for column in columns}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(("base", "width"), [(0, 64), (5, 33), (250, 17), (40, 0)])
def test_fill(language: str, base: int, width: int) -> None:
    assert written(language, "fill", base=base, width=width) == cells(range(base, base + width))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(("strip", "begins_at"), [(0, 0), (1, 64), (2, 192), (3, 256)])
def test_fill_strip(language: str, strip: int, begins_at: int) -> None:
    """Two whole strips of columns [0, 140), then those from 192 on."""
    found = written(language, "fill_strip", strip=strip, first=140, last=192)
    assert found == cells(range(begins_at, begins_at + STRIP))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(("base", "num_keys"), [(64, 320), (64, 101), (256, 310), (128, 320)])
def test_fill_edge(language: str, base: int, num_keys: int) -> None:
    """Of a tile's cells those outside each row's window, the third row's being empty; nothing past the last key or row."""
    windows = ((70, 100), (0, 300), (128, 90))
    expected = {
        (row, column)
        for row, (begin, end) in enumerate(windows)
        for column in range(base, min(base + STRIP, num_keys))
        if not begin <= column < end
    }
    assert written(language, "fill_edge", base=base, num_keys=num_keys) == expected
