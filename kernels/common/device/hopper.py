"""Device functions in Gluon for Hopper: what a kernel of the MQA logits does with 64 keys, its queries and its weights.

An accumulator of wgmma is [64 keys, rows x heads]: a key's products with every head of every row. Relu, weights and head sum
happen in its registers; where a lane has which product follows from the order in which the queries lie in shared memory, and
that from their tensor map.
"""

from functools import cache
from typing import Any

import torch

from capgate.compat.gluon import TensorDescriptor, gl, gluon, tma_load


@gluon.constexpr_function
def query_box(rows, heads, dim):
    """Axes of a query tile, outermost first, as its tensor map has them: the order of a key's products.

    Lane % 4 of a warp tells apart products that differ in bits 1 and 2. Query rows stand there, so that few lanes, or none,
    share a sum over heads: rows 1: [row, head]; rows 2: [head, head, row, head]; more: [head, row, head].
    """
    if rows == 1:
        return [1, heads, dim]
    return [heads // 4, 2, 2, 2, dim] if rows == 2 else [heads // 2, rows, 2, dim]


@gluon.constexpr_function
def bytes_layout(dim, rank):
    """fp8 rows of ``dim`` bytes in shared memory, as the copy engine writes and wgmma reads them."""
    return gl.NVMMASharedLayout(swizzle_byte_width=dim, element_bitwidth=8, rank=rank)


@gluon.constexpr_function
def floats_layout(rank, bits=32):
    """Floats of 32 or 16 bits in shared memory, line after line."""
    return gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=bits, rank=rank)


@gluon.constexpr_function
def weight_layout(rows, heads):
    """[rows, heads]: each lane has the weights of its products."""
    lanes = {1: [[0, 2], [0, 4]], 2: [[1, 0], [0, 2]]}.get(rows, [[1, 0], [2, 0]])
    first_head = {1: 8, 2: 4}.get(rows, 2)
    registers = [[0, 1]] + [[1 << bit, 0] for bit in range(2, rows.bit_length() - 1)]
    registers += [[0, 1 << bit] for bit in range(first_head.bit_length() - 1, heads.bit_length() - 1)]
    return gl.DistributedLinearLayout(registers, [*lanes, [0, 0], [0, 0], [0, 0]], [[0, 0], [0, 0]], [], [rows, heads])


@gluon.constexpr_function
def quad_layout():
    """[4, 8, 4]: warp, lane / 4, lane % 4."""
    lanes = [[0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 2, 0], [0, 4, 0]]
    return gl.DistributedLinearLayout([], lanes, [[1, 0, 0], [2, 0, 0]], [], [4, 8, 4])


@gluon.constexpr_function
def logit_layout(rows):
    """[64, max(rows, 2)] keys x rows: where the sums over heads end. Without a second row, every value is there twice."""
    lanes = {1: [[8, 0], [0, 1]], 2: [[0, 1], [8, 0]]}.get(rows, [[0, 1], [0, 2]])
    registers = [[8, 0]] if rows > 2 else []
    registers += [[0, 1 << bit] for bit in range(2, rows.bit_length() - 1)]
    lanes = [*lanes, [1, 0], [2, 0], [4, 0]]
    return gl.DistributedLinearLayout(registers, lanes, [[16, 0], [32, 0]], [], [64, max(rows, 2)])


@gluon.jit
def scalar(memory):
    """The one element of a piece of shared memory."""
    return gl.max(memory.load(gl.BlockedLayout([1], [32], [gl.num_warps()], [0])), axis=0)


@gluon.jit
def store_scalar(memory, value):
    """Into the one element of a piece of shared memory."""
    memory.store(gl.full([1], value, gl.int32, gl.BlockedLayout([1], [32], [gl.num_warps()], [0])))


