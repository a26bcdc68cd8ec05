"""Device functions in Gluon for gfx1250 (CDNA5), one source for Triton 3.7.1 to 3.9.0: relu and head sums.

Compiled for gfx1250; what was compiled has run nowhere. What gfx1250 does as CDNA4 is :mod:`.cdna4`'s: relu, fills, loads and
stores, and none of its inline assembly.

A wave has 32 lanes, and scores 32 keys at a time for rows of its own. Of a product a lane has one key of 16, and eight heads of
each 16: lanes n and n + 16 have one half each.
"""

from capgate.compat.gluon import constexpr_function, gfx1250, gl, gluon

from .cdna4 import apart, relu
from .wave_rows import wave_rows_layout

LANES = gl.constexpr(32)  # of a wave


@constexpr_function
def half_layout(ROWS, NUM_WARPS):
    """[ROWS, 2, 16]: each wave has rows of its own, and a lane one half of the heads of a key."""
    lanes = [*([0, 0, 1 << bit] for bit in range(4)), [0, 1, 0]]
    return wave_rows_layout(lanes, [ROWS, 2, 16], NUM_WARPS)


@constexpr_function
def logit_layout(ROWS, NUM_WARPS):
    """[ROWS, 32]: each wave has rows of its own, and a lane one key."""
    lanes = [[0, 1 << bit] for bit in range(5)]
    return wave_rows_layout(lanes, [ROWS, 32], NUM_WARPS)


@constexpr_function
def product_layout(COLUMNS, DIM, NUM_WARPS):
    """[COLUMNS, keys]: each wave has adjacent columns, 16 of a WMMA. Its K is all of DIM."""
    tiles = [[1 << bit, 0] for bit in range(16) if 16 << bit < COLUMNS]
    registers = [tile for tile in tiles if 16 * tile[0] < COLUMNS // NUM_WARPS]
    return gl.amd.AMDWMMALayout(3, False, tiles[len(registers) :], registers, [16, 16, DIM])


@gluon.jit
def with_zeros(x, LAYOUT: gl.constexpr):
    """[n, D] of one byte -> [n, 2 * D] in LAYOUT, zeros behind."""
    byte = x.to(gl.uint8, bitcast=True)
    byte = gl.permute(gl.join(byte, gl.zeros_like(byte)), [0, 2, 1])
    return gl.convert_layout(gl.reshape(byte, [x.shape[0], 2 * x.shape[1]]), LAYOUT).to(x.dtype, bitcast=True)


@gluon.jit
def heads_apart(x, ROWS: gl.constexpr):
    """[ROWS * heads, keys] -> [ROWS, 2, keys] of each of a lane's heads. Bit 3 of a WMMA's row is the lane's half."""
    HEADS: gl.constexpr = x.shape[0] // ROWS
    x = gl.permute(gl.reshape(x, [ROWS, HEADS // 16, 2, 8, x.shape[1]]), [0, 2, 1, 3, 4])
    return apart(gl.reshape(x, [ROWS, 2, HEADS // 2, x.shape[4]]))


@gluon.jit
def head_sums(queries, weights, key, ROWS: gl.constexpr):
    """[ROWS, 2, 16] of keys [D, 16] in registers: lanes n and n + 16 have one half each of the head sums of key n.

    queries, weights : as :func:`score`
    """
    wmma: gl.constexpr = queries[0].type.layout.parent
    for part in gl.static_range(len(queries)):
        product = gfx1250.wmma(queries[part], key, gl.zeros([queries[part].shape[0], key.shape[1]], gl.float32, wmma))
        weight, positive = gl.broadcast(weights[part][:, None], relu(product))
        weight = heads_apart(weight, ROWS)
        positive = heads_apart(positive, ROWS)
        for head in gl.static_range(len(positive)):
            if part == 0 and head == 0:  # noqa: SIM108 - there is no total yet
                total = positive[0] * weight[0]
            else:
                total = gl.fma(positive[head], weight[head], total)
    return total


@gluon.jit
def of_both_halves(near, far, ROWS: gl.constexpr):
    """[ROWS, 32] logits from the :func:`head_sums` of 16 keys each: both lanes add up both, and each keeps one."""
    NUM_WARPS: gl.constexpr = gl.num_warps()
    halves: gl.constexpr = half_layout(ROWS, NUM_WARPS)
    near = gl.sum(gl.convert_layout(near, halves), 1)[:, None, :]
    far = gl.sum(gl.convert_layout(far, halves), 1)[:, None, :]
    half = gl.arange(0, 2, gl.SliceLayout(0, gl.SliceLayout(2, halves)))[None, :, None]
    logit = gl.where(half == 0, near, far)
    return gl.convert_layout(gl.reshape(logit, [ROWS, 32]), logit_layout(ROWS, NUM_WARPS))


@gluon.jit
def score(queries, weights, keys, ROWS: gl.constexpr):
    """[ROWS, 32] logits, not yet times the keys' scales, from keys [32, D] in LDS.

    queries, weights : of some heads each, [ROWS * heads, D] and their weights
    """
    operand: gl.constexpr = gl.DotOperandLayout(1, queries[0].type.layout.parent, 16)
    near = keys.slice(0, 16, 0).permute([1, 0]).load(operand)
    far = keys.slice(16, 16, 0).permute([1, 0]).load(operand)
    near = head_sums(queries, weights, near, ROWS)
    far = head_sums(queries, weights, far, ROWS)
    return of_both_halves(near, far, ROWS)
