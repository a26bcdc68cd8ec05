"""A row's list of entries, in Gluon for CDNA4 (gfx950), one source for Triton 3.6.0 to 3.9.0: what is appended to it, what is
dropped from it, and how it becomes the row's result. Compiled and emulated; it has not run on a GPU.

What :mod:`.lists` says of entries and selections holds here, too. Every wave has rows of its own, and its 64 lanes are 64 keys
or entries in a row. So a comparison is a bit for each lane in a pair of scalar registers: their number is one scalar
instruction, a lane's rank two vector ones, and nothing goes through LDS. What belongs to a row is [ROWS, 64], the same in all
lanes of its wave, mostly as a scalar register.

Wait states of which the compiler knows nothing, because they are inside assembly or at its border: a vector instruction may not
read a scalar register for two states after another wrote it. Of a comparison something scalar is made first, and what a block
reads in a vector instruction comes two instructions after its beginning, or is older.

No block hands a mask to the next: where a wave has two rows LLVM joins the arithmetic on two masks, in vector registers.
"""

from capgate.compat.gluon import cdna4, constexpr_function, gl, gluon

from ...key_selection.device.search import PAST_LARGEST, key_of, value_of
from ...key_selection.device.words import index_of
from .lists import CLOSED, REFRESHED, TIED

LANES = gl.constexpr(64)
# Loads of a loop's pass, which wait together: with 4 of them Triton 3.6.0 and 3.7.1 spill 1 to 3 scalar registers more.
UNROLLED = gl.constexpr(2)
STEPS = gl.constexpr(8)  # of so many in the search for a threshold one draws the bracket in


@gluon.jit
def agreed(x):
    """The first lane's value, in a scalar register: of a number that all lanes have, of which the compiler cannot know it. What
    assembly takes from a scalar register must come from one, right here: LLVM does not move it there, and may keep what loops
    carry in vector registers.

    Wait states: one before a lane is read, and behind it as many as an address may need.
    """
    return gl.inline_asm_elementwise(
        "s_nop 0\n\tv_readfirstlane_b32 $0, $1\n\ts_nop 4", "=s,v", [x], dtype=x.dtype, is_pure=False, pack=1
    )


@constexpr_function
def passing(BEGINS):
    """The assembly of :func:`pass_keys`. Operands: rank, number, a mask, with BEGINS another one; base, end, logit, threshold,
    with BEGINS begin."""
    base, end, logit, threshold, begin = (f"${place + BEGINS}" for place in range(3, 8))
    return "\n\t".join(
        (
            *((f"v_cmp_ge_i32_e64 $3, {base}, {begin}",) if BEGINS else ()),
            f"v_cmp_lt_i32_e64 $2, {base}, {end}",
            f"v_cmp_nge_f32_e32 vcc, {threshold}, {logit}",
            *(("s_and_b64 $2, $2, $3",) if BEGINS else ()),
            "s_and_b64 vcc, vcc, $2",
            "s_bcnt1_i32_b64 $1, vcc",
            "v_mbcnt_lo_u32_b32 $0, vcc_lo, 0",
            "v_mbcnt_hi_u32_b32 $0, vcc_hi, $0",
            "v_cndmask_b32_e32 $0, 0.5, $0, vcc",
        )
    )


@gluon.jit
def pass_keys(logit, threshold, base, begin, end):
    """(rank, number): which of the keys that pass a lane's is, and how many pass: begin <= base < end, and a logit that is not
    <= the threshold; NaN passes. The rank of a lane that does not pass is the bits of 0.5, for which an instruction has room:
    times four bytes they are past what a buffer store reaches.

    base : scalar; begin, end : of each lane, its place subtracted; begin may be None, where no key lies in front
    """
    if begin is None:
        rank, number, _ = gl.inline_asm_elementwise(
            passing(False), "=&v,=&s,=&s,s,v,v,v,~{vcc},~{scc}", [base, end, logit, threshold],
            dtype=(gl.int32, gl.int32, gl.int64), is_pure=False, pack=1,
        )  # fmt: skip
    else:
        rank, number, _, _ = gl.inline_asm_elementwise(
            passing(True), "=&v,=&s,=&s,=&s,s,v,v,v,v,~{vcc},~{scc}", [base, end, logit, threshold, begin],
            dtype=(gl.int32, gl.int32, gl.int64, gl.int64), is_pure=False, pack=1,
        )  # fmt: skip
    return rank, number


