"""What a program of the dense Hopper kernel has to do: the windows of its query rows, and its share of their tiles of keys."""

from capgate.compat.gluon import aggregate, gl, gluon, mbarrier

from ..common.device.windows import clip

TILE_EIGHTHS = gl.constexpr(8)  # costs are counted in eighths of a tile
MOST_TILES = gl.constexpr(65535)  # that a group counts for: its cost times GROUP_PARTS fits 32 bits
GROUP_PARTS = gl.constexpr(1024)  # of a group's tiles: shares end at a multiple of one


@aggregate
class Windows:
    """Which keys each query row sees."""

    starts: gl.tensor
    ends: gl.tensor
    stride_starts: gl.tensor
    stride_ends: gl.tensor
    num_queries: gl.tensor
    num_keys: gl.tensor
    width: gl.tensor
    COMPRESSED: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, starts, ends, stride_starts, stride_ends, num_queries, num_keys, width, COMPRESSED):
        self.starts = starts
        self.ends = ends
        self.stride_starts = stride_starts
        self.stride_ends = stride_ends
        self.num_queries = num_queries
        self.num_keys = num_keys
        self.width = width
        self.COMPRESSED = gl.constexpr(COMPRESSED)

    @gluon.jit
    def read(self, row, LAYOUT: gl.constexpr):
        """[rows, 2] starts and ends, with one load."""
        which = gl.arange(0, 2, gl.SliceLayout(0, LAYOUT))[None, :]
        near = gl.minimum(row, self.num_queries - 1)[:, None].to(gl.int64)
        starts = self.starts + near * self.stride_starts
        return gl.load(gl.where(which == 0, starts, self.ends + near * self.stride_ends))

    @gluon.jit
    def clip(self, start, end):
        """(begin, end): a window cut to the keys and to the row's cells."""
        return clip(start, end, self.num_keys, self.width, self.COMPRESSED)


@gluon.jit
def cover(begin, end, KEYS: gl.constexpr):
    """[first, last) tiles: what the windows touch together; the first is far behind the last where all are empty."""
    first = gl.min(gl.where(begin < end, begin, 2147483647), axis=0)
    last = gl.max(gl.where(begin < end, end, 0), axis=0)
    return first // KEYS, (last + (KEYS - 1)) // KEYS


@aggregate
class Border:
    """Between two shares: behind ``part`` of the GROUP_PARTS of a group's tiles."""

    group: gl.tensor
    part: gl.tensor

    @gluon.constexpr_function
    def __init__(self, group, part):
        self.group = group
        self.part = part

    @gluon.jit
    def next(self):
        """Before the next group."""
        return Border(self.group + 1, gl.to_tensor(0))


