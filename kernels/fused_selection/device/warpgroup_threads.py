"""What threads of a warpgroup have of a row's lists, in Gluon for Hopper, and what its warps tell each other of them; one
source for Triton 3.6.0 to 3.9.0. Of lists and runs: :mod:`.warpgroup_lists`.

Two layouts. While keys are scored a tensor is [64, 2], keys x rows, as :func:`...common.device.hopper.logit_layout` has it: a
lane has one key of one row, and of a single row half of the lanes have what is none. Where lists are selected from it is
[rows, THREADS], rows x threads: a thread has those entries of its warp's run that its lane takes, of one row or of both.

Warps tell each other numbers through shared memory, 16 bytes for each row, with one barrier. A reduction of Triton 3.6.0 takes
three, and what it loads under a predicate is a register that lives through all loops around it.
"""

from capgate.compat.gluon import gl, gluon

from ...common.device.hopper import logit_layout

ROWS = gl.constexpr(2)  # of a consumer, where it has more than one
RUNS = gl.constexpr(4)  # warps of a warpgroup
LANES = gl.constexpr(32)
THREADS = gl.constexpr(128)


@gluon.constexpr_function
def entry_layout(rows=2):
    """[rows, THREADS, WIDE]: a lane's entries, and both rows', in its registers."""
    registers = [[0, 0, 1], [0, 0, 2], [0, 0, 4], [0, 0, 8]] + ([[1, 0, 0]] if rows == 2 else [])
    lanes = [[0, 1 << bit, 0] for bit in range(5)]
    return gl.DistributedLinearLayout(registers, lanes, [[0, 32, 0], [0, 64, 0]], [], [rows, 128, 16])


@gluon.constexpr_function
def thread_layout(rows=2):
    """[rows, THREADS]."""
    return gl.SliceLayout(2, entry_layout(rows))


@gluon.jit
def lane_and_run(COUNT: gl.constexpr = 2):
    """(lane, run) of each thread, [1, THREADS], for so many rows."""
    thread = gl.arange(0, THREADS, gl.SliceLayout(0, thread_layout(COUNT)))[None, :]
    return thread % LANES, thread // LANES


@gluon.jit
def from_lane(x, SECOND: gl.constexpr):
    """x of the warp's first lane, or of its second one."""
    if SECOND:
        return gl.inline_asm_elementwise("shfl.sync.idx.b32 $0, $1, 1, 31, -1;", "=r,r", [x], gl.int32, False, 1)
    return gl.inline_asm_elementwise("shfl.sync.idx.b32 $0, $1, 0, 31, -1;", "=r,r", [x], gl.int32, False, 1)


@gluon.jit
def by_thread(x, COUNT: gl.constexpr = 2):
    """[64, 2] -> [COUNT, THREADS]: of int32 that a row's lanes of a warp have alike, and all of them where there is one row."""
    THREAD: gl.constexpr = thread_layout(COUNT)
    if COUNT == 1:
        x = x.reshape([4, 2, 8, 2]).permute([0, 2, 3, 1]).reshape([128])  # warp; key: bits 0 to 2; row; key: bit 3
        return gl.convert_layout(x, gl.SliceLayout(0, THREAD), assert_trivial=True)[None, :]
    else:
        return both_by_thread(x)


@gluon.jit
def both_by_thread(x):
    """:func:`by_thread` of two rows."""
    THREAD: gl.constexpr = thread_layout()
    x = x.reshape([4, 2, 8, 2]).permute([0, 2, 1, 3]).reshape([128])  # warp; key: bits 0 to 2, bit 3; row
    x = gl.convert_layout(x, gl.SliceLayout(0, THREAD), assert_trivial=True)
    return gl.convert_layout(gl.join(from_lane(x, False), from_lane(x, True)).permute([1, 0]), THREAD, assert_trivial=True)