@gluon.jit
def number_reaching(value, bar, left):
    """How many of the first ``left`` lanes, which may be none or all, have a value that is not less than ``bar``."""
    number, _ = gl.inline_asm_elementwise(
        """s_max_i32 $0, $4, 0
        s_bfm_b64 $1, $0, 0
        s_cmp_ge_i32 $4, 64
        s_cselect_b64 $1, -1, $1
        v_cmp_ngt_f32_e32 vcc, $3, $2
        s_and_b64 vcc, vcc, $1
        s_bcnt1_i32_b64 $0, vcc""",
        "=&s,=&s,v,s,s,~{vcc},~{scc}",
        [value, bar, left],
        dtype=(gl.int32, gl.int64),
        is_pure=False,
        pack=1,
    )
    return number


@gluon.jit
def number_of_nan(value, left):
    """As :func:`number_reaching`: how many are NaN."""
    number, _ = gl.inline_asm_elementwise(
        """s_max_i32 $0, $3, 0
        s_bfm_b64 $1, $0, 0
        s_cmp_ge_i32 $3, 64
        s_cselect_b64 $1, -1, $1
        v_cmp_u_f32_e32 vcc, $2, $2
        s_and_b64 vcc, vcc, $1
        s_bcnt1_i32_b64 $0, vcc""",
        "=&s,=&s,v,s,~{vcc},~{scc}",
        [value, left],
        dtype=(gl.int32, gl.int64),
        is_pure=False,
        pack=1,
    )
    return number


@gluon.jit
def keep_lanes(value, bar, only_nan, spare, left):
    """(rank, number, equals): which of the lanes that are kept one is, as :func:`pass_keys` has it; how many are; and how many
    equal bar.

    Of the first ``left`` lanes those are kept that are not <= bar, and the first ``spare`` of those that equal it. With
    ``only_nan``, for which bar is inf, NaN is what is equal, and nothing is above.
    """
    rank, number, equals, _, _ = gl.inline_asm_elementwise(
        """s_max_i32 $2, $9, 0
        s_bfm_b64 $4, $2, 0
        s_cmp_ge_i32 $9, 64
        s_cselect_b64 $4, -1, $4
        v_cmp_eq_f32_e32 vcc, $6, $5
        s_and_b64 $3, vcc, $4
        v_cmp_nge_f32_e32 vcc, $6, $5
        s_and_b64 $4, vcc, $4
        s_cmp_lg_u32 $7, 0
        s_cselect_b64 vcc, $4, $3
        s_cselect_b64 $4, 0, $4
        s_mov_b64 $3, vcc
        s_bcnt1_i32_b64 $2, vcc
        v_mbcnt_lo_u32_b32 $0, vcc_lo, 0
        v_mbcnt_hi_u32_b32 $0, vcc_hi, $0
        v_cmp_gt_i32_e32 vcc, $8, $0
        s_and_b64 vcc, vcc, $3
        s_or_b64 vcc, vcc, $4
        s_bcnt1_i32_b64 $1, vcc
        v_mbcnt_lo_u32_b32 $0, vcc_lo, 0
        v_mbcnt_hi_u32_b32 $0, vcc_hi, $0
        v_cndmask_b32_e32 $0, 0.5, $0, vcc""",
        "=&v,=&s,=&s,=&s,=&s,v,s,s,s,s,~{vcc},~{scc}",
        [value, bar, only_nan, spare, left],
        dtype=(gl.int32, gl.int32, gl.int32, gl.int64, gl.int64),
        is_pure=False,
        pack=1,
    )
    return rank, number, equals


