"""The filter of a long row, in Gluon for Hopper, one source for Triton 3.6.0 to 3.9.0: as :mod:`.filtering`, by bits.

A block is WARPS chunks of 1024 adjacent logits, and a chunk eight pieces: a load of 16 bytes for each lane. Which of them reach
the bar is a bit each. Lanes exchange these bits, so that each has those of 32 adjacent logits; then counts of bits say where in
the list a lane's candidates go, and it goes through its few bits one by one, and loads each logit again, from L1. Warps tell
each other how many candidates they have, once a block.
"""

from capgate.compat.gluon import gl, gluon

from ...common.device.hopper import before_lane
from ..tunings import BAR_MARGIN
from .candidates import LEAST_BAR, NO_CANDIDATE
from .search import LOWEST, PAST_LARGEST, key_of, value_of

MARGIN = gl.constexpr(BAR_MARGIN)
GOLDEN = gl.constexpr(2654435769)  # as in .filtering
LANES = gl.constexpr(32)
PIECE = gl.constexpr(128)  # four adjacent logits of each lane
PIECES = gl.constexpr(8)
CHUNK = gl.constexpr(PIECE.value * PIECES.value)
STEPS = gl.constexpr(8)  # of the search for a bar, by interpolation; what is left goes by halves
FLOOR = gl.constexpr(LEAST_BAR.value)
NONE = gl.constexpr(NO_CANDIDATE.value)


@gluon.constexpr_function
def warp_bases(warps, size):
    """Where the warps of a program lie on the first axis, ``size`` apart, and on no other one."""
    return [size << bit for bit in range(warps.bit_length() - 1)]


@gluon.constexpr_function
def quad_layout(warps):
    """[warps * LANES, 4]: four elements a lane."""
    lanes = [[1 << bit, 0] for bit in range(5)]
    bases = [[base, 0] for base in warp_bases(warps, LANES.value)]
    return gl.DistributedLinearLayout([[0, 1], [0, 2]], lanes, bases, [], [warps * LANES.value, 4])


@gluon.constexpr_function
def lane_layout(warps):
    """[warps, LANES]: one element a lane."""
    lanes = [[0, 1 << bit] for bit in range(5)]
    return gl.DistributedLinearLayout([], lanes, [[base, 0] for base in warp_bases(warps, 1)], [], [warps, LANES.value])


@gluon.constexpr_function
def exchange_layout(warps):
    """[warps, warps]: each lane of warp w has row w."""
    registers = [[0, base] for base in warp_bases(warps, 1)]
    return gl.DistributedLinearLayout(registers, [[0, 0]] * 5, [[base, 0] for base in warp_bases(warps, 1)], [], [warps, warps])


