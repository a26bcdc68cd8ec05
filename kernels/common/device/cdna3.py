"""Device functions in Gluon for CDNA3 (gfx942), one source for Triton 3.6.0 to 3.9.0: conversion, relu and head sums.

Compiled and emulated; they have not run on a GPU. What CDNA3 does as CDNA4 is :mod:`.cdna4`'s: pairs of registers, fills,
loads and stores.

A wave scores 64 keys at a time for rows of its own. Of a product a lane has two keys, 32 apart, and every other four heads.
"""

from capgate.compat.gluon import cdna3, constexpr_function, gl, gluon

from .cdna4 import pairs_of_heads, sum_of_pair, sum_products
from .formats import quad_to_fnuz
from .wave_rows import wave_rows_layout


@constexpr_function
def half_layout(ROWS, NUM_WARPS):
    """[ROWS, 2, 32]: each wave has rows of its own, and a lane one half of the heads of two keys."""
    lanes = [*([0, 0, 1 << bit] for bit in range(5)), [0, 1, 0]]
    return wave_rows_layout(lanes, [ROWS, 2, 32], NUM_WARPS)


@constexpr_function
def logit_layout(ROWS, NUM_WARPS):
    """[ROWS, 64]: each wave has rows of its own, and a lane one key."""
    lanes = [[0, 1 << bit] for bit in range(6)]
    return wave_rows_layout(lanes, [ROWS, 64], NUM_WARPS)


@gluon.jit
def relu(x):
    """Twice max(x, 0), in the one instruction that keeps NaN: CDNA3 has no such maximum."""
    return x + gl.abs(x)


@gluon.jit
def quads(x):
    """Adjacent elements of one byte [n, m], four to a uint32, the first lowest."""
    byte = gl.reshape(x.to(gl.uint8, bitcast=True).to(gl.uint32), [x.shape[0], x.shape[1] // 4, 2, 2])
    even, odd = gl.split(byte)
    low, high = gl.split(even | odd << 8)
    return low | high << 16


@gluon.jit
def of_quads(quad, LAYOUT: gl.constexpr):
    """The e4m3fnuz that a uint32 has four of each, the lowest first."""
    half = gl.join(quad & 0xFFFF, quad >> 16)
    byte = gl.reshape(gl.join(half & 0xFF, half >> 8).to(gl.uint8), [quad.shape[0], 4 * quad.shape[1]])
    return gl.convert_layout(byte, LAYOUT).to(gl.float8e4b8, bitcast=True)


@gluon.jit
def write_tile(memory, words, TO_FNUZ: gl.constexpr):
    """Keys in words of four bytes to LDS; if TO_FNUZ e4m3fn ones, which become e4m3fnuz of half the value."""
    memory.store(quad_to_fnuz(words) if TO_FNUZ else words)


@gluon.jit
def head_sums(queries, weights, key, ROWS: gl.constexpr):
    """[ROWS, 2, keys] of keys [D, keys] in registers: lanes n and n + 32 have one half each of the head sums of key n.

    queries, weights : as :func:`score`
    """
    mfma: gl.constexpr = queries[0].type.layout.parent
    for part in gl.static_range(len(queries)):
        product = cdna3.mfma(queries[part], key, gl.zeros([queries[part].shape[0], key.shape[1]], gl.float32, mfma))
        weight, positive = gl.broadcast(weights[part][:, None], relu(product))
        weight = pairs_of_heads(weight, ROWS, weight.shape[0] // ROWS)
        positive = pairs_of_heads(positive, ROWS, positive.shape[0] // ROWS)
        if part == 0:  # noqa: SIM108 - there is no total yet
            total = sum_products(positive, weight, positive, True)
        else:
            total = sum_products(positive, weight, total, False)
    return sum_of_pair(total)


@gluon.jit
def of_both_halves(near, far, ROWS: gl.constexpr):
    """[ROWS, 64] logits from the :func:`head_sums` of 32 keys each: both lanes add up both, and each keeps one."""
    NUM_WARPS: gl.constexpr = gl.num_warps()
    halves: gl.constexpr = half_layout(ROWS, NUM_WARPS)
    near = gl.sum(gl.convert_layout(near, halves), 1)[:, None, :]
    far = gl.sum(gl.convert_layout(far, halves), 1)[:, None, :]
    half = gl.arange(0, 2, gl.SliceLayout(0, gl.SliceLayout(2, halves)))[None, :, None]
    logit = gl.where(half == 0, near, far)
    return gl.convert_layout(gl.reshape(logit, [ROWS, 64]), logit_layout(ROWS, NUM_WARPS))


@gluon.jit
def score(queries, weights, keys, ROWS: gl.constexpr):
    """[ROWS, 64] logits, not yet times the keys' scales, from keys [64, D] in LDS.

    queries, weights : of some heads each, [ROWS * heads, D] and half of their weights, for :func:`relu` gives twice the value
    """
    mfma: gl.constexpr = queries[0].type.layout.parent
    key = keys.permute([1, 0]).load(gl.DotOperandLayout(1, mfma, 16))
    total = head_sums(queries, weights, key, ROWS)
    near, far = gl.split(gl.permute(gl.reshape(total, [ROWS, 2, 2, 32]), [0, 1, 3, 2]))
    return of_both_halves(near, far, ROWS)