@gluon.jit
def count_rows(counters, which: gl.constexpr, rows):
    """Count the rows, [ROWS, 64] of truth, in a program's own counters."""
    number = gl.sum(gl.max(rows.to(gl.int32), 1), 0)
    gl.store(counters + which, gl.load(counters + which) + number)


@gluon.jit
def append(logit, index, rank, number, past, values, indices):
    """Append ``number`` logits of the lanes, by their rank, and their indices to the lists of the rows; returns where these end
    now.

    logit, index, rank : [ROWS, 64]
    past : where the lists end, from ``values`` and ``indices``
    """
    place = past + rank
    cdna4.buffer_store(logit, values, place)
    cdna4.buffer_store(index, indices, place)
    return past + number


@gluon.jit
def load_side_by_side(values, place):
    """UNROLLED tensors of 64 entries of each row, side by side."""
    loaded = ()
    for part in gl.static_range(UNROLLED):
        loaded += (cdna4.buffer_load(values, place + part * LANES),)
    return loaded


@gluon.jit
def count_reaching(values, place, size, longest, bar):
    """How many of a list's entries are not less than ``bar``.

    place : of each lane's first entry; lists have room for as many as a pass of the loop reads
    """
    count = gl.full(size.shape, 0, gl.int32, size.type.layout)
    for start in range(0, longest, UNROLLED * LANES):
        loaded, left = load_side_by_side(values, place + start), agreed(size - start)
        for part in gl.static_range(UNROLLED):
            count += number_reaching(loaded[part], bar, left - part * LANES)
    return count


@gluon.jit
def in_all_lanes(x, like):
    """[ROWS] -> [ROWS, 64], as ``like``."""
    x, like = gl.broadcast(x[:, None], like)
    return x


@gluon.jit
def extremes(values, first, lane, size, longest):
    """(least, largest, how many are NaN) of each list's entries; neither of the former is NaN."""
    infinite = gl.full(size.shape, float("inf"), gl.float32, size.type.layout)
    least, most = infinite, -infinite
    strange = gl.full(size.shape, 0, gl.int32, size.type.layout)
    end = gl.maximum(size - 1, 0)
    for start in range(0, longest, UNROLLED * LANES):
        loaded, left = (), agreed(size - start)
        for part in gl.static_range(UNROLLED):  # past the end the last one, again
            loaded += (cdna4.buffer_load(values, first + gl.minimum(lane + (start + part * LANES), end)),)
        for part in gl.static_range(UNROLLED):
            least = gl.minimum(least, loaded[part])
            most = gl.maximum(most, loaded[part])
            strange += number_of_nan(loaded[part], left - part * LANES)
    return in_all_lanes(gl.min(least, 1), size), in_all_lanes(gl.max(most, 1), size), strange


@gluon.jit
def draw_in(values, place, lane, size, longest, low, high):
    """[low, high) without the keys at either end that no logit has; of equal logits one is left."""
    low_value, high_value = value_of(low), value_of(high - 1)
    infinite = gl.full(size.shape, float("inf"), gl.float32, size.type.layout)
    least, most = infinite, -infinite
    for start in range(0, longest, UNROLLED * LANES):
        loaded = load_side_by_side(values, place + start)
        for part in gl.static_range(UNROLLED):
            value = loaded[part]
            exists = lane < size - start - part * LANES
            least = gl.minimum(least, gl.where(exists & (value >= low_value), value, float("inf")))
            most = gl.maximum(most, gl.where(exists & (value <= high_value), value, float("-inf")))
    least, most = in_all_lanes(gl.min(least, 1), size), in_all_lanes(gl.max(most, 1), size)
    # 0 is added because -0 and 0 have two keys: the larger one serves both.
    return gl.maximum(low, key_of(least + 0.0)), gl.minimum(high, key_of(most + 0.0) + 1)