@gluon.jit
def exchange(x, LANES: gl.constexpr):
    """x of the lane whose number differs in bit LANES."""
    if LANES == 1:
        return gl.inline_asm_elementwise("shfl.sync.bfly.b32 $0, $1, 1, 31, -1;", "=f,f", [x], gl.float32, False, 1)
    else:
        return gl.inline_asm_elementwise("shfl.sync.bfly.b32 $0, $1, 2, 31, -1;", "=f,f", [x], gl.float32, False, 1)


@gluon.jit
def before_lane(numbers):
    """(what the lanes of a warp before one have, what all have) of int32 ``numbers``; also of each byte, if none overflows."""
    return gl.inline_asm_elementwise(
        """{
        .reg .pred there;
        .reg .b32 sum, other;
        mov.b32 sum, $2;
        shfl.sync.up.b32 other|there, sum, 1, 0, -1;
        @there add.u32 sum, sum, other;
        shfl.sync.up.b32 other|there, sum, 2, 0, -1;
        @there add.u32 sum, sum, other;
        shfl.sync.up.b32 other|there, sum, 4, 0, -1;
        @there add.u32 sum, sum, other;
        shfl.sync.up.b32 other|there, sum, 8, 0, -1;
        @there add.u32 sum, sum, other;
        shfl.sync.up.b32 other|there, sum, 16, 0, -1;
        @there add.u32 sum, sum, other;
        shfl.sync.idx.b32 $1, sum, 31, 31, -1;
        sub.u32 $0, sum, $2;
        }""",
        "=&r,=&r,r",
        [numbers],
        dtype=(gl.int32, gl.int32),
        is_pure=False,
        pack=1,
    )