@aggregate
class Share:
    """What a program scores of the groups, from one border to another, and how many tiles lie inside windows in all groups."""

    first: Border
    last: Border
    inside: gl.tensor

    @gluon.constexpr_function
    def __init__(self, first, last, inside):
        self.first = first
        self.last = last
        self.inside = inside

    @gluon.jit
    def stop(self, groups):
        """The first group behind the share."""
        return gl.minimum(groups, self.last.group + (self.last.part > 0).to(gl.int32))

    @gluon.jit
    def cut(self, border, first, last):
        """[first, last) of a group's tiles: those in the share, from a border in the group on."""
        count = gl.maximum(last - first, 0)
        last = gl.where(border.group == self.last.group, first + count * self.last.part // GROUP_PARTS, last)
        return first + count * border.part // GROUP_PARTS, last

    @gluon.jit
    def budget(self, tiles):
        """How many tiles outside the windows to fill with every key tile, of ``tiles`` in all groups.

        Half of its share: all at once would stall everything else, and the whole share more than what is left for the end.
        """
        outside = gl.maximum(tiles - self.inside, 0)
        return outside // gl.maximum(self.inside * 2, 1) + 2


@gluon.jit
def add(x, y):
    return x + y


@gluon.jit
def add_six(a, b, c, d, e, f, u, v, w, x, y, z):
    return a + u, b + v, c + w, d + x, e + y, f + z


@gluon.jit
def quota(total):
    """Where this program's even share of ``total`` begins, and where it ends."""
    program = gl.program_id(0)
    programs = gl.num_programs(0)
    each = total // programs
    rest = total % programs
    return each * program + rest * program // programs, each * (program + 1) + rest * (program + 1) // programs


@gluon.jit
def border(sample, spent, cost, step):
    """Where to cut after ``spent`` of what a sampled group costs, which stands for ``step`` groups."""
    part = spent * GROUP_PARTS // gl.maximum(cost, 1) * step
    return Border(sample * step + part // GROUP_PARTS, part % GROUP_PARTS)


@aggregate
class Guess:
    """What is copied while the windows come from memory, into the first slot and stage: a group's queries, and a tile of keys.

    landed : the mbarrier of both copies
    row, tile : the group's first row, and the tile
    """

    landed: gl.shared_memory_descriptor
    row: gl.tensor
    tile: gl.tensor

    @gluon.constexpr_function
    def __init__(self, landed, row, tile):
        self.landed = landed
        self.row = row
        self.tile = tile

    @gluon.jit
    def wait(self):
        """Until the copies have landed; nobody uses the mbarrier again."""
        mbarrier.wait(self.landed, 0)
        mbarrier.invalidate(self.landed)

    @gluon.jit
    def is_row(self, sent, row):
        """Whether the group that begins at a row is the first that is scored, and its queries are there."""
        return (sent == 0) & (row == self.row)

    @gluon.jit
    def is_tile(self, sent, row, first, tile):
        """Whether a tile is the first of this group, and there."""
        return self.is_row(sent, row) & (tile == first) & (tile == self.tile)


@gluon.jit
def first_needs(windows, ROWS: gl.constexpr, KEYS: gl.constexpr, SAMPLES: gl.constexpr, GROUP_COST: gl.constexpr):
    """(row, tile) at which this program's share begins if every row sees every key: a guess."""
    groups = gl.cdiv(windows.num_queries, ROWS)
    step = gl.cdiv(groups, SAMPLES)
    tiles = gl.cdiv(windows.num_keys, KEYS)
    cost = gl.minimum(tiles, MOST_TILES) * TILE_EIGHTHS + GROUP_COST
    here, _ = quota(gl.cdiv(groups, step) * cost)
    first = border(here // cost, here % cost, cost, step)
    return first.group * ROWS, tiles * first.part // GROUP_PARTS


@gluon.jit
def find_share(windows, ROWS: gl.constexpr, KEYS: gl.constexpr, SAMPLES: gl.constexpr, GROUP_COST: gl.constexpr):
    """This program's share of the groups of ROWS query rows.

    What groups cost is estimated from a sample, by two rows of every sampled group. A wrong estimate costs time only:
    neighbours compute the border between them alike.
    """
    # One sample a thread, or as many in each warp as it has lanes: more would queue up for the same lines of every SM.
    LAYOUT: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    groups = gl.cdiv(windows.num_queries, ROWS)
    step = gl.cdiv(groups, SAMPLES)
    sample = gl.arange(0, SAMPLES, LAYOUT)
    exists = sample * step < groups
    row = gl.minimum(sample * step + step // 2, groups - 1) * ROWS
    start = gl.load(windows.starts + row.to(gl.int64) * windows.stride_starts, mask=exists, other=0)
    row = gl.minimum(row + (ROWS - 1), windows.num_queries - 1)
    end = gl.load(windows.ends + row.to(gl.int64) * windows.stride_ends, mask=exists, other=0)
    begin, end = windows.clip(start, end)
    tiles = gl.where(begin < end, (end + (KEYS - 1)) // KEYS - begin // KEYS, 0)
    cost = gl.where(exists, gl.minimum(tiles, MOST_TILES) * TILE_EIGHTHS + GROUP_COST, 0)
    sums = gl.associative_scan(cost, 0, add)
    total = gl.max(sums, axis=0)
    here, there = quota(total)
    before = sums - cost
    at_here = (before <= here) & (here < sums)
    at_there = (before <= there) & (there < sums)
    a, b, c, d, e, f = gl.reduce(
        (
            gl.where(at_here, sample, 0),
            gl.where(at_here, here - before, 0),
            gl.where(at_here, cost, 0),
            gl.where(at_there, sample, 0),
            gl.where(at_there, there - before, 0),
            gl.where(at_there, cost, 0),
        ),
        0,
        add_six,
    )
    first = border(a, b, c, step)
    last = border(d, e, f, step)
    last = Border(gl.where(f == 0, groups, last.group), last.part)  # nothing of the last group is left
    inside = (total - gl.cdiv(groups, step) * GROUP_COST) // TILE_EIGHTHS * step
    return Share(first, last, inside)
