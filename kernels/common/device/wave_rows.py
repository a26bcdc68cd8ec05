"""Layouts of sums where each wave has rows of its own: for the Gluon variants of gfx942 and of gfx1250."""

from capgate.compat.gluon import constexpr_function, gl


@constexpr_function
def wave_rows_layout(LANES, SHAPE, NUM_WARPS):
    """[rows, ...] of SHAPE: rows over registers, then waves; LANES, the bases of the lanes, cover all the other dimensions."""
    zeros = [0] * (len(SHAPE) - 1)
    rows = [[1 << bit, *zeros] for bit in range(16) if 1 << bit < SHAPE[0]]
    registers = [row for row in rows if row[0] < SHAPE[0] // NUM_WARPS]
    return gl.DistributedLinearLayout(registers, LANES, rows[len(registers) :], [], SHAPE)
