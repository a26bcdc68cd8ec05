"""A selection from lists whose runs a warpgroup's registers hold, in Gluon for Hopper, one source for Triton 3.6.0 to 3.9.0.

What :mod:`.warpgroup_lists` says of runs and layouts holds here, too. A list's logits are read once, all side by side: PLANES
of each lane and row, of which plane p is the entries from 32 p on, one for each lane. So a count takes a comparison and an
addition for 32 entries, and what is kept is moved from registers, while its indices are on their way.

Here equal logits are never told apart. What is looked for is a pivot that a wanted number of entries are not less than, which
exists but where many logits are equal, NaN or -inf: from those lists :func:`.warpgroup_lists.keep_top` selects. What is dropped
is less than all that are kept, top_k at least, so that no run has to be strict: a later key that equals the pivot may be taken.
"""

from capgate.compat.gluon import barrier, gl, gluon

from ...key_selection.device.search import key_of, value_of
from .lists import REREAD
from .warpgroup_lists import MINUS_ZERO, keep_top
from .warpgroup_threads import LANES, THREADS, by_thread, lane_and_run, largest_of, sum_of

SAMPLED = gl.constexpr(4)  # planes whose extremes the search begins with
AHEAD = gl.constexpr(16)  # planes whose indices are on their way while one is moved
CURVED = gl.constexpr(4)  # counts, the first ones, that are interpolated as those of a distribution
STRAIGHT = gl.constexpr(8)  # counts after which each third one halves the bracket
MOST_COUNTS = gl.constexpr(24)  # simulated: exactly top_k of both rows take 9 or 10, and 22 at most


@gluon.jit
def load_planes(values, place, size, PLANES: gl.constexpr):
    """PLANES tensors [ROWS, THREADS] of logits, -inf behind a run's last entry.

    place, size : [ROWS, THREADS], where a thread's run begins, and its entries, 32 * PLANES at most
    """
    lane, _run = lane_and_run(place.shape[0])
    first = values + (place + lane)
    left = size - lane
    held = ()
    for plane in gl.static_range(PLANES):
        held += (gl.load(first + plane * LANES, mask=left > plane * LANES, other=float("-inf")),)
    return held


@gluon.jit
def count_held(held, bar, nothing, memory, PLANES: gl.constexpr):
    """[ROWS]: how many logits are not less than ``bar``, [ROWS], which is more than -inf.

    nothing : 0.0, [ROWS, THREADS]
    """
    bar = bar[:, None] + nothing
    number = nothing
    for plane in gl.static_range(PLANES):
        number = gl.inline_asm_elementwise(
            "{ .reg .f32 one; set.geu.f32.f32 one, $1, $2; add.f32 $0, one, $3; }",
            "=f,f,f,f",
            [held[plane], bar, number],
            dtype=gl.float32,
            is_pure=True,
            pack=1,
        )
    return sum_of(number.to(gl.int32), memory)


