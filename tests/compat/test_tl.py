"""The classic surface, compiled with no GPU: block pointers cost what pointers cost, and none of Triton's own is needed."""

from typing import Any

import pytest

pytest.importorskip("triton")

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from capgate import compat
from capgate.compat.tl import advance, load_block, make_block_ptr, store_block


@triton.jit
def ours_kernel(source, target, rows, columns, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    block = make_block_ptr(source, (rows, columns), (stride, 1), (tl.program_id(0) * ROWS, 0), (ROWS, COLUMNS), (1, 0))
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for _ in range(0, columns, COLUMNS):
        total += load_block(block, (0,), "zero")
        block = advance(block, (0, COLUMNS))
    store_block(make_block_ptr(target, (rows, COLUMNS), (COLUMNS, 1), (0, 0), (ROWS, COLUMNS), (1, 0)), total, (0,))


@triton.jit
def pointers_kernel(source, target, rows, columns, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, columns, COLUMNS):
        cells = source + row[:, None].to(tl.int64) * stride + (first + column)[None, :]
        total += tl.load(cells, mask=(row < rows)[:, None], other=0)
    kept = tl.arange(0, ROWS)
    tl.store(target + kept[:, None] * COLUMNS + column[None, :], total, mask=(kept < rows)[:, None])


SIGNATURE = {"source": "*fp32", "target": "*fp32", "rows": "i32", "columns": "i32", "stride": "i32"}


def wide(kernel: Any, target: str) -> dict[str, int]:
    """How many loads and stores of 16 bytes the kernel is compiled to."""
    found = compat.capabilities(target).target
    arch = int(found.arch) if found.arch.isdecimal() else found.arch
    aligned = {(place,): [["tt.divisibility", 16]] for place in (0, 1, 3, 4)}
    signature = {**SIGNATURE, "ROWS": "constexpr", "COLUMNS": "constexpr"}
    source = ASTSource(kernel, signature, {"ROWS": 16, "COLUMNS": 64}, aligned)
    gpu = GPUTarget(found.backend, arch, 32 if found.backend == "cuda" else 64)
    compiled = triton.compile(source, target=gpu, options={"enable_fp_fusion": True})
    text = compiled.asm["ptx" if found.backend == "cuda" else "amdgcn"]
    words = {"cuda": ("ld.global.v4", "st.global.v4"), "hip": ("load_dwordx4", "store_dwordx4")}[found.backend]
    return {word: text.count(word) for word in words}


@pytest.mark.parametrize("target", ["cuda:90", "hip:gfx950", "hip:gfx942"])
def test_blocks_are_read_and_written_sixteen_bytes_at_a_time(target: str) -> None:
    ours = wide(ours_kernel, target)
    assert min(ours.values()) > 0
    assert ours == wide(pointers_kernel, target)
