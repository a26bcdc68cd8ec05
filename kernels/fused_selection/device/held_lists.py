"""A selection from lists whose runs a warpgroup's registers hold, in Gluon for Hopper, one source for Triton 3.6.0 to 3.9.0.

What :mod:`.warpgroup_lists` says of runs and layouts holds here, too. A list's logits are read once, all side by side: PLANES
of each lane and row, of which WIDE, two or four, are adjacent entries: group g of a warp is the entries from 32 WIDE g on. So a
count takes a comparison and an addition for 32 entries, and what is kept is moved from registers, while its indices are on
their way.

One warp of a scheduler does all this, and so its time is that of what depends on what: groups are counted and moved each by
itself. How many of a lane's entries are kept are four groups' numbers in one word, of which one prefix sum over lanes tells
where each lane begins.

Here equal logits are never told apart. What is looked for is a pivot that a wanted number of entries are not less than, which
exists but where many logits are equal, NaN or -inf: from those lists :func:`.warpgroup_lists.keep_top` selects. What is dropped
is less than all that are kept, top_k at least, so that no run has to be strict: a later key that equals the pivot may be taken.
"""

from capgate.compat.gluon import barrier, gl, gluon

from ...common.device.hopper import before_lane
from ...key_selection.device.search import key_of, value_of
from .lists import REREAD
from .warpgroup_lists import ADJACENT, MINUS_ZERO, keep_top
from .warpgroup_threads import LANES, THREADS, by_thread, lane_and_run, largest_of, sum_of

SAMPLED = gl.constexpr(4)  # planes whose extremes the search begins with
AHEAD = gl.constexpr(8)  # planes whose indices are on their way while a group is moved
PACKED = gl.constexpr(4)  # groups whose numbers, up to 128 of a warp, are a word
CURVED = gl.constexpr(4)  # counts, the first ones, that are interpolated as those of a distribution
STRAIGHT = gl.constexpr(8)  # counts after which each third one halves the bracket
MOST_COUNTS = gl.constexpr(24)  # simulated: exactly top_k of both rows take 9 or 10, and 22 at most


@gluon.constexpr_function
def width(planes, rows):
    """Adjacent entries of a lane: four if its list has a single row. Of two rows' quads of registers Triton 3.6.0 to 3.9.0
    spill what the loop of tiles has, of pairs nothing."""
    most = 4 // rows
    return most if planes % most == 0 else 2 if planes % 2 == 0 else 1


@gluon.constexpr_function
def load_code(wide, behind, fill):
    """The assembly of :func:`load_logits`, where ``fill``, and of :func:`load_indices`."""
    outputs = [f"${place}" for place in range(wide)]
    vector = f"ld.global.v{wide}.b32 {{{', '.join(outputs)}}}" if wide > 1 else f"ld.global.b32 {outputs[0]}"
    load = f"{vector}, [${wide}+{4 * behind}];"
    if not fill:
        return load
    lines = "\n".join(f"mov.b32 {output}, 0xFF800000;" for output in outputs)
    return f"""{{
        .reg .pred inside;
        setp.gt.s32 inside, ${wide + 1}, {behind};
        {lines}
        @inside {load}
    }}"""


@gluon.constexpr_function
def load_constraints(wide, kind):
    return ",".join([f"=&{kind}"] * wide + ["l", "r"])


@gluon.constexpr_function
def alike(dtype, wide):
    """The dtypes of so many results."""
    return (dtype,) * wide


@gluon.jit
def list_of(tensors, FIRST: gl.constexpr, NUMBER: gl.constexpr):
    """So many of a tuple's tensors, from one on."""
    some = ()
    for place in gl.static_range(NUMBER):
        some += (tensors[FIRST + place],)
    return some


@gluon.jit
def load_logits(first, left, GROUP: gl.constexpr, WIDE: gl.constexpr):
    """A lane's WIDE logits of a group, [ROWS, THREADS] each; -inf if all of them are behind the last of its run's entries.

    first, left : the address of the lane's first entry, and how many the run has from there on
    """
    CODE: gl.constexpr = load_code(WIDE, LANES * WIDE * GROUP, True)
    CONSTRAINTS: gl.constexpr = load_constraints(WIDE, "f")
    DTYPE: gl.constexpr = gl.float32 if WIDE == 1 else alike(gl.float32, WIDE)
    part = gl.inline_asm_elementwise(CODE, CONSTRAINTS, [first, left], DTYPE, is_pure=False, pack=1)
    return (part,) if WIDE == 1 else part


@gluon.jit
def load_indices(first, left, GROUP: gl.constexpr, WIDE: gl.constexpr, ROOM: gl.constexpr):
    """As :func:`load_logits`, of their indices, ROOM entries behind them: whatever is there, so that no register is filled."""
    CODE: gl.constexpr = load_code(WIDE, LANES * WIDE * GROUP + ROOM, False)
    CONSTRAINTS: gl.constexpr = load_constraints(WIDE, "r")
    DTYPE: gl.constexpr = gl.int32 if WIDE == 1 else alike(gl.int32, WIDE)
    part = gl.inline_asm_elementwise(CODE, CONSTRAINTS, [first, left], DTYPE, is_pure=False, pack=1)
    return (part,) if WIDE == 1 else part


