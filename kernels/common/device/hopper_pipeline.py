"""Pipelines of Gluon kernels for Hopper: who may touch which stage in shared memory, and what a producer tells its consumers.

Memory and mbarriers (:class:`Ring`, :class:`Plan`) stay what they are; where a warp stands is a :class:`Turn` of its own. Loops
carry turns alone: of shared memory that they carried, every Triton would have to find out that it is always the same.
"""

from capgate.compat.gluon import aggregate, gl, gluon, hopper, mbarrier

SLOTS = gl.constexpr(2)  # places for queries: those that are scored now, and those that come next
FIELDS = gl.constexpr(4)  # that a slot's record of integers has room for
FIRST_TILE, TILE_COUNT, FIRST_ROW = gl.constexpr(0), gl.constexpr(1), gl.constexpr(2)  # a plan's


@aggregate
class Turn:
    """Which of the stages is next for a warp, and the phase that it waits for there."""

    index: gl.tensor
    phase: gl.tensor
    STAGES: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, index, phase, STAGES):
        self.index = index
        self.phase = phase
        self.STAGES = gl.constexpr(STAGES)

    @gluon.jit
    def next(self):
        if self.STAGES == 2:  # without a jump
            index = self.index ^ 1
            phase = self.phase ^ (index == 0).to(gl.int32)
        else:
            index = self.index + 1
            phase = self.phase
            if index == self.STAGES:
                index = 0
                phase ^= 1
        return Turn(index, phase, self.STAGES)


@gluon.jit
def consumers_turn(STAGES: gl.constexpr):
    """The first turn of one who waits until stages are full."""
    return Turn(gl.to_tensor(0), gl.to_tensor(0), STAGES)


@gluon.jit
def producers_turn(STAGES: gl.constexpr):
    """The first turn of one who waits until stages are empty, as they are at first: the phase before the first is over."""
    return Turn(gl.to_tensor(0), gl.to_tensor(1), STAGES)


@aggregate
class Ring:
    """The mbarriers of stages that are filled in turn.

    full : [STAGES, 1], passed once the bytes that each producer expects are there, or where it arrives without any
    empty : [STAGES, 1], passed once each consumer has released the stage
    """

    full: gl.shared_memory_descriptor
    empty: gl.shared_memory_descriptor
    STAGES: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, full, empty):
        self.full = full
        self.empty = empty
        self.STAGES = gl.constexpr(full.shape[0])

    @gluon.jit
    def acquire(self, turn):
        """Wait until a stage is empty."""
        mbarrier.wait(self.empty.index(turn.index), turn.phase)

    @gluon.jit
    def wait(self, turn, wanted=True):
        """Wait until a stage is full, if it is ``wanted``."""
        mbarrier.wait(self.full.index(turn.index), turn.phase, pred=wanted)

    @gluon.jit
    def release(self, turn, wanted=True):
        """One thread of a consumer arrives for all: a barrier of theirs comes before it, and before that a fence, if what they
        loaded may still be on its way: the copy engine's next write does not queue behind it."""
        mbarrier.arrive(self.empty.index(turn.index), count=1, pred=wanted)


@gluon.jit
def new_ring(STAGES: gl.constexpr, CONSUMERS: gl.constexpr, PRODUCERS: gl.constexpr = 1):
    """A ring of empty stages; the copy engine sees its mbarriers behind a fence."""
    LAYOUT: gl.constexpr = mbarrier.MBarrierLayout()
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], LAYOUT)
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], LAYOUT)
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=PRODUCERS)
        mbarrier.init(empty.index(stage), count=CONSUMERS)
    return Ring(full, empty)


@aggregate
class Plan:
    """By slot, which tiles its queries are scored against, and the first of their rows: a record of integers.

    memory : [SLOTS * FIELDS, 1] int32
    """

    memory: gl.shared_memory_descriptor

    @gluon.constexpr_function
    def __init__(self, memory):
        self.memory = memory

    @gluon.jit
    def first_tile(self, slot):
        return field(self.memory, slot, FIRST_TILE)

    @gluon.jit
    def tile_count(self, slot):
        """0: no queries follow."""
        return field(self.memory, slot, TILE_COUNT)

    @gluon.jit
    def first_row(self, slot):
        return field(self.memory, slot, FIRST_ROW)


@gluon.jit
def field(records, slot, FIELD: gl.constexpr):
    """A field of a slot's record, in shared memory [SLOTS * FIELDS, n]."""
    return records.index(slot.index * FIELDS + FIELD)


@aggregate
class Maps:
    """The tensor maps of what a producer copies."""

    queries: hopper.tma.tensor_descriptor
    keys: hopper.tma.tensor_descriptor
    scales: hopper.tma.tensor_descriptor
    weights: hopper.tma.tensor_descriptor

    @gluon.constexpr_function
    def __init__(self, queries, keys, scales, weights):
        self.queries = queries
        self.keys = keys
        self.scales = scales
        self.weights = weights


@gluon.constexpr_function
def stride(value):
    """A kernel's stride as a field: where it is 1 the launcher makes a constant of it, which costs no multiplication."""
    return value if isinstance(value, gl.tensor) else gl.constexpr(value)


@aggregate
class Output:
    """Where logits are stored: a pointer, and the distances of rows and of cells in elements."""

    pointer: gl.tensor
    stride_row: gl.base_value
    stride_cell: gl.base_value

    @gluon.constexpr_function
    def __init__(self, pointer, stride_row, stride_cell):
        self.pointer = pointer
        self.stride_row = stride(stride_row)
        self.stride_cell = stride(stride_cell)