@gluon.jit
def find_threshold(values, first, lane, size, top_k, longest):
    """(threshold, whether all top_k are NaN, how many equals of the threshold are kept) of lists with more than top_k entries.
    All equals are kept where exactly top_k reach the threshold; where all are NaN it is inf.

    Of other lists the threshold is NaN, which drops none. How it is found: :mod:`...key_selection.device.search`. Here the
    first brackets are the extremes, and counts are interpolated as if they fell with the square of the distance from the
    largest: 6 to 7 counts of logits as they come, where a straight line takes 9 to 11 (simulated).
    """
    least, most, at_high = extremes(values, first, lane, size, longest)
    long = size > top_k
    closed = long & (at_high >= top_k)
    open_list = long & ~closed
    low = gl.where(open_list, key_of(least + 0.0), PAST_LARGEST)
    high = gl.where(open_list, key_of(most + 0.0) + 1, PAST_LARGEST)
    at_low = gl.where(open_list, size, top_k)
    searched = (at_low != top_k) & (high - low > 1)
    searching = agreed(gl.max(gl.max(searched.to(gl.int32), 1), 0))
    step = searching  # 1, which the compiler is not to know: it would jump into the loop's middle, and structure that wrongly
    while searching != 0:
        if step % STEPS == 0:
            inner_low, inner_high = draw_in(values, first + lane, lane, size, longest, low, high)
            low = gl.where(searched, inner_low, low)
            high = gl.where(searched, inner_high, high)
        many, few = at_low.to(gl.float32), at_high.to(gl.float32)
        share = (many - top_k + 0.5) / gl.maximum(many - few, 1.0)
        if step < STEPS:
            many, few = gl.sqrt(many), gl.sqrt(few)
            share = (many - gl.sqrt(gl.full(size.shape, 0.0, gl.float32, size.type.layout) + top_k)) / (many - few)
        low_value = value_of(low)
        guess = low_value + (value_of(high - 1) - low_value) * share
        halfway = low + ((high - low) >> 1)
        straight = (gl.abs(guess) < float("inf")) & ((step < STEPS) | (step % 3 != 0))
        pivot = gl.where(straight, key_of(guess), halfway)
        pivot = gl.minimum(gl.maximum(pivot, low + 1), high - 1)
        at_pivot = count_reaching(values, first + lane, size, longest, agreed(value_of(pivot)))
        enough = at_pivot >= top_k
        low = gl.where(searched & enough, pivot, low)
        at_low = gl.where(searched & enough, at_pivot, at_low)
        high = gl.where(searched & ~enough, pivot, high)
        at_high = gl.where(searched & ~enough, at_pivot, at_high)
        step += 1
        searched = (at_low != top_k) & (high - low > 1)
        searching = agreed(gl.max(gl.max(searched.to(gl.int32), 1), 0))
    threshold = gl.where(open_list, value_of(low), gl.where(long, float("inf"), float("nan")))
    spare = gl.where(closed, top_k, gl.where(at_low == top_k, size, top_k - at_high))
    return agreed(threshold), closed, agreed(spare)


@gluon.jit
def keep_top(values, indices, first, past, lane, top_k, longest, counters):
    """Drop all but top_k entries of each list that has more; the others move up, in their order.

    Returns where the lists end now, their thresholds (NaN if nothing was dropped), and which of them have NaN alone.
    """
    size = agreed(past - first)
    threshold, closed, spare = find_threshold(values, first, lane, size, top_k, longest)
    past = first
    equals = gl.full(size.shape, 0, gl.int32, size.type.layout)
    only_nan = agreed(closed.to(gl.int32))
    for start in range(0, longest, UNROLLED * LANES):
        # All of a pass are read before the first is written, and entries move towards the front alone.
        value_parts = load_side_by_side(values, first + lane + start)
        index_parts = load_side_by_side(indices, first + lane + start)
        left, wanted = agreed(size - start), agreed(spare - equals)
        for part in gl.static_range(UNROLLED):
            value = value_parts[part]
            rank, number, more = keep_lanes(value, threshold, only_nan, wanted, left - part * LANES)
            wanted -= more
            equals += more
            past = append(value, index_parts[part], rank, number, past, values, indices)
    if counters is not None:
        count_rows(counters, TIED, (size > top_k) & (equals > spare))
        count_rows(counters, CLOSED, closed)
    return past, threshold, closed