@gluon.jit
def fold(score, weight, total, MORE: gl.constexpr, HEADS: gl.constexpr, FIRST: gl.constexpr):
    """total + sum over the last axis of 2 * relu(score) * weight, a chain of FMAs: the axis lies in registers.

    Written out because gl.sum fuses multiplications and additions on some builds only. x + |x| keeps NaN; a maximum would
    run on a unit of half the rate.
    """
    if HEADS == 1:
        if FIRST:
            return (score + gl.abs(score)) * weight
        else:
            return gl.fma(score + gl.abs(score), weight, total)
    elif HEADS == 2:
        s0, s1 = gl.split(score)
        w0, w1 = gl.split(weight)
        return fold(s1, w1, fold(s0, w0, total, MORE, 1, FIRST), MORE, 1, False)
    else:
        s0, s1 = gl.split(score.reshape([4, 2, 8, MORE, 4, HEADS // 2, 2]))
        w0, w1 = gl.split(weight.reshape([4, 2, 8, MORE, 4, HEADS // 2, 2]))
        return fold(s1, w1, fold(s0, w0, total, MORE, HEADS // 2, FIRST), MORE, HEADS // 2, False)


@gluon.jit
def product_weights(memory, ROWS: gl.constexpr, HEADS: gl.constexpr, LAYOUT: gl.constexpr):
    """[ROWS * HEADS] halves of the weights [ROWS, HEADS] in shared memory, in float32 and in the order of a key's products."""
    weights = memory.load(weight_layout(ROWS, HEADS)).to(gl.float32) * 0.5
    if ROWS == 2:
        weights = weights.reshape([2, HEADS // 4, 2, 2]).permute([1, 2, 0, 3])
    elif ROWS > 2:
        weights = weights.reshape([ROWS, HEADS // 2, 2]).permute([1, 0, 2])
    return gl.convert_layout(weights.reshape([ROWS * HEADS]), LAYOUT, assert_trivial=True)


@gluon.jit
def head_sums(scores, weights, ROWS: gl.constexpr):
    """[64, max(rows, 2)] from an accumulator's [64, rows * heads]: relu, twice the weights, and the sum over heads."""
    PRODUCTS: gl.constexpr = scores.shape[1]
    MORE: gl.constexpr = max(ROWS // 4, 1)
    HEADS: gl.constexpr = PRODUCTS // 8 // MORE
    # An accumulator's axes: warp, key + 8, lane / 4; heads, further rows, lane % 4, heads. Two chains of FMAs for each sum.
    s = scores.reshape([4, 2, 8, HEADS, MORE, 4, 2]).permute([0, 1, 2, 4, 5, 3, 6])
    w = weights[None, :].broadcast_to([64, PRODUCTS]).reshape([4, 2, 8, HEADS, MORE, 4, 2]).permute([0, 1, 2, 4, 5, 3, 6])
    s0, s1 = gl.split(s)
    w0, w1 = gl.split(w)
    total = fold(s0, w0, s0, MORE, HEADS, True) + fold(s1, w1, s1, MORE, HEADS, True)  # [4, 2, 8, MORE, 4]
    if ROWS <= 2:
        # Lanes have partial sums of the same two keys: each keeps one of the keys and gives the other away.
        QUAD: gl.constexpr = quad_layout()
        low, high = gl.split(total.reshape([4, 2, 8, 4]).permute([0, 2, 3, 1]))
        low = gl.convert_layout(low, QUAD, assert_trivial=True)
        high = gl.convert_layout(high, QUAD, assert_trivial=True)
        lane = gl.arange(0, 4, gl.SliceLayout(0, gl.SliceLayout(0, QUAD)))[None, :][None, :, :]
        odd = (lane & ROWS) != 0
        total = gl.where(odd, high, low) + exchange(gl.where(odd, low, high), ROWS)
        if ROWS == 1:
            total += exchange(total, 2)
            total = total.reshape([4, 8, 2, 2]).permute([0, 3, 1, 2])
        else:
            total = total.reshape([4, 8, 2, 2]).permute([0, 2, 1, 3])
    return gl.convert_layout(total.reshape([64, max(ROWS, 2)]), logit_layout(ROWS), assert_trivial=True)


@gluon.jit
def load_query(queries, row, full, box, ROWS: gl.constexpr, wanted=True):
    """Start the copy of ROWS query rows into a piece of shared memory with the axes of query_box, if it is ``wanted``."""
    if ROWS == 1:
        tma_load(queries, [row, 0, 0], full, box, pred=wanted)
    elif ROWS == 2:
        tma_load(queries, [0, 0, row, 0, 0], full, box, pred=wanted)
    else:
        tma_load(queries, [0, row, 0, 0], full, box, pred=wanted)


def query_map(q: torch.Tensor, rows: int, heads: int) -> Any:
    """The tensor map of q [S, H, D] for tiles of ``rows`` query rows, their heads padded to ``heads`` with zeros."""
    (num_queries, num_heads, dim), (qs, qh, _) = q.shape, q.stride()
    axes = {
        1: [(num_queries, qs), (num_heads, qh)],
        2: [(num_heads // 4, 4 * qh), (2, 2 * qh), (num_queries, qs), (2, qh)],
    }.get(rows, [(num_heads // 2, 2 * qh), (num_queries, qs), (2, qh)])
    shape, strides = zip(*axes, (dim, 1), strict=True)
    return tensor_map(q, shape, strides, _query_box(rows, heads, dim))


def tensor_map(tensor: torch.Tensor, shape: Any, strides: Any, box: list[int]) -> Any:
    """A tensor map for pieces [box] as :func:`bytes_layout` or :func:`floats_layout` has them.

    An axis of one element may have any stride in torch, and gets one that the hardware takes.
    """
    steps = [max(16, -(-step // 16) * 16) if size == 1 else step for size, step in zip(shape[:-1], strides[:-1], strict=True)]
    return TensorDescriptor(tensor, list(shape), [*steps, 1], box, _layout(8 * tensor.itemsize, box[-1], len(box)))


@cache
def _layout(bits: int, size: int, rank: int) -> Any:
    """Remembered, as Triton takes some 10 us to call a function of constants."""
    return bytes_layout(size, rank) if bits == 8 else floats_layout(rank, bits)


@cache
def _query_box(rows: int, heads: int, dim: int) -> list[int]:
    return list(query_box(rows, heads, dim))
