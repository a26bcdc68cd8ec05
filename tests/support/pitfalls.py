"""Small kernels that some builds miscompile without a word: see compat.gluon, which says how kernels stay clear of that.

tests/compat/offline/test_pitfalls.py reads what becomes of them without a GPU, and tests/gpu/test_pitfalls.py runs them.
"""

import triton
import triton.language as tl

from capgate import compat


@triton.jit
def carried_bounds(firsts, lasts, out, count, WIDTH: tl.constexpr):
    """out[i, j] = 1 for firsts[i] <= j < lasts[i]; the bounds are loaded one row ahead. Reads count + 1 bounds of each kind."""
    first = tl.load(firsts)
    last = tl.load(lasts)
    for row in range(count):
        for column in range(first, last):
            tl.store(out + row * WIDTH + column, 1)
        first = tl.load(firsts + row + 1)
        last = tl.load(lasts + row + 1)


@triton.jit
def sum_of_products(keys, queries, out, count, TILE: tl.constexpr):
    """out = the sum over i < count of keys[i] @ queries[i]; both [count, TILE, TILE] float16, out [TILE, TILE] float32."""
    cells = tl.arange(0, TILE)[:, None] * TILE + tl.arange(0, TILE)[None, :]
    total = tl.zeros([TILE, TILE], tl.float32)
    for item in range(count):
        key = tl.load(keys + item * TILE * TILE + cells)
        query = tl.load(queries + item * TILE * TILE + cells)
        total = tl.dot(key, query, total)
    tl.store(out + cells, total)


@triton.jit
def store_tile(out, stride, TILE: tl.constexpr):
    """out[row, column] = 1 for a tile of rows that lie stride apart; float32."""
    row = (tl.program_id(0) * TILE + tl.arange(0, TILE)).to(tl.int64)
    tl.store(out + row[:, None] * stride + tl.arange(0, TILE)[None, :], 1.0)


@triton.jit
def wide_attention(q, k, v, out, count, scale, ROWS: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, MORE: tl.constexpr):
    """Causal attention of ROWS queries to count keys of DIM + MORE dims, and values of DIM; all bfloat16."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    dim = tl.arange(0, DIM)
    more = DIM + tl.arange(0, MORE)
    query = tl.load(q + row[:, None] * (DIM + MORE) + dim[None, :])
    query_more = tl.load(q + row[:, None] * (DIM + MORE) + more[None, :])
    result = tl.zeros([ROWS, DIM], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    most = tl.full([ROWS], -1e30, tl.float32)
    for first in range(0, count, KEYS):
        column = first + tl.arange(0, KEYS)
        there = column < count
        key = tl.load(k + column[None, :] * (DIM + MORE) + dim[:, None], mask=there[None, :], other=0.0)
        score = tl.dot(query, key)
        key_more = tl.load(k + column[None, :] * (DIM + MORE) + more[:, None], mask=there[None, :], other=0.0)
        score += tl.dot(query_more, key_more)
        score = tl.where(there[None, :] & (row[:, None] >= column[None, :]), score * scale, -1e30)
        higher = tl.maximum(tl.max(score, 1), most)
        weight = tl.exp(score - higher[:, None])
        kept = tl.exp(most - higher)
        total = total * kept + tl.sum(weight, 1)
        value = tl.load(v + column[:, None] * DIM + dim[None, :], mask=there[:, None], other=0.0)
        result = result * kept[:, None]
        result += tl.dot(weight.to(tl.bfloat16), value)
        most = higher
    tl.store(out + row[:, None] * DIM + dim[None, :], result / total[:, None])


if compat.capabilities().gluon:
    from capgate.compat.gluon import gl, gluon, hopper, mbarrier

    @gluon.jit
    def gluon_carried_bounds(firsts, lasts, out, count, WIDTH: gl.constexpr):
        """As carried_bounds."""
        first = gl.load(firsts)
        last = gl.load(lasts)
        for row in range(count):
            for column in range(first, last):
                gl.store(out + row * WIDTH + column, 1)
            first = gl.load(firsts + row + 1)
            last = gl.load(lasts + row + 1)

    @gluon.jit
    def product_after_loop(keys, queries, out, counts, items, TILES: gl.constexpr, ITEMS: gl.constexpr, DIM: gl.constexpr):
        """out[i, t] = keys[t] @ queries[i].T for t < counts[i], the last of them behind the loop of the others.

        keys [TILES, 64, DIM] and queries [ITEMS, 64, DIM] fp8, out [ITEMS, TILES, 64, 64] float32.
        """
        ROWS: gl.constexpr = gl.BlockedLayout([1, 16], [4, 8], [4, 1], [1, 0])
        MMA: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 64, 32])
        BYTES: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=DIM, element_bitwidth=8, rank=2)
        cells = gl.arange(0, 64, gl.SliceLayout(1, ROWS))[:, None] * DIM + gl.arange(0, DIM, gl.SliceLayout(0, ROWS))[None, :]
        key = gl.allocate_shared_memory(gl.float8e4nv, [TILES, 64, DIM], BYTES)
        query = gl.allocate_shared_memory(gl.float8e4nv, [ITEMS, 64, DIM], BYTES)
        for part in gl.static_range(TILES):
            key.index(part).store(gl.load(keys + part * 64 * DIM + cells))
        for part in gl.static_range(ITEMS):
            query.index(part).store(gl.load(queries + part * 64 * DIM + cells))
        hopper.fence_async_shared()
        zeros = gl.full([64, 64], 0.0, gl.float32, MMA)
        places = gl.arange(0, 64, gl.SliceLayout(1, MMA))[:, None] * 64 + gl.arange(0, 64, gl.SliceLayout(0, MMA))[None, :]
        for item in range(items):
            count = gl.load(counts + item)
            columns = query.index(item).permute([1, 0])
            rows = out + item * TILES * 4096 + places
            for tile in range(count - 1):
                product = hopper.warpgroup_mma(key.index(tile), columns, zeros, use_acc=False, is_async=True)
                product = hopper.warpgroup_mma_wait(0, [product])
                gl.store(rows + tile * 4096, product)
            if count > 0:
                product = hopper.warpgroup_mma(key.index(count - 1), columns, zeros, use_acc=False, is_async=True)
                product = hopper.warpgroup_mma_wait(0, [product])
                gl.store(rows + (count - 1) * 4096, product)

    @gluon.jit
    def tile_after_barrier(out, INVALIDATED: gl.constexpr):
        """out[i] = i for 512 cells, by way of a tile in shared memory that is allocated behind an mbarrier that nobody uses."""
        LINE: gl.constexpr = gl.BlockedLayout([4], [32], [4], [0])
        unused = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
        mbarrier.init(unused, count=2)
        if INVALIDATED:
            mbarrier.invalidate(unused)
        cells = gl.arange(0, 512, LINE)
        tile = gl.allocate_shared_memory(gl.int32, [512], gl.SwizzledSharedLayout(1, 1, 1, [0]), cells)
        gl.store(out + cells, tile.load(LINE))
