"""A Gluon kernel that the emulator was not written for: asynchronous copies to LDS, in flight behind the arithmetic."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.amd.cdna4 import async_copy


@gluon.jit
def running_sum(x, out, tiles, ROWS: gl.constexpr, COLUMNS: gl.constexpr):
    """out[ROWS, COLUMNS] = the sum of the tiles of x[tiles, ROWS, COLUMNS]; the next tile's copy is in flight meanwhile."""
    layout: gl.constexpr = gl.BlockedLayout([1, 4], [64 * 4 // COLUMNS, COLUMNS // 4], [gl.num_warps(), 1], [1, 0])
    shared: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    row = gl.arange(0, ROWS, gl.SliceLayout(1, layout))
    column = gl.arange(0, COLUMNS, gl.SliceLayout(0, layout))
    offset = row[:, None] * COLUMNS + column[None, :]
    buffers = gl.allocate_shared_memory(gl.float32, [2, ROWS, COLUMNS], shared)
    async_copy.buffer_load_to_shared(buffers.index(0), x, offset)
    async_copy.commit_group()
    total = gl.full([ROWS, COLUMNS], 0.0, gl.float32, layout)
    for tile in range(tiles):
        following = gl.minimum(tile + 1, tiles - 1)
        async_copy.buffer_load_to_shared(buffers.index((tile + 1) % 2), x, offset + following * ROWS * COLUMNS)
        async_copy.commit_group()
        async_copy.wait_group(1)
        total += async_copy.load_shared_relaxed(buffers.index(tile % 2), layout)
    async_copy.wait_group(0)
    gl.store(out + offset, total)