@gluon.jit
def sample_bar(source, skip, size, top_k, SAMPLE: gl.constexpr, WARPS: gl.constexpr):
    """As :func:`.filtering.sample_bar`, of the same logits of source[skip:size], which is read in whole quads."""
    LAYOUT: gl.constexpr = quad_layout(WARPS)
    THREADS: gl.constexpr = WARPS * LANES
    GROUPS: gl.constexpr = SAMPLE // (THREADS * 4)
    POINTS: gl.constexpr = SAMPLE // 4
    first = gl.cdiv(skip, 4)
    quads = size // 4 - first
    step = quads // POINTS
    spare = quads - step * POINTS
    thread = gl.arange(0, THREADS, gl.SliceLayout(1, LAYOUT))
    nth = gl.arange(0, 4, gl.SliceLayout(0, LAYOUT))
    sample = ()
    for group in gl.static_range(GROUPS):
        point = thread * GROUPS + group
        inside = (((point.to(gl.uint32) * GOLDEN).to(gl.uint64) * step.to(gl.uint64)) >> 32).to(gl.int32)
        place = (first + point * step + point * spare // POINTS + inside) * 4
        sample += (gl.load(source + (place[:, None] + nth[None, :])).to(gl.float32),)
    expected = top_k * (SAMPLE * 1.0) / (size - skip).to(gl.float32)
    least = gl.minimum((expected + MARGIN * gl.sqrt(expected)).to(gl.int32) + 2, SAMPLE - 1)
    return gl.maximum(find_bar(sample, least, least + (least >> 3), SAMPLE, GROUPS), FLOOR)


@gluon.jit
def find_bar(sample, least, most, SAMPLE: gl.constexpr, GROUPS: gl.constexpr):
    """What ``least`` of the sampled logits are not less than, and no more than ``most``, where there is such a value.

    Searched for as in :func:`.search.find_threshold`: from where a normal distribution has it, then by interpolation, and at
    last by halving the keys of a float. NaN is less than nothing.
    """
    summed = sample[0] * 0.0
    squared = summed
    for group in gl.static_range(GROUPS):
        finite = gl.where(gl.abs(sample[group]) < float("inf"), sample[group], 0.0)
        summed = (0.0 if group == 0 else summed) + finite
        squared = (0.0 if group == 0 else squared) + finite * finite
    mean = gl.sum(gl.sum(summed, 1), 0) / SAMPLE
    deviation = gl.sqrt(gl.maximum(gl.sum(gl.sum(squared, 1), 0) / SAMPLE - mean * mean, 0.0))
    # Tukey's lambda distribution with 0.14 is within 0.01 of the normal one's quantiles.
    share = (least + (least >> 4)).to(gl.float32) / SAMPLE
    quantile = 4.91 * (gl.exp2(0.14 * gl.log2(1.0 - share)) - gl.exp2(0.14 * gl.log2(share)))
    spacing = deviation * 2.5066283 * gl.exp2(0.7213475 * quantile * quantile) / SAMPLE
    guess = mean + quantile * deviation
    low = gl.to_tensor(LOWEST).to(gl.uint32)
    high = gl.to_tensor(PAST_LARGEST).to(gl.uint32)
    at_low = gl.to_tensor(SAMPLE)
    at_high = at_low * 0
    step = at_low * 0
    while (at_low > most) & (high - low > 1):
        pivot = gl.where((gl.abs(guess) < float("inf")) & (step < STEPS), key_of(guess), low + ((high - low) >> 1))
        pivot = gl.minimum(gl.maximum(pivot, low + 1), high - 1)
        value = value_of(pivot)
        count = gl.where(sample[0] < value, 0, 1)
        for group in gl.static_range(1, GROUPS):
            count += gl.where(sample[group] < value, 0, 1)
        at_pivot = gl.sum(gl.sum(count, 1), 0)
        enough = at_pivot >= least
        low = gl.where(enough, pivot, low)
        high = gl.where(enough, high, pivot)
        at_low = gl.where(enough, at_pivot, at_low)
        at_high = gl.where(enough, at_high, at_pivot)
        if (low == LOWEST) | (high == PAST_LARGEST):
            missed = gl.abs(at_pivot - least).to(gl.float32)
            away = spacing * (1.15 * missed + 1.5 * gl.sqrt(missed) + 2.0)
            guess = gl.where(enough, value + away, value - away)
            spacing *= 4.0
        else:
            between = (at_low - at_high).to(gl.float32)
            low_value = value_of(low)
            guess = low_value + (value_of(high) - low_value) * ((at_low - least).to(gl.float32) - 0.5) / between
        step += 1
    return value_of(low)


@gluon.constexpr_function
def reaching_code(inputs):
    """The assembly of :func:`bits_reaching` for tensors of four elements a lane."""
    lines = [".reg .pred reach;", "mov.u32 $0, 0;"]
    for number in range(4 * inputs):
        lines += [f"setp.geu.f32 reach, ${4 + number}, ${4 + 4 * inputs};", f"@reach or.b32 $0, $0, {1 << number};"]
    return "{" + " ".join([*lines, *(f"mov.u32 ${other}, $0;" for other in (1, 2, 3))]) + "}"


@gluon.jit
def bits_reaching(logits, bar, FIRST: gl.constexpr):
    """[WARPS * LANES] int32: a bit for each of the sixteen logits of a lane, in four tensors from FIRST on, that is not less
    than ``bar``, [WARPS * LANES, 4]."""
    CODE: gl.constexpr = reaching_code(4)
    bits = gl.inline_asm_elementwise(
        CODE,
        "=&r,=&r,=&r,=&r,f,f,f,f,f,f,f,f,f,f,f,f,f,f,f,f,f,f,f,f",
        [logits[FIRST], logits[FIRST + 1], logits[FIRST + 2], logits[FIRST + 3], bar],
        dtype=gl.int32,
        is_pure=True,
        pack=4,
    )
    some, _ = gl.split(bits.reshape([bits.shape[0], 2, 2]))
    one, _ = gl.split(some)
    return gl.convert_layout(one, gl.SliceLayout(1, quad_layout(bits.shape[0] // LANES)), assert_trivial=True)


@gluon.jit
def adjacent_bits(bits, lane):
    """A warp's bits in the order of its logits: of 32 adjacent ones each lane. ``bits`` has four of each piece.

    Bit i of the quad's number changes places with bit i of the piece's, for the lower three of both: nibbles, bytes and halves
    are exchanged with the lane whose number differs there. What is left is an order of lanes.
    """
    return gl.inline_asm_elementwise(
        """{
        .reg .b32 bits, other, odd, turn, chosen, source;
        .reg .pred upper;
        mov.u32 bits, $1;
        and.b32 odd, $2, 1;
        setp.ne.u32 upper, odd, 0;
        selp.b32 turn, 28, 4, upper;
        selp.b32 chosen, 0xf0f0f0f0, 0x0f0f0f0f, upper;
        shfl.sync.bfly.b32 other, bits, 1, 31, -1;
        shf.l.wrap.b32 other, other, other, turn;
        lop3.b32 bits, bits, other, chosen, 0xe4;
        and.b32 odd, $2, 2;
        setp.ne.u32 upper, odd, 0;
        selp.b32 chosen, 0x3715, 0x6240, upper;
        shfl.sync.bfly.b32 other, bits, 2, 31, -1;
        prmt.b32 bits, bits, other, chosen;
        and.b32 odd, $2, 4;
        setp.ne.u32 upper, odd, 0;
        selp.b32 chosen, 0x3276, 0x5410, upper;
        shfl.sync.bfly.b32 other, bits, 4, 31, -1;
        prmt.b32 bits, bits, other, chosen;
        shr.u32 source, $2, 2;
        and.b32 odd, $2, 3;
        shl.b32 odd, odd, 3;
        or.b32 source, source, odd;
        shfl.sync.idx.b32 $0, bits, source, 31, -1;
        }""",
        "=&r,r,r",
        [bits, lane],
        dtype=gl.int32,
        is_pure=True,
        pack=1,
    )


@gluon.jit
def count_bits(bits):
    """How many bits of each int32 are set."""
    return gl.inline_asm_elementwise("popc.b32 $0, $1;", "=r,r", [bits], dtype=gl.int32, is_pure=True, pack=1)


@gluon.jit
def append_bits(bits, place, candidates, source, index, HALF: gl.constexpr):
    """Append a lane's candidates to the list from ``place`` on: the logits of ``source``, where bits are set, and above each
    its index, from ``index`` on; as in :mod:`.candidates`. Addresses are int64; HALF: logits are bfloat16."""
    LOAD: gl.constexpr = (
        "mad.wide.u32 address, bit, 2, $4; ld.global.u16 half, [address]; mov.b32 value, {zero, half};"
        if HALF
        else "mad.wide.u32 address, bit, 4, $4; ld.global.b32 value, [address];"
    )
    CODE: gl.constexpr = (
        """{
        .reg .pred more;
        .reg .b16 half, zero;
        .reg .b32 left, bit, value, number;
        .reg .b64 cell, address;
        mov.u16 zero, 0;
        mov.u32 left, $1;
        mad.wide.u32 cell, $2, 8, $3;
        setp.eq.u32 more, left, 0;
        @more bra ended;
        again:
        brev.b32 bit, left;
        clz.b32 bit, bit;
        sub.u32 number, left, 1;
        and.b32 left, left, number;
        """
        + LOAD
        + """
        add.u32 number, $5, bit;
        st.global.v2.b32 [cell], {value, number};
        add.u64 cell, cell, 8;
        setp.ne.u32 more, left, 0;
        @more bra again;
        ended:
        mov.u32 $0, 0;
        }"""
    )
    gl.inline_asm_elementwise(
        CODE, "=&r,r,r,l,l,r", [bits, place, candidates, source, index], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def load_pieces(source, place, size, WARPS: gl.constexpr):
    """PIECES tensors [WARPS * LANES, 4], from ``place`` on for each lane; behind source[:size] they hold anything."""
    nth = gl.arange(0, 4, gl.SliceLayout(0, quad_layout(WARPS)))
    loaded = ()
    for piece in gl.static_range(PIECES):
        first = place + piece * PIECE
        cells = source + (first[:, None] + nth[None, :])
        loaded += (gl.load(cells, mask=(first < size)[:, None] & (nth < 4)[None, :]).to(gl.float32),)
    return loaded


@gluon.jit
def bits_between(low, high):
    """The bits from number ``low`` on and below number ``high``, of 32."""
    low = gl.minimum(gl.maximum(low, 0), 32).to(gl.int64)
    high = gl.minimum(gl.maximum(high, 0), 32).to(gl.int64)
    one = low * 0 + 1
    return (((one << high) - 1) & ~((one << low) - 1)).to(gl.int32)


@gluon.jit
def before_warp(number, WARPS: gl.constexpr):
    """(how many the warps before a lane's have, [WARPS * LANES], and all of them) of what lanes of a warp have alike."""
    LANE: gl.constexpr = lane_layout(WARPS)
    EXCHANGE: gl.constexpr = exchange_layout(WARPS)
    OTHER: gl.constexpr = gl.SliceLayout(0, EXCHANGE)
    MINE: gl.constexpr = gl.SliceLayout(1, EXCHANGE)
    mine = gl.convert_layout(number.reshape([WARPS, LANES]), LANE, assert_trivial=True)
    numbers = gl.convert_layout(gl.max(mine, 1), OTHER)
    earlier = gl.arange(0, WARPS, OTHER)[None, :] < gl.arange(0, WARPS, MINE)[:, None]
    before = gl.sum(gl.where(earlier, numbers[None, :], 0), 1)
    before = gl.convert_layout(before, gl.SliceLayout(1, LANE), assert_trivial=True)[:, None] + mine * 0
    before = gl.convert_layout(before.reshape([WARPS * LANES]), gl.SliceLayout(1, quad_layout(WARPS)), assert_trivial=True)
    return before, gl.sum(numbers, 0)


@gluon.jit
def append_section(
    source, skip, size, first_index, bar, candidates, WARPS: gl.constexpr, ROOM: gl.constexpr, AHEAD: gl.constexpr
):
    """As :func:`.filtering.append_section`."""
    QUAD: gl.constexpr = quad_layout(WARPS)
    BLOCK: gl.constexpr = WARPS * CHUNK
    HALF: gl.constexpr = source.dtype.element_ty.primitive_bitwidth == 16
    thread = gl.arange(0, WARPS * LANES, gl.SliceLayout(1, QUAD))
    chunk = thread // LANES * CHUNK
    lane = thread % LANES
    mine = chunk + lane * (CHUNK // LANES)
    bars = bar + gl.full([WARPS * LANES, 4], 0.0, gl.float32, QUAD)
    cells = candidates.to(gl.int64) + thread * 0
    fill = gl.to_tensor(0)
    if AHEAD:
        coming = load_pieces(source, chunk + lane * 4, size, WARPS)
    for first in range(0, size, BLOCK):
        logits = coming if AHEAD else load_pieces(source, chunk + lane * 4 + first, size, WARPS)
        bits = bits_reaching(logits, bars, 0) | (bits_reaching(logits, bars, 4) << 16)
        if AHEAD:
            coming = load_pieces(source, chunk + lane * 4 + (first + BLOCK), size, WARPS)
        bits = adjacent_bits(bits, lane)
        if (first < skip) | (first + BLOCK > size):
            bits &= bits_between(skip - first - mine, size - first - mine)
        place, number = before_lane(count_bits(bits))
        before, total = before_warp(number, WARPS)
        if fill + total <= ROOM:
            own = mine + first
            append_bits(bits, place + (before + fill), cells, (source + own).to(gl.int64), own + first_index, HALF)
        fill += total
    return fill


@gluon.jit
def end_list(candidates, fill, WARPS: gl.constexpr, ROOM: gl.constexpr):
    """As :func:`.candidates.end_list`."""
    place = fill + gl.arange(0, 4, gl.BlockedLayout([1], [LANES], [WARPS], [0]))
    gl.store(candidates + place, NONE, mask=(place < (fill + 3) // 4 * 4) & (place < ROOM))