@gluon.jit
def longest_of(size):
    """The entries of the longest of a program's lists."""
    return agreed(gl.max(gl.max(size, 1), 0))


@gluon.jit
def refresh(
    past, threshold, end, longest, values, indices, place, lane, top_k, counters,
    COMING: gl.constexpr,  # keys before the next look, for all of which a list must have room
    ENTRIES: gl.constexpr,  # that a list has room for
):  # fmt: skip
    """Select from all lists, of which the longest, with ``longest`` entries, has more than top_k; returns ``past``,
    ``threshold`` and ``end`` of the rows anew. It may as well be a row's last selection, which makes no room.

    Keys that follow have higher indices: only larger logits and NaN can still be in the result, and where all that are kept are
    NaN none can.

    place : where lists begin, and a lane's first entry; end : of each lane, its place subtracted
    """
    if counters is not None:  # noqa: SIM102 - of constants alone "and" is decided at compile time
        if longest > ENTRIES - COMING:
            count_rows(counters, REFRESHED, past + lane - place > top_k)
    past, least, closed = keep_top(values, indices, agreed(place - lane), past, lane, top_k, longest, counters)
    threshold = agreed(gl.where(least == least, least, threshold))
    return past, threshold, gl.where(closed, -LANES, end)


@gluon.jit
def from_here(x):
    """``x``, of which the compiler knows from here on: addresses that are made of it are not made in front of a program's
    loops, and take no registers in them."""
    return gl.inline_asm_elementwise("", "=v,0", [x], dtype=x.dtype, is_pure=False, pack=1)


@gluon.jit
def copy_lists(values, indices, place, lane, size, wanted, to_values, to_indices, offset):
    """Copy the ``size`` entries of each list to another place where it is wanted, ``offset`` from ``to_values``, int64."""
    longest = longest_of(size)
    for start in range(0, longest, LANES):
        exists = wanted & (lane + start < size)
        value = gl.load(values + place + start, mask=exists)
        index = gl.load(indices + place + start, mask=exists)
        gl.store(to_values + offset + lane + start, value, mask=exists)
        gl.store(to_indices + offset + lane + start, index, mask=exists)


@gluon.jit
def table_of(page_table, request, num_requests, num_pages, stride_table):
    """(the row ``request``, int64, of a page table for each list, its pages): none of a row that the table does not have."""
    known = (request >= 0) & (request < num_requests)
    return page_table + gl.where(known, request, 0) * stride_table, gl.where(known, num_pages, 0)


@gluon.jit
def write_lists(values, indices, place, lane, size, room, wanted, results, scores, offset, pages):
    """Write the ``size`` entries of each list to another place, and up to ``room`` entries -1 and -inf, where it is wanted.

    results, scores, offset : where to, int64 from ``results`` and from ``scores``; scores may be None
    pages : (page table or None, pages of the rows' requests, their stride, positions of a page), see :func:`index_of`
    """
    for start in range(0, room, LANES):
        number = lane + start
        exists = wanted & (number < size)
        numbering = (indices, 0, pages[0], pages[1], pages[2], pages[3])
        index = index_of(place + start, exists, numbering, -1)
        index = gl.where(exists, index, -1)
        target = wanted & (number < room)
        gl.store(results + offset[0] + number, index, mask=target)
        if scores is not None:
            value = gl.load(values + place + start, mask=exists, other=float("-inf"))
            gl.store(scores + offset[1] + number, value, mask=target)
