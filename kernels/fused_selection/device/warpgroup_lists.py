"""A row's list of entries, in Gluon for Hopper, one source for Triton 3.6.0 to 3.9.0: what is appended to it, what is dropped
from it, and how it becomes the row's result.

What :mod:`.lists` says of entries and selections holds here, too. But a list is four *runs*, one for each warp of a warpgroup,
and warp w has the keys of the w-th quarter of the program's keys: in a run entries are in the order of their keys, and those of
one run come before those of the next. So no warp has to know how many keys pass in another one: a ballot tells how many of a
warp's do, and which of them a lane's is.

A run is its logits, and ROOM places behind each of them its index. Which threads have what of it: :mod:`.warpgroup_threads`.
"""

from capgate.compat.gluon import barrier, gl, gluon

from ...key_selection.device.search import PAST_LARGEST, key_of, value_of
from ...key_selection.device.words import index_of
from .lists import CLOSED, TIED
from .warpgroup_threads import (
    LANES,
    RUNS,
    THREADS,
    before_run,
    entry_layout,
    lane_and_run,
    largest_of,
    longest_of,
    sum_of,
    tell,
    told,
)

# Loads of a loop's pass wait together: of as many entries for each lane, four adjacent ones where their order is no matter.
WIDE = gl.constexpr(16)
ADJACENT = gl.constexpr(4)
UNROLLED = gl.constexpr(8)  # of the loop that moves entries
SPARE = gl.constexpr(16)  # places of a run that are no entries: the first of them are filled before a selection
MINUS_ZERO = gl.constexpr(0x7FFFFFFF)  # the key of -0, the lower one of the two zeros
STEPS = gl.constexpr(8)  # of so many in the search for a threshold one draws the bracket in


@gluon.constexpr_function
def append_code(room):
    """The assembly of :func:`append`, for runs whose indices lie ``room`` entries behind their logits."""
    return f"""{{
        .reg .pred inside, passes;
        .reg .b32 votes, own, place;
        .reg .b64 address;
        setp.lt.u32 inside, $3, $4;
        setp.gtu.and.f32 passes, $1, $2, inside;
        vote.sync.ballot.b32 votes, passes, -1;
        and.b32 place, votes, $6;
        popc.b32 place, place;
        and.b32 own, votes, $5;
        popc.b32 own, own;
        add.u32 place, place, $7;
        mad.wide.u32 address, place, 4, $8;
        @passes st.global.f32 [address], $1;
        @passes st.global.b32 [address+{4 * room}], $9;
        add.u32 $0, own, $7;
    }}"""