@gluon.jit
def sampled_extremes(held, nothing, memory, PLANES: gl.constexpr):
    """(least, largest), [ROWS], of some of the logits that are more than -inf; neither is NaN."""
    EACH: gl.constexpr = max(PLANES // SAMPLED, 1)
    least = nothing + float("inf")
    most = -least
    for number in gl.static_range(min(SAMPLED, PLANES)):
        value = held[number * EACH]
        least = gl.minimum(least, gl.where(value > float("-inf"), value, float("inf")))
        most = gl.maximum(most, value)
    return -largest_of(-least, memory), largest_of(most, memory)


@gluon.jit
def logarithm(x):
    """To base 2, to 22 bits."""
    return gl.inline_asm_elementwise("lg2.approx.f32 $0, $1;", "=f,f", [x], gl.float32, True, 1)


@gluon.jit
def ratio(x, y):
    """x / y, to 22 bits."""
    return gl.inline_asm_elementwise("div.approx.f32 $0, $1, $2;", "=f,f,f", [x, y], gl.float32, True, 1)


@gluon.jit
def find_pivot(held, total, floor, fresh, top_k, most, nothing, memory, PLANES: gl.constexpr):
    """(pivot, whether each has one), [ROWS], and a number that is 0 where one has none: of each list with more than top_k
    entries what top_k to ``most`` of them are not less than, and more than -inf; of others -inf.

    total : [ROWS], entries of a list
    floor : [ROWS], what none of them is less than, or NaN
    fresh : whether they are a row's first keys, and not its largest ones: these lie like a distribution's tail
    """
    wanted = (top_k + most).to(gl.float32) * 0.5
    long = total > top_k
    pivot = gl.where(long, float("nan"), float("-inf"))
    low = key_of(floor)
    high = low
    at_low = total.to(gl.float32)
    at_high = at_low * (1.0 / (SAMPLED * THREADS))
    searched = long
    searching = gl.max(long.to(gl.int32), 0)
    step = gl.to_tensor(0)
    while searching != 0:
        if step == 0:  # and not before the loop, where the compiler waits for what it needs before it loads the rest
            sampled_least, sampled_most = sampled_extremes(held, nothing, memory, PLANES)
            low = gl.where(floor == floor, low, key_of(sampled_least))
            high = gl.maximum(key_of(sampled_most), low + 2)
        many, few, aim = at_low, at_high, wanted - 0.5
        if step < CURVED:
            if fresh != 0:
                many, few, aim = gl.sqrt(many), gl.sqrt(few), gl.sqrt(aim)
            else:
                many, few, aim = logarithm(many + 1.0), logarithm(few + 1.0), logarithm(aim + 1.0)
        low_value = value_of(low)
        guess = low_value + (value_of(high) - low_value) * ratio(many - aim, many - few)
        straight = (gl.abs(guess) < float("inf")) & ((step < STRAIGHT) | (step % 3 != 0))
        tried = gl.where(straight, key_of(guess), low + ((high - low) >> 1))
        tried = gl.minimum(gl.maximum(tried, low + 1), high - 1)
        at_tried = count_held(held, value_of(tried), nothing, memory, PLANES)
        enough = at_tried >= top_k
        pivot = gl.where(searched & enough & (at_tried <= most), value_of(tried), pivot)
        low = gl.where(enough, tried, low)
        high = gl.where(enough, high, tried)
        at_low = gl.where(enough, at_tried.to(gl.float32), at_low)
        at_high = gl.where(enough, at_high, at_tried.to(gl.float32))
        step += 1
        searched = searched & (pivot != pivot) & (low + 1 < high)
        searching = gl.where(step < MOST_COUNTS, gl.max(searched.to(gl.int32), 0), 0)
    return pivot, gl.min((pivot == pivot).to(gl.int32), 0)


@gluon.jit
def reaches(value, bar):
    """Whether a logit is not less than ``bar``."""
    return ~(value < bar)


@gluon.constexpr_function
def move_code(room):
    """The assembly of :func:`move`, for runs whose indices lie ``room`` entries behind their logits."""
    return f"""{{
        .reg .pred wanted;
        .reg .b32 votes, place, more;
        .reg .b64 address;
        setp.geu.f32 wanted, $1, $2;
        vote.sync.ballot.b32 votes, wanted, -1;
        and.b32 place, votes, $5;
        popc.b32 place, place;
        add.u32 place, place, $3;
        mad.wide.u32 address, place, 4, $4;
        @wanted st.global.f32 [address], $1;
        @wanted st.global.b32 [address+{4 * room}], $6;
        popc.b32 more, votes;
        add.u32 $0, more, $3;
    }}"""


@gluon.jit
def move(value, bar, kept, run, before, index, ROOM: gl.constexpr):
    """Store the lanes' logits that are not less than ``bar``, with their indices, behind the ``kept`` first entries of their
    runs; returns how many these are now. All [ROWS, THREADS].

    run : the run's address
    before : the lanes before a lane, as bits
    """
    CODE: gl.constexpr = move_code(ROOM)
    return gl.inline_asm_elementwise(
        CODE, "=&r,f,f,r,l,r,r", [value, bar, kept, run, before, index], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def keep_held(held, values, indices, place, bar, PLANES: gl.constexpr, ROOM: gl.constexpr):
    """Drop the entries that are less than ``bar``, [ROWS, THREADS]; the others move up, in their order, in their runs. Returns
    how many are kept; where the bar is -inf, all of them and what is behind them."""
    lane, _run = lane_and_run(place.shape[0])
    first = indices + (place + lane)
    run = (values + place).to(gl.int64)
    before = (place * 0 + 1 << lane) - 1
    kept = place * 0
    numbers = ()
    # Entries move towards the front alone, so that an index may be read before and after others are stored.
    for plane in gl.static_range(PLANES + AHEAD):
        if plane < PLANES:
            numbers += (gl.load(first + plane * LANES, mask=reaches(held[plane], bar), other=0),)
        if plane >= AHEAD:
            kept = move(held[plane - AHEAD], bar, kept, run, before, numbers[plane - AHEAD], ROOM)
    return kept


@gluon.jit
def keep_above(
    values, indices, place, size, total, floor, fresh, top_k, most, memory, PLANES: gl.constexpr, ROOM: gl.constexpr
):
    """Drop all but top_k to ``most`` entries of each list that has more, if each has such a pivot: the others move up.

    Returns the runs' sizes, [ROWS, THREADS]; what keys that are still to come have to be more than, [ROWS, THREADS], which
    means nothing of a list that has top_k entries at most; and 0 if a list has no such pivot, so that nothing was done.
    A barrier comes before it.
    """
    nothing = (place * 0).to(gl.float32)
    held = load_planes(values, place, size, PLANES)
    pivot, found = find_pivot(held, total, floor, fresh, top_k, most, nothing, memory, PLANES)
    if found != 0:
        bar = pivot[:, None] + nothing
        kept = keep_held(held, values, indices, place, bar, PLANES, ROOM)
        size = gl.where((total > top_k)[:, None], kept, size)
    key = gl.where(pivot == 0, MINUS_ZERO, key_of(pivot)) - 1
    return size, value_of(key)[:, None] + nothing, found


@gluon.jit
def floor_of(threshold, memory, COUNT: gl.constexpr = 2):
    """[64, ROWS] -> [ROWS]: what none of a row's entries is less than, NaN if that may be anything."""
    floor = by_thread(threshold.to(gl.int32, bitcast=True), COUNT).to(gl.float32, bitcast=True)
    return -largest_of(-floor, memory)


@gluon.jit
def select(
    values,
    indices,
    place,
    size,
    total,
    floor,
    fresh,
    top_k,
    most,
    longest,
    memory,
    counters,
    HELD: gl.constexpr,
    ROOM: gl.constexpr,
):
    """As :func:`.warpgroup_lists.keep_top`, but that up to ``most`` entries of a list may be left: from registers where they
    hold the ``longest`` run, as HELD entries."""
    barrier()
    found = longest * 0
    kept = size
    bar = (place * 0).to(gl.float32)
    if longest <= HELD:
        kept, bar, found = keep_above(
            values, indices, place, size, total, floor, fresh, top_k, most, memory, HELD // LANES, ROOM
        )
    over = size < 0
    long = (total > top_k)[:, None] & (place >= 0)
    if found == 0:
        if counters is not None:
            gl.atomic_add(counters + REREAD, gl.sum((total > top_k).to(gl.int32), 0))
        kept, bar, long, over = keep_top(values, indices, place, size, total, top_k, longest, memory, counters)
    return kept, bar, long, over
