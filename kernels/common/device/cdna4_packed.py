"""Relu two at a time on CDNA4 (gfx950), by the clamp of a packed product. Compiled and emulated; no hardware has shown it.

    clamp(x * 2**-26) is max(x, 0) * 2**-26 for all x up to 2**26, and the weights have the 2**26 that it lacks

Both factors are powers of two, so that every product and sum is the same real number as with relu by itself, and rounds alike:
docs/design/cdna4.md says for which weights. :func:`capgate.kernels.common.rules.packs_relu` says when it may be used.
"""

from capgate.compat.gluon import constexpr_function, gl, gluon

from ..rules import RELU_EXPONENT

RELU_RANGE = gl.constexpr(2.0**RELU_EXPONENT)
SCALE = gl.constexpr(127 - RELU_EXPONENT << 23 | 127 - RELU_EXPONENT << 55)  # its reciprocal as float32, whichever half is read


@gluon.jit
def clamp_keeps_nan():
    """From here on clamp hands a NaN on, and makes no 0 of it: clears MODE.DX10_CLAMP, its bit 8.

    In these kernels nothing clamps floats but :func:`sum_packed`, which is impure as this is, so that it stays behind it.
    """
    gl.inline_asm_elementwise(  # returns a register, since something has to be returned
        "s_setreg_imm32_b32 hwreg(HW_REG_MODE, 8, 1), 0", "=s", [], dtype=gl.int32, is_pure=False, pack=1
    )


@constexpr_function
def assembly(ROWS, PAIRS, LATER):
    """Of :func:`sum_packed`. Operands, ROWS of each: the total and two of relu, the total before unless LATER, the rest."""
    first = 3 if LATER else 4  # of the pairs; behind them weights, scale and later pairs
    lines = ["s_nop 15", "s_nop 3"] if LATER else []
    for row in range(ROWS):
        operands = [f"${place * ROWS + row}" for place in range(first + 2 * PAIRS + 1)]
        pairs, weights, scale = operands[first : first + PAIRS], operands[first + PAIRS : -1], operands[-1]
        total, *relu, before = operands[:4]
        for pair in range(PAIRS + 1):  # a relu stands between two sums, for one needs the other
            if pair < PAIRS:
                lines.append(f"v_pk_mul_f32 {relu[pair % 2]}, {pairs[pair]}, {scale} op_sel_hi:[1,0] clamp")
            if pair == 1 and LATER:
                lines.append(f"v_pk_mul_f32 {total}, {relu[0]}, {weights[0]}")
            elif pair:
                lines.append(
                    f"v_pk_fma_f32 {total}, {relu[(pair - 1) % 2]}, {weights[pair - 1]}, {before if pair == 1 else total}"
                )
    return "\n\t".join(lines)


@constexpr_function
def constraints(ROWS, PAIRS, LATER):
    """Of :func:`assembly`; what it writes is written while operands are still to be read."""
    kinds = ["=&v"] * 3 + ["v"] * (2 * PAIRS if LATER else 2 * PAIRS + 1) + ["s"] + ["v"] * LATER
    return ",".join(kind for kind in kinds for _ in range(ROWS))


@gluon.jit
def sum_packed(pairs, weights, later, total):
    """total, with ``later`` without it, plus the sum of max(x, 0) * weight over a tuple of pairs of float32 below 2**26.

    weights : a tuple of as many pairs, times 2**26
    later : a tuple of the pairs that the next call takes, empty in the last one

    The compiler inserts no wait between an MFMA and inline assembly. Here the wait is in it: the first call takes all pairs, so
    that no MFMA of theirs stands behind it, and begins with the 20 wait states that an MFMA of 16 passes needs; the next one
    takes the total of the first. It counts as impure for the reason that :func:`.cdna4.sum_products` has.
    """
    ROWS: gl.constexpr = pairs[0].numel // (64 * gl.num_warps())  # of a lane
    operands = pairs + weights + (SCALE,) + later
    if len(later) == 0:
        operands = (total,) + operands  # noqa: RUF005 - Triton knows no starred elements
    total, _, _ = gl.inline_asm_elementwise(
        assembly(ROWS, len(pairs), len(later)), constraints(ROWS, len(pairs), len(later)), operands,
        dtype=(gl.int64, gl.int64, gl.int64), is_pure=False, pack=ROWS,
    )  # fmt: skip
    return total
