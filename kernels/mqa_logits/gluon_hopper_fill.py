"""-inf outside the windows, by the dense Hopper kernel's copy engine: a unit of work at a time, beside the key tiles."""

from capgate.compat.gluon import aggregate, gl, gluon, hopper, tma_store

from ..common.device.hopper_pipeline import Output
from .gluon_hopper_share import cover


@aggregate
class Filling:
    """What fills: a tile of every row of a group, [GROUP, KEYS], by one copy.

    A unit of work is a group and one of the ``sections`` of its rows' cells.
    """

    stored: hopper.tma.tensor_descriptor
    blank: gl.shared_memory_descriptor
    out: Output
    sections: gl.tensor
    GROUP: gl.constexpr
    KEYS: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, stored, blank, out, sections):
        self.stored = stored
        self.blank = blank
        self.out = out
        self.sections = sections
        self.GROUP = gl.constexpr(blank.shape[0])
        self.KEYS = gl.constexpr(blank.shape[1])


@aggregate
class Unfilled:
    """Where a program's fill stands: of a unit's tiles, those from at to left and from right to high are still to be filled."""

    unit: gl.tensor
    at: gl.tensor
    left: gl.tensor
    right: gl.tensor
    high: gl.tensor

    @gluon.constexpr_function
    def __init__(self, unit, at, left, right, high):
        self.unit = unit
        self.at = at
        self.left = left
        self.right = right
        self.high = high

    @gluon.jit
    def step(self, stop):
        """Up to ``stop`` the tiles are filled: over those inside the windows to what lies right of them."""
        at = gl.maximum(stop, self.at)
        at = gl.where((at >= self.left) & (at < self.right), self.right, at)
        return Unfilled(self.unit, at, self.left, self.right, self.high)


@gluon.jit
def nothing_unfilled():
    """Before a program's first unit: nothing is left, so that the first fill looks for the next one."""
    zero = gl.to_tensor(0)
    return Unfilled(gl.program_id(0) - gl.num_programs(0), zero, zero, zero, zero)


@gluon.jit
def find_unfilled(filling, windows, unit):
    """What is to be filled of a unit: its tiles outside its group's tiles.

    The last cells, of less than 16 bytes, which the copy engine cannot tell from the padding behind, are filled here and now.
    """
    GROUP: gl.constexpr = filling.GROUP
    KEYS: gl.constexpr = filling.KEYS
    LINE: gl.constexpr = 128 // filling.blank.dtype.primitive_bitwidth  # cells of 16 bytes
    CELLS: gl.constexpr = gl.BlockedLayout([1, 1], [32 // LINE, LINE], [1, 1], [1, 0])
    WINDOW: gl.constexpr = gl.BlockedLayout([1, 2], [32, 1], [1, 1], [1, 0])
    out = filling.out
    sections = filling.sections
    group = unit // sections
    section = unit % sections
    row = group * GROUP + gl.arange(0, GROUP, gl.SliceLayout(1, WINDOW))
    start, end = gl.split(windows.read(row, WINDOW))
    begin, end = windows.clip(start, end)
    first, last = cover(begin, gl.where(row < windows.num_queries, end, 0), KEYS)
    tiles = gl.cdiv(windows.num_keys, KEYS).to(gl.int64)
    low = (tiles * section // sections).to(gl.int32)
    high = (tiles * (section + 1) // sections).to(gl.int32)
    left = gl.minimum(gl.maximum(first, low), high)
    right = gl.minimum(gl.maximum(last, left), high)
    whole = windows.num_keys // KEYS
    if (windows.num_keys % LINE > 0) & (high > whole) & ((whole < left) | (whole >= right)):
        line = group * GROUP + gl.arange(0, GROUP, gl.SliceLayout(1, CELLS))
        column = windows.num_keys // LINE * LINE + gl.arange(0, LINE, gl.SliceLayout(0, CELLS))
        cells = out.pointer + (line.to(gl.int64) * out.stride_row)[:, None] + column[None, :]
        value = gl.full([GROUP, LINE], float("-inf"), filling.blank.dtype, CELLS)
        gl.store(cells, value, mask=(line < windows.num_queries)[:, None] & (column < windows.num_keys)[None, :])
    return Unfilled(unit, gl.where(low < left, low, right), left, right, high)


@gluon.jit
def fill(filling, windows, budget, rest):
    """-inf into the next ``budget`` tiles outside the windows; returns what is left.

    The copy engine stores a tile of every row of a group at once, and leaves out what lies past the last row or key.
    """
    units = gl.cdiv(windows.num_queries, filling.GROUP) * filling.sections
    while (budget > 0) & (rest.unit < units):
        stop = gl.minimum(gl.where(rest.at < rest.left, rest.left, rest.high), rest.at + budget)
        row = rest.unit // filling.sections * filling.GROUP
        for tile in range(rest.at, stop):
            tma_store(filling.stored, [row, tile * filling.KEYS], filling.blank)
        budget -= gl.maximum(stop - rest.at, 0) + 1
        rest = rest.step(stop)
        if rest.at >= rest.high:
            unit = rest.unit + gl.num_programs(0)
            rest = Unfilled(unit, rest.at, rest.left, rest.right, rest.high)
            if unit < units:
                rest = find_unfilled(filling, windows, unit)
    return rest