@gluon.jit
def by_key(x):
    """[rows, THREADS] -> [64, 2]: each lane takes what is of its row, or of the only one."""
    if x.shape[0] == 1:
        x = x.reshape([4, 8, 2, 2]).permute([0, 3, 1, 2]).reshape([64, 2])
        return gl.convert_layout(x, logit_layout(1), assert_trivial=True)
    else:
        return both_by_key(x)


@gluon.jit
def both_by_key(x):
    """:func:`by_key` of two rows."""
    LINE: gl.constexpr = gl.SliceLayout(0, thread_layout())
    first, second = gl.split(x.permute([1, 0]))
    first = gl.convert_layout(first, LINE, assert_trivial=True)
    second = gl.convert_layout(second, LINE, assert_trivial=True)
    x = gl.where(gl.arange(0, THREADS, LINE) % ROWS != 0, second, first)
    x = x.reshape([4, 8, 2, 2]).permute([0, 2, 1, 3]).reshape([64, 2])
    return gl.convert_layout(x, logit_layout(2), assert_trivial=True)


@gluon.constexpr_function
def shared_layout(rows=2):
    """[rows, RUNS]: every thread has all of it."""
    registers = [[0, 1], [0, 2]] + ([[1, 0]] if rows == 2 else [])
    return gl.DistributedLinearLayout(registers, [[0, 0]] * 5, [[0, 0]] * 2, [], [rows, 4])


@gluon.jit
def told(x, memory):
    """[ROWS] for each run: what each warp has of every list, [ROWS, RUNS] int32, told to all of them.

    memory : [ROWS, RUNS] int32, shared
    """
    memory.store(x)
    even, odd = gl.split(memory.load(shared_layout(x.shape[0])).reshape([x.shape[0], 2, 2]))
    first, third = gl.split(even)
    second, fourth = gl.split(odd)
    LIST: gl.constexpr = gl.SliceLayout(1, thread_layout(x.shape[0]))
    return (
        gl.convert_layout(first, LIST, assert_trivial=True),
        gl.convert_layout(second, LIST, assert_trivial=True),
        gl.convert_layout(third, LIST, assert_trivial=True),
        gl.convert_layout(fourth, LIST, assert_trivial=True),
    )


@gluon.jit
def tell(x, memory):
    """As :func:`told`, of numbers that a warp's lanes have alike, [ROWS, THREADS]."""
    return told(gl.max(x.reshape([x.shape[0], RUNS, LANES]), 2), memory)


@gluon.jit
def sum_of(x, memory):
    """[ROWS, THREADS] int32 -> [ROWS]."""
    runs = told(gl.sum(x.reshape([x.shape[0], RUNS, LANES]), 2), memory)
    return runs[0] + runs[1] + (runs[2] + runs[3])


@gluon.jit
def largest_of(x, memory):
    """[ROWS, THREADS] float32 -> [ROWS]; NaN is dropped where another operand is none."""
    runs = told(gl.max(x.reshape([x.shape[0], RUNS, LANES]), 2).to(gl.int32, bitcast=True), memory)
    one = gl.maximum(runs[0].to(gl.float32, bitcast=True), runs[1].to(gl.float32, bitcast=True))
    two = gl.maximum(runs[2].to(gl.float32, bitcast=True), runs[3].to(gl.float32, bitcast=True))
    return gl.maximum(one, two)


@gluon.jit
def longest_of(runs):
    """Entries of the longest of all runs, of what :func:`tell` returns of their sizes."""
    return gl.max(gl.maximum(gl.maximum(runs[0], runs[1]), gl.maximum(runs[2], runs[3])), 0)


@gluon.jit
def before_run(runs):
    """[ROWS, THREADS]: the sum of what the runs before a thread's have, of what :func:`told` returns."""
    _, run = lane_and_run(runs[0].shape[0])
    before = gl.where(run > 0, runs[0][:, None], 0)
    before += gl.where(run > 1, runs[1][:, None], 0)
    return before + gl.where(run > 2, runs[2][:, None], 0)