@gluon.jit
def load_planes(values, place, size, PLANES: gl.constexpr):
    """PLANES tensors [ROWS, THREADS] of logits, -inf behind a run's last entry, where three of it are in memory, too.

    place, size : [ROWS, THREADS], where a thread's run begins, and its entries, 32 * PLANES at most
    """
    WIDE: gl.constexpr = width(PLANES, place.shape[0])
    lane, _run = lane_and_run(place.shape[0])
    first = (values + (place + lane * WIDE)).to(gl.int64)
    held = ()
    for group in gl.static_range(PLANES // WIDE):
        held += load_logits(first, size - lane * WIDE, group, WIDE)
    return held


@gluon.constexpr_function
def tree(names):
    """Assembly that adds floats up, in the first one."""
    lines, step = [], 1
    while step < len(names):
        lines += [f"add.f32 {names[i]}, {names[i]}, {names[i + step]};" for i in range(0, len(names), 2 * step)]
        step *= 2
    return lines


@gluon.constexpr_function
def count_code(wide):
    """The assembly of :func:`count_held` for a group: its sum is a tree, and one addition takes it to those before."""
    names = [f"n{place}" for place in range(wide)]
    lines = [f"set.geu.f32.f32 {name}, ${place + 1}, ${wide + 1};" for place, name in enumerate(names)] + tree(names)
    code = "\n".join(lines)
    return f"""{{
        .reg .f32 n0, n1, n2, n3;
        {code}
        add.f32 $0, n0, ${wide + 2};
    }}"""


@gluon.constexpr_function
def count_constraints(wide):
    return ",".join(["=f"] + ["f"] * (wide + 2))


@gluon.jit
def count_held(held, bar, nothing, memory, PLANES: gl.constexpr):
    """[ROWS]: how many logits are not less than ``bar``, [ROWS], which is more than -inf.

    nothing : 0.0, [ROWS, THREADS]
    """
    WIDE: gl.constexpr = width(PLANES, nothing.shape[0])
    CODE: gl.constexpr = count_code(WIDE)
    CONSTRAINTS: gl.constexpr = count_constraints(WIDE)
    bar = bar[:, None] + nothing
    number = nothing
    for group in gl.static_range(PLANES // WIDE):
        operands = list_of(held, group * WIDE, WIDE)
        operands += (bar, number)
        number = gl.inline_asm_elementwise(CODE, CONSTRAINTS, operands, dtype=gl.float32, is_pure=True, pack=1)
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


@gluon.constexpr_function
def pack_code(wide, groups):
    """The assembly of :func:`packed`: sums of floats, since of predicates the compiler keeps those of :func:`move` as bits."""
    lines = []
    for group in range(groups):
        names = [f"n{place}" for place in range(wide)]
        lines += [f"set.geu.f32.f32 {name}, ${wide * group + i + 1}, ${wide * groups + 1};" for i, name in enumerate(names)]
        lines += tree(names)
        if group == 0:
            lines.append("mov.f32 sum, n0;")
        elif group < 3:  # exactly: all of a lane are less than 2^24
            lines.append(f"fma.rn.f32 sum, n0, {float(256**group)}, sum;")
    lines.append("cvt.rzi.s32.f32 $0, sum;")
    if groups == 4:
        lines += ["cvt.rzi.s32.f32 last, n0;", "mad.lo.s32 $0, last, 0x1000000, $0;"]
    code = "\n".join(lines)
    return f"""{{
        .reg .f32 n0, n1, n2, n3, sum;
        .reg .b32 last;
        {code}
    }}"""


@gluon.constexpr_function
def pack_constraints(number):
    return ",".join(["=&r"] + ["f"] * (number + 1))


@gluon.jit
def packed(held, FIRST: gl.constexpr, bar, WIDE: gl.constexpr, GROUPS: gl.constexpr):
    """[ROWS, THREADS] int32: how many of a lane's logits are not less than ``bar``, a byte for each of so many groups, one to
    four, from the first one on."""
    CODE: gl.constexpr = pack_code(WIDE, GROUPS)
    CONSTRAINTS: gl.constexpr = pack_constraints(WIDE * GROUPS)
    operands = list_of(held, FIRST * WIDE, WIDE * GROUPS)
    operands += (bar,)
    return gl.inline_asm_elementwise(CODE, CONSTRAINTS, operands, dtype=gl.int32, is_pure=True, pack=1)


@gluon.constexpr_function
def move_code(wide, rows, room):
    """The assembly of :func:`move`, for runs whose indices lie ``room`` entries behind their logits. Rows take turns, and an
    entry is compared while the one before is stored: a predicate comes 13 cycles after its comparison."""

    def operand(number, row):
        return f"${rows * (1 + number) + row}"

    def compare(n):
        return [f"setp.geu.f32 k{n}{row}, {operand(n, row)}, {operand(2 * wide, row)};" for row in range(rows)]

    lines = [f"shl.b32 p{row}, {operand(2 * wide + 1, row)}, 2;" for row in range(rows)] + compare(0)
    for n in range(wide):
        for row in range(rows):
            lines += [f"cvt.u64.u32 a{n}{row}, p{row};", f"add.u64 a{n}{row}, a{n}{row}, {operand(2 * wide + 2, row)};"]
        if n + 1 < wide:
            lines += compare(n + 1)
        lines += [f"@k{n}{row} add.u32 p{row}, p{row}, 4;" for row in range(rows) if n + 1 < wide]
        for row in range(rows):
            lines.append(f"@k{n}{row} st.global.f32 [a{n}{row}], {operand(n, row)};")
            lines.append(f"@k{n}{row} st.global.b32 [a{n}{row}+{4 * room}], {operand(wide + n, row)};")
    lines += [f"mov.b32 ${row}, 0;" for row in range(rows)]
    each = [f"{n}{row}" for n in range(wide) for row in range(rows)]
    code = "\n".join(lines)
    return f"""{{
        .reg .pred {", ".join("k" + name for name in each)};
        .reg .b32 p0, p1;
        .reg .b64 {", ".join("a" + name for name in each)};
        {code}
    }}"""


@gluon.constexpr_function
def move_constraints(wide, rows):
    kinds = ["f"] * wide + ["r"] * wide + ["f", "r", "l"]
    return ",".join(["=&r"] * rows + [kind for kind in kinds for _ in range(rows)])


@gluon.jit
def move(held, numbers, GROUP: gl.constexpr, bar, place, run, WIDE: gl.constexpr, ROOM: gl.constexpr):
    """Store those of a lane's logits of a group that are not less than ``bar``, with their indices, from ``place`` of its run
    on.

    run : the run's address, [ROWS, THREADS]
    """
    CODE: gl.constexpr = move_code(WIDE, place.shape[0], ROOM)
    CONSTRAINTS: gl.constexpr = move_constraints(WIDE, place.shape[0])
    operands = list_of(held, GROUP * WIDE, WIDE) + list_of(numbers, GROUP * WIDE, WIDE) + (bar, place, run)
    gl.inline_asm_elementwise(CODE, CONSTRAINTS, operands, dtype=gl.int32, is_pure=False, pack=place.shape[0])


@gluon.jit
def keep_held(held, values, place, bar, PLANES: gl.constexpr, ROOM: gl.constexpr):
    """Drop the entries that are less than ``bar``, [ROWS, THREADS]; the others move up, in their order, in their runs. Returns
    how many are kept; where the bar is -inf, all of them and what is behind them."""
    WIDE: gl.constexpr = width(PLANES, place.shape[0])
    GROUPS: gl.constexpr = PLANES // WIDE
    WAITING: gl.constexpr = max(AHEAD // WIDE, 1)
    lane, _run = lane_and_run(place.shape[0])
    run = (values + place).to(gl.int64)
    first = (values + (place + lane * WIDE)).to(gl.int64)
    kept = place * 0
    words, numbers = (), ()
    # Entries move towards the front alone, so that an index may be read before and after others are stored.
    for group in gl.static_range(GROUPS + WAITING):
        if group < GROUPS:
            if group % PACKED == 0:
                words += before_lane(packed(held, group, bar, WIDE, min(PACKED, GROUPS - group)))
            numbers += load_indices(first, place, group, WIDE, ROOM)
        if group >= WAITING:
            begin = kept + (words[(group - WAITING) // PACKED * 2] >> ((group - WAITING) % PACKED * 8) & 255)
            move(held, numbers, group - WAITING, bar, begin, run, WIDE, ROOM)
            kept += words[(group - WAITING) // PACKED * 2 + 1] >> ((group - WAITING) % PACKED * 8) & 255
    return kept


@gluon.jit
def keep_above(values, place, size, total, floor, fresh, top_k, most, memory, PLANES: gl.constexpr, ROOM: gl.constexpr):
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
        kept = keep_held(held, values, place, bar, PLANES, ROOM)
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
    # 0, which the compiler does not know: nothing that is made of these here lives through the loop of tiles.
    nothing = longest >> 31
    place += nothing
    values += nothing
    indices += nothing
    size += nothing
    top_k += nothing
    lane, _run = lane_and_run(place.shape[0])
    gl.store(values + place + size + lane, (place * 0).to(gl.float32) + float("-inf"), mask=lane < ADJACENT)
    barrier()
    found = longest * 0
    kept = size
    bar = (place * 0).to(gl.float32)
    if longest <= HELD:
        kept, bar, found = keep_above(values, place, size, total, floor, fresh, top_k, most, memory, HELD // LANES, ROOM)
    over = size < 0
    long = (total > top_k)[:, None] & (place >= 0)
    if found == 0:
        if counters is not None:
            gl.atomic_add(counters + REREAD, gl.sum((total > top_k).to(gl.int32), 0))
        kept, bar, long, over = keep_top(values, indices, place, size, total, top_k, most, longest, memory, counters)
    return kept, bar, long, over