@gluon.jit
def append(logit, threshold, distance, length, mine, earlier, past, run, index, ROOM: gl.constexpr):
    """Append the logits inside their window that are not <= the threshold, with their indices, to the runs of their rows and
    warp; returns how many entries these have now. All [64, ROWS].

    distance, length : of a key from its window's begin, and of the window
    mine, earlier : the lanes of the same row, as bits, and those of them with smaller keys
    run : the run's address
    """
    CODE: gl.constexpr = append_code(ROOM)
    return gl.inline_asm_elementwise(
        CODE,
        "=&r,f,f,r,r,r,r,r,l,r",
        [logit, threshold, distance, length, mine, earlier, past, run, index],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def lanes_of(key, row, COUNT: gl.constexpr = 2):
    """(mine, earlier), [64, 2], of :func:`append`; ``key`` is that of a warp's 16. Where there is one row, lanes of a second
    one have its lanes, too."""
    mine = key * 0
    earlier = key * 0
    for other in gl.static_range(16):
        # As logit_layout(COUNT) has lanes.
        bit = (key * 0 + 1) << (row * (COUNT - 1) + (other // 8) * COUNT + (other % 8) * 4)
        mine |= bit
        earlier |= gl.where(key > other, bit, 0)
    return mine, earlier


@gluon.jit
def load_wide(values, place, start, size, other):
    """(logits, which of them exist), [ROWS, THREADS, WIDE]: of a pass from ``start`` on. Of four adjacent ones none is loaded
    if the first is past the run's end.

    place, size : [ROWS, THREADS], where a thread's run begins, and its entries
    """
    lane, _ = lane_and_run(place.shape[0])
    number = gl.arange(0, WIDE, gl.SliceLayout(0, gl.SliceLayout(0, entry_layout(place.shape[0]))))[None, :][None, :, :]
    group = (lane * ADJACENT + start)[:, :, None] + number // ADJACENT * (LANES * ADJACENT)
    entry = group + number % ADJACENT
    value = gl.load(values + (place[:, :, None] + entry), mask=group < size[:, :, None], other=other)
    return value, entry < size[:, :, None]


@gluon.jit
def count_reaching(values, place, longest, size, bar, memory):
    """[ROWS]: how many of a list's entries are not less than ``bar``, [ROWS], which is more than -inf; behind a run's last
    entry are three of -inf at least.

    longest : entries of the longest run
    """
    count = place * 0
    for start in range(0, longest, LANES * WIDE):
        value, _exists = load_wide(values, place, start, size, float("-inf"))
        count += gl.sum(gl.where(value < bar[:, None][:, :, None], 0, 1), 2)
    return sum_of(count, memory)


@gluon.jit
def extremes(values, place, longest, size, memory):
    """(least, largest, how many are NaN), [ROWS], of each list's entries; neither of the former is NaN."""
    least = (place * 0).to(gl.float32) + float("inf")
    most = -least
    strange = place * 0
    for start in range(0, longest, LANES * WIDE):
        value, exists = load_wide(values, place, start, size, None)
        strange += gl.sum(gl.where(exists & (value != value), 1, 0), 2)
        value = gl.where(exists, value, float("nan"))  # which is dropped where another operand is none
        least = gl.minimum(least, gl.min(value, 2))
        most = gl.maximum(most, gl.max(value, 2))
    return -largest_of(-least, memory), largest_of(most, memory), sum_of(strange, memory)


@gluon.jit
def draw_in(values, place, longest, size, low, high, memory):
    """[low, high) without the keys at either end that no logit has; of equal logits one is left."""
    low_value = value_of(low)[:, None][:, :, None]
    high_value = value_of(high - 1)[:, None][:, :, None]
    least = (place * 0).to(gl.float32) + float("inf")
    most = -least
    for start in range(0, longest, LANES * WIDE):
        value, exists = load_wide(values, place, start, size, None)
        least = gl.minimum(least, gl.min(gl.where(exists & (value >= low_value), value, float("inf")), 2))
        most = gl.maximum(most, gl.max(gl.where(exists & (value <= high_value), value, float("-inf")), 2))
    # 0 is added because -0 and 0 have two keys: the larger one serves both.
    least, most = -largest_of(-least, memory), largest_of(most, memory)
    return gl.maximum(low, key_of(least + 0.0)), gl.minimum(high, key_of(most + 0.0) + 1)


@gluon.jit
def find_threshold(values, place, longest, size, total, top_k, most, memory):
    """(threshold, whether all top_k are NaN, how many equals of the threshold are kept), [ROWS], of lists with more than top_k
    entries, of which top_k to ``most`` are kept, and exactly top_k where only equal logits would be more; as
    :func:`.wave_lists.find_threshold`, which says how it is found.

    total : [ROWS], entries of a list
    """
    wanted = (top_k + most).to(gl.float32) * 0.5
    least, largest, at_high = extremes(values, place, longest, size, memory)
    long = total > top_k
    closed = long & (at_high >= top_k)
    open_list = long & ~closed
    low = gl.where(open_list, key_of(least + 0.0), PAST_LARGEST)
    high = gl.where(open_list, key_of(largest + 0.0) + 1, PAST_LARGEST)
    at_low = gl.where(open_list, total, top_k)
    searched = (at_low > most) & (high - low > 1)
    searching = gl.max(searched.to(gl.int32), 0)
    step = gl.to_tensor(1)
    while searching != 0:
        if step % STEPS == 0:
            inner_low, inner_high = draw_in(values, place, longest, size, low, high, memory)
            low = gl.where(searched, inner_low, low)
            high = gl.where(searched, inner_high, high)
        many, few = at_low.to(gl.float32), at_high.to(gl.float32)
        share = (many - wanted + 0.5) / gl.maximum(many - few, 1.0)
        if step < STEPS:
            many, few = gl.sqrt(many), gl.sqrt(few)
            share = (many - gl.sqrt(wanted)) / (many - few)
        low_value = value_of(low)
        guess = low_value + (value_of(high - 1) - low_value) * share
        halfway = low + ((high - low) >> 1)
        straight = (gl.abs(guess) < float("inf")) & ((step < STEPS) | (step % 3 != 0))
        pivot = gl.where(straight, key_of(guess), halfway)
        pivot = gl.minimum(gl.maximum(pivot, low + 1), high - 1)
        at_pivot = count_reaching(values, place, longest, size, value_of(pivot), memory)
        enough = at_pivot >= top_k
        low = gl.where(searched & enough, pivot, low)
        at_low = gl.where(searched & enough, at_pivot, at_low)
        high = gl.where(searched & ~enough, pivot, high)
        at_high = gl.where(searched & ~enough, at_pivot, at_high)
        step += 1
        searched = (at_low > most) & (high - low > 1)
        searching = gl.max(searched.to(gl.int32), 0)
    threshold = gl.where(open_list, value_of(low), gl.where(long, float("inf"), float("nan")))
    spare = gl.where(closed, top_k, gl.where(at_low <= most, total, top_k - at_high))
    return threshold, closed, spare


@gluon.jit
def keep_lanes(value, exists, bar, only_nan, spare):
    """(rank, number, equals): which of the lanes that are kept one is, -1 if it is not; how many are; and how many equal bar.

    Of the lanes that ``exist`` those are kept that are not <= bar, and the first ``spare`` of those that equal it. With
    ``only_nan``, for which bar is inf, NaN is what is equal, and nothing is above.
    """
    return gl.inline_asm_elementwise(
        """{
        .reg .pred real, strange, plain, above, equal, kept;
        .reg .b32 votes, before;
        setp.ne.b32 real, $4, 0;
        setp.ne.b32 strange, $6, 0;
        not.pred plain, strange;
        setp.eq.and.f32 equal, $3, $5, real;
        setp.gtu.and.f32 above, $3, $5, real;
        and.pred equal, equal, plain;
        and.pred strange, strange, above;
        and.pred above, above, plain;
        or.pred equal, equal, strange;
        mov.u32 before, %lanemask_lt;
        vote.sync.ballot.b32 votes, equal, -1;
        popc.b32 $2, votes;
        and.b32 votes, votes, before;
        popc.b32 votes, votes;
        setp.lt.and.s32 kept, votes, $7, equal;
        or.pred kept, kept, above;
        vote.sync.ballot.b32 votes, kept, -1;
        popc.b32 $1, votes;
        and.b32 votes, votes, before;
        popc.b32 votes, votes;
        selp.b32 $0, votes, -1, kept;
        }""",
        "=&r,=&r,=&r,f,r,f,r,r",
        [value, exists, bar, only_nan, spare],
        dtype=(gl.int32, gl.int32, gl.int32),
        is_pure=False,
        pack=1,
    )


@gluon.jit
def keep_top(values, indices, place, size, total, top_k, most, longest, memory, counters):
    """Drop all but top_k to ``most`` entries of each list that has more; the others move up, in their order, in their runs.

    Returns the runs' sizes, [ROWS, THREADS], and what keys have to be more than that are still to come: (bar, whether it is
    one, whether none is wanted). Of the runs behind the last entry that equals the bar and is kept, and of its own run, these
    have higher indices, and must be larger; of those before it they may be equal. If all that are kept are NaN, only NaN may
    still come, and behind the last of them nothing. Before it come a barrier, and ADJACENT times -inf behind each run.
    """
    lane, run = lane_and_run(place.shape[0])
    threshold, closed, spare = find_threshold(values, place, longest, size, total, top_k, most, memory)
    bar = threshold[:, None] + (place * 0).to(gl.float32)
    only_nan = closed.to(gl.int32)[:, None] + place * 0

    # How many equals the runs before have: where not all of them are kept.
    equals = place * 0
    tied = (spare < total) & (total > top_k)
    if gl.max(tied.to(gl.int32), 0) != 0:
        for start in range(0, longest, LANES * WIDE):
            value, exists = load_wide(values, place, start, size, None)
            equal = gl.where(only_nan[:, :, None] != 0, value != value, value == bar[:, :, None])
            equals += gl.sum((equal & exists).to(gl.int32), 2)
        equals = before_run(told(gl.sum(equals.reshape([place.shape[0], RUNS, LANES]), 2), memory))
    left = spare[:, None] - equals
    some = left > 0
    equals = place * 0
    kept = place * 0
    for start in range(0, longest, LANES * UNROLLED):
        # All of a pass are read before the first is written, and entries move towards the front alone.
        value_parts, index_parts = (), ()
        for part in gl.static_range(UNROLLED):
            entry = lane + (start + part * LANES)
            value_parts += (gl.load(values + place + entry, mask=entry < size, other=0.0),)
            index_parts += (gl.load(indices + place + entry, mask=entry < size, other=0),)
        for part in gl.static_range(UNROLLED):
            exists = (lane + (start + part * LANES) < size).to(gl.int32)
            rank, number, more = keep_lanes(value_parts[part], exists, bar, only_nan, left)
            gl.store(values + place + kept + rank, value_parts[part], mask=rank >= 0)
            gl.store(indices + place + kept + rank, index_parts[part], mask=rank >= 0)
            kept += number
            left -= more
            equals += more
    barrier()
    if counters is not None:
        gl.atomic_add(counters + TIED, gl.sum(tied.to(gl.int32), 0))
        gl.atomic_add(counters + CLOSED, gl.sum(closed.to(gl.int32), 0))
    runs = tell(gl.where(some, equals, 0), memory)
    last = gl.where(runs[1] > 0, 1, gl.where(runs[0] > 0, 0, -1))
    last = gl.where(runs[3] > 0, 3, gl.where(runs[2] > 0, 2, last))[:, None]
    nothing = (only_nan != 0) & (run >= last)
    key = gl.where(bar == 0, MINUS_ZERO, key_of(bar))
    bar = gl.where((run >= last) | (only_nan != 0), bar, value_of(key - 1))
    return kept, bar, (total > top_k)[:, None] & (place >= 0), nothing


@gluon.jit
def write_runs(values, indices, place, size, runs, room, wanted, results, scores, offset, pages):
    """Write the entries of each list to another place, and up to ``room`` entries -1 and -inf, where it is wanted.

    wanted : [ROWS, 1]
    results, scores, offset : where to, int64 from ``results`` and from ``scores``, [ROWS, 1]; scores may be None
    pages : (page table or None, pages of the rows' requests, their stride, positions of a page), see :func:`index_of`
    """
    lane, run = lane_and_run(place.shape[0])
    before = before_run(runs)
    total = (runs[0] + runs[1] + (runs[2] + runs[3]))[:, None]
    longest = longest_of(runs)
    numbering = (indices, 0, pages[0], pages[1], pages[2], pages[3])
    for start in range(0, longest, LANES * UNROLLED):
        index_parts, value_parts = (), ()
        for part in gl.static_range(UNROLLED):
            entry = lane + (start + part * LANES)
            index_parts += (index_of(place + entry, wanted & (entry < size), numbering, -1),)
            if scores is not None:
                value_parts += (gl.load(values + place + entry, mask=wanted & (entry < size), other=0.0),)
        for part in gl.static_range(UNROLLED):
            entry = lane + (start + part * LANES)
            gl.store(results + offset[0] + (before + entry), index_parts[part], mask=wanted & (entry < size))
            if scores is not None:
                gl.store(scores + offset[1] + (before + entry), value_parts[part], mask=wanted & (entry < size))
    for start in range(0, room, THREADS):
        number = lane + run * LANES + start
        missing = wanted & (number >= total) & (number < room)
        gl.store(results + offset[0] + number, place * 0 - 1, mask=missing)
        if scores is not None:
            gl.store(scores + offset[1] + number, (place * 0).to(gl.float32) + float("-inf"), mask=missing)
