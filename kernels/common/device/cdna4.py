"""Device functions in Gluon for CDNA4 (gfx950), one source for Triton 3.6.0 to 3.9.0: relu and head sums, fills, loads, stores.

Compiled and emulated; they have not run on a GPU. Those that :mod:`.classic` has too have the same names
there, in the same order, and the same parameters in front of the layouts.
"""

from capgate.compat.gluon import KEEP_NAN, async_copy, cdna4, constexpr_function, gl, gluon, reinterpret

from .cdna4_packed import sum_packed
from .windows import strip_base


@constexpr_function
def logit_layout(ROWS, KEYS, NUM_WARPS):
    """[ROWS, 2, KEYS]: a lane has both halves of one key's head sum, and each wave rows of its own."""
    powers = [1 << bit for bit in range(16)]
    registers = [[power, 0, 0] for power in powers if power < ROWS // NUM_WARPS]
    lanes = [[0, 0, power] for power in powers if power < min(KEYS, 64)]
    if KEYS < 64:
        lanes += [[0, 1, 0]]
    else:
        registers = [[0, 1, 0], *registers]
    warps = [[power, 0, 0] for power in powers if ROWS // NUM_WARPS <= power < ROWS]
    return gl.DistributedLinearLayout(registers, lanes, warps, [], [ROWS, 2, KEYS])


@gluon.jit
def relu(x):
    """max(x, 0) that keeps NaN."""
    return gl.maximum(x, 0.0, propagate_nan=KEEP_NAN)


@gluon.jit
def as_pair(low, high):
    """Two float32 as the halves of an int64, which is a pair of registers: the compiler spends no instruction on it."""
    low = low.to(gl.uint32, bitcast=True).to(gl.int64)
    high = high.to(gl.uint32, bitcast=True).to(gl.int64)
    return (high << 32) | low


@gluon.jit
def as_float32(pair):
    """The two float32 of a pair."""
    low = pair.to(gl.int32).to(gl.float32, bitcast=True)
    high = (pair >> 32).to(gl.int32).to(gl.float32, bitcast=True)
    return low, high


@gluon.jit
def halves(x):
    """The first and the second half of axis 2, of four."""
    shape: gl.constexpr = [x.shape[0], x.shape[1], 2, x.shape[2] // 2, x.shape[3]]
    return gl.split(gl.permute(gl.reshape(x, shape), [0, 1, 3, 4, 2]))


@gluon.jit
def apart(x):
    """The slices along axis 2, of which there is a power of two, as a tuple."""
    if x.shape[2] == 1:
        return (gl.reshape(x, [x.shape[0], x.shape[1], x.shape[3]]),)
    else:
        first, second = halves(x)
        return apart(first) + apart(second)


@gluon.jit
def sum_products(positive, weight, total, FIRST: gl.constexpr):
    """total (unless this is the first) plus the sum over axis 2 of positive * weight, on pairs of float32.

    Inline assembly, because not every LLVM finds the packed forms, and because Triton 3.8 and 3.9 keep multiplies and adds of a
    sum apart. It counts as impure, so that reads of LDS keep their place among the products: LLVM would start all reads of a
    part at once, and no third wave would find registers. The compiler inserts no wait between an MFMA and inline assembly:
    relu must stand between the two.
    """
    if positive.shape[2] == 1:
        shape: gl.constexpr = [positive.shape[0], positive.shape[1], positive.shape[3]]
        positive = gl.reshape(positive, shape)
        weight = gl.reshape(weight, shape)
        if FIRST:
            total = gl.inline_asm_elementwise(
                "v_pk_mul_f32 $0, $1, $2", "=v,v,v", [positive, weight], dtype=gl.int64, is_pure=False, pack=1
            )
        else:
            total = gl.inline_asm_elementwise(
                "v_pk_fma_f32 $0, $1, $2, $3", "=v,v,v,v", [positive, weight, total], dtype=gl.int64, is_pure=False, pack=1
            )
    else:
        positive, later_positive = halves(positive)
        weight, later_weight = halves(weight)
        total = sum_products(positive, weight, total, FIRST)
        total = sum_products(later_positive, later_weight, total, False)
    return total


@gluon.jit
def sum_of_pair(pair):
    """The sum of a pair's float32. Inline assembly, because LLVM would gather two such sums for a packed add, with moves.

    Behind it two wait states, which a swap between lanes needs, and which the compiler inserts for none of inline assembly.
    """
    low, high = as_float32(pair)
    return gl.inline_asm_elementwise(
        "v_add_f32 $0, $1, $2\n\ts_nop 1", "=v,v,v", [low, high], dtype=gl.float32, is_pure=False, pack=1
    )


@gluon.jit
def sums_of_two(pair):
    """[pairs, 2, keys] -> [2 * pairs, 2, keys]: halves of a pair are the sums of two rows. Waits as :func:`sum_of_pair`."""
    pair = gl.inline_asm_elementwise("s_nop 1", "=v,0", [pair], dtype=gl.int64, is_pure=False, pack=1)
    low, high = as_float32(pair)
    return gl.reshape(gl.permute(gl.join(low, high), [0, 3, 1, 2]), [2 * pair.shape[0], 2, pair.shape[2]])


@gluon.jit
def pairs_of_heads(x, ROWS: gl.constexpr, HEADS: gl.constexpr, TOGETHER: gl.constexpr = 1):
    """[ROWS * HEADS, keys] float32 -> [ROWS / TOGETHER, 2, pairs of a lane, keys] int64, a pair of two heads or of two rows.

    Bit 2 of an MFMA tile's row is the lane's half; columns that differ in bit 0 are neighbouring registers.
    """
    KEYS: gl.constexpr = x.shape[1]
    SUMS: gl.constexpr = ROWS // TOGETHER
    PAIRS: gl.constexpr = HEADS * TOGETHER // 4
    x = gl.permute(gl.reshape(x, [SUMS, PAIRS // 2, 2, 2, 2, KEYS]), [0, 2, 1, 3, 5, 4])
    low, high = gl.split(gl.reshape(x, [SUMS, 2, PAIRS, KEYS, 2]))
    return as_pair(low, high)


@constexpr_function
def rows_together(ROWS, HEADS, NUM_WARPS):
    """Rows whose sums are the halves of one pair of registers, which nothing adds up: two where a product of a wave has two.

    docs/design/mqa_logits.md says why not more often.
    """
    return 2 if ROWS >= 2 * NUM_WARPS and 2 * HEADS <= 32 else 1


@gluon.jit
def row_and_head(column, HEADS: gl.constexpr, TOGETHER: gl.constexpr):
    """(row, head) of each column of rows x heads, of which TOGETHER rows take turns."""
    return column // (TOGETHER * HEADS) * TOGETHER + column % TOGETHER, column % (TOGETHER * HEADS) // TOGETHER


@gluon.jit
def in_pairs(place, SIZE: gl.constexpr):
    """Places in four groups of SIZE elements, as an MFMA is to multiply them: the second group after the third.

    A lane multiplies every second group: so it has two that lie side by side, whose scales it reads at a time.
    """
    group = place // SIZE
    return (group % 2 * 2 + group // 2) * SIZE + place % SIZE


@gluon.jit
def query_offset(
    column, last_row, first_head, stride_row, stride_head, stride_dim,
    HEADS: gl.constexpr, DIM: gl.constexpr, SOME_HEADS: gl.constexpr, INDEX: gl.constexpr, TOGETHER: gl.constexpr,
    PAIRS: gl.constexpr,
):  # fmt: skip
    """[columns, DIM] places of queries, a column for each of SOME_HEADS heads of a row; past an edge those of the last one.

    TOGETHER : as :func:`row_and_head`
    PAIRS : whether dims are in the order of :func:`in_pairs`
    """
    layout: gl.constexpr = column.type.layout.parent
    row, head = row_and_head(column, SOME_HEADS, TOGETHER)
    row = gl.minimum(row, last_row).to(INDEX)
    head = gl.minimum(first_head + head, HEADS - 1).to(INDEX)
    dim = gl.arange(0, DIM, gl.SliceLayout(0, layout))
    if PAIRS:
        dim = in_pairs(dim, DIM // 4)
    dim = dim.to(INDEX)
    return (row * stride_row + head * stride_head)[:, None] + (dim * stride_dim)[None, :]


@gluon.jit
def load_queries(
    q, last_row, first_head, stride_row, stride_head, stride_dim,
    HEADS: gl.constexpr, DIM: gl.constexpr, SOME_HEADS: gl.constexpr, ROWS: gl.constexpr, INDEX: gl.constexpr,
    PACKETS: gl.constexpr, LAYOUT: gl.constexpr, TOGETHER: gl.constexpr = 1, PAIRS: gl.constexpr = False,
    LANES: gl.constexpr = 64,
):  # fmt: skip
    """[ROWS * SOME_HEADS, DIM] queries of the rows from ``q`` on, heads from ``first_head`` on, as an MFMA takes them.

    Nothing is masked: in place of rows past ``last_row`` and of heads that are not there the last one is loaded.

    TOGETHER : as :func:`row_and_head`
    PACKETS : whether 16 adjacent dims can be loaded at a time. Otherwise each byte takes a register while it is loaded: 32 of
        a lane at a time go through LDS, so that all have room
    PAIRS : whether dims are in the order of :func:`in_pairs`
    LANES : of a wave
    """
    COLUMNS: gl.constexpr = ROWS * SOME_HEADS
    if PACKETS:
        column = gl.arange(0, COLUMNS, gl.SliceLayout(1, LAYOUT))
        offset = query_offset(
            column, last_row, first_head, stride_row, stride_head, stride_dim, HEADS, DIM, SOME_HEADS, INDEX, TOGETHER, PAIRS
        )
        return load(q, offset)
    else:
        NUM_WARPS: gl.constexpr = gl.num_warps()
        PIECE: gl.constexpr = min(32 * LANES * NUM_WARPS // DIM, COLUMNS)
        loaded: gl.constexpr = gl.BlockedLayout([1, 4], [4 * LANES // DIM, DIM // 4], [NUM_WARPS, 1], [1, 0])
        plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
        pieces = gl.allocate_shared_memory(q.dtype.element_ty, [COLUMNS // PIECE, PIECE, DIM], plain)
        # The compiler must not know how many, for it would begin with all of them.
        number = gl.inline_asm_elementwise("", "=s,0", [gl.to_tensor(COLUMNS // PIECE)], dtype=gl.int32, is_pure=False, pack=1)
        for piece in range(number):
            column = piece * PIECE + gl.arange(0, PIECE, gl.SliceLayout(1, loaded))
            offset = query_offset(
                column, last_row, first_head, stride_row, stride_head, stride_dim,
                HEADS, DIM, SOME_HEADS, INDEX, TOGETHER, PAIRS,
            )  # fmt: skip
            pieces.index(piece).store(load(q, offset))
        return reinterpret(pieces, q.dtype.element_ty, [COLUMNS, DIM], plain).load(LAYOUT)


@gluon.jit
def load_query_scales(
    q_scale, last_row, stride_row, stride_head,
    HEADS: gl.constexpr, PADDED_HEADS: gl.constexpr, ROWS: gl.constexpr, GROUPS: gl.constexpr, INDEX: gl.constexpr,
    LAYOUT: gl.constexpr, TOGETHER: gl.constexpr = 1, PAIRS: gl.constexpr = False,
):  # fmt: skip
    """[ROWS * PADDED_HEADS, GROUPS] UE8M0 bytes, out of int32 words, of queries that :func:`load_queries` loads so."""
    of_queries: gl.constexpr = cdna4.get_mfma_scale_layout(LAYOUT, [ROWS * PADDED_HEADS, GROUPS])
    column = gl.arange(0, ROWS * PADDED_HEADS, gl.SliceLayout(1, of_queries))
    row, head = row_and_head(column, PADDED_HEADS, TOGETHER)
    row = gl.minimum(row, last_row).to(INDEX)
    near_head = gl.minimum(head, HEADS - 1).to(INDEX)
    word = load(q_scale, row * stride_row + near_head * stride_head)
    group = gl.arange(0, GROUPS, gl.SliceLayout(0, of_queries))
    if PAIRS:
        group = in_pairs(group, 1)
    return (word[:, None] >> 8 * group[None, :]).to(gl.uint8)


@gluon.jit
def load_group(
    q, weights, first_row, num_queries, stride_qs, stride_qh, stride_qd, stride_ws, stride_wh,
    HEADS: gl.constexpr, DIM: gl.constexpr, PADDED_HEADS: gl.constexpr, ROWS: gl.constexpr, INDEX: gl.constexpr,
    PACKETS: gl.constexpr, MFMA: gl.constexpr,
):  # fmt: skip
    """The queries [ROWS * PADDED_HEADS, DIM] and the weights [ROWS * PADDED_HEADS], float32, of the rows from ``first_row`` on.

    In the order in which :func:`score` takes them. Heads that are not there have weight 0; what rows past the last one get is
    for nobody. PACKETS : as :func:`load_queries`
    """
    TOGETHER: gl.constexpr = rows_together(ROWS, PADDED_HEADS, gl.num_warps())
    last_row = num_queries - 1 - first_row
    query = load_queries(
        q + first_row.to(gl.int64) * stride_qs, last_row, 0, stride_qs, stride_qh, stride_qd,
        HEADS, DIM, PADDED_HEADS, ROWS, INDEX, PACKETS, gl.DotOperandLayout(0, MFMA, 16), TOGETHER,
    )  # fmt: skip
    row, head = row_and_head(gl.arange(0, ROWS * PADDED_HEADS, gl.SliceLayout(1, MFMA)), PADDED_HEADS, TOGETHER)
    row = gl.minimum(row, last_row).to(INDEX)
    near_head = gl.minimum(head, HEADS - 1).to(INDEX)
    weight_offset = row * stride_ws + near_head * stride_wh
    weight = load(weights + first_row.to(gl.int64) * stride_ws, weight_offset).to(gl.float32)
    return query, gl.where(head < HEADS, weight, 0.0)


@constexpr_function
def scale_tile_layout(TILE, LANES, NUM_WARPS):
    """[32 // TILE, LANES, TILE, 4 // LANES]: lane n has every second group of key n % 32, as an MFMA takes their scales."""
    keys = [[0, 0, key, 0] if key < TILE else [key // TILE, 0, 0, 0] for key in (1, 2, 4, 8, 16)]
    first, second = [[0, group, 0, 0] if group < LANES else [0, 0, 0, group // LANES] for group in (1, 2)]
    warps = [[0, 0, 0, 0] for bit in range(5) if 1 << bit < NUM_WARPS]
    return gl.DistributedLinearLayout([second], [*keys, first], warps, [], [32 // TILE, LANES, TILE, 4 // LANES])


@gluon.jit
def load_key_scales(scales, number, GROUPS: gl.constexpr, LAYOUT: gl.constexpr):
    """[32, GROUPS] UE8M0 bytes, in LDS, of a product's keys, which an MFMA takes in LAYOUT.

    scales : [any, 32, 4]; or [any, 32 // TILE, LANES, TILE, 4 // LANES] where they lie in tiles of TILE keys: see
        :class:`..key_formats.Layout`
    """
    of_keys: gl.constexpr = cdna4.get_mfma_scale_layout(LAYOUT, [32, GROUPS])
    if len(scales.shape) == 3:
        return async_copy.load_shared_relaxed(scales.index(number).slice(0, GROUPS, 1), of_keys)
    else:
        in_tiles: gl.constexpr = scale_tile_layout(scales.shape[3], scales.shape[2], gl.num_warps())
        octets = async_copy.load_shared_relaxed(scales.index(number), in_tiles)
        octets = gl.reshape(gl.permute(octets, [0, 2, 3, 1]), [32, GROUPS])
        return gl.convert_layout(octets, of_keys, assert_trivial=True)


@gluon.jit
def score(
    query, weight, keys, first,
    ROWS: gl.constexpr, PADDED_HEADS: gl.constexpr, KEYS: gl.constexpr, PACKED_RELU: gl.constexpr,
    query_scale=None, scales=None, first_scale=None, Q_KIND: gl.constexpr = None, K_KIND: gl.constexpr = None,
):  # fmt: skip
    """[ROWS, KEYS] logits, not yet times the keys' scales, from keys in LDS and query [ROWS * PADDED_HEADS, D].

    query, weight : in the order of :func:`row_and_head`, with :func:`rows_together`; weight with PACKED_RELU times RELU_RANGE
    keys : [any, 32, D], of which products begin at number ``first``; KEYS is 32 or 64
    query_scale : of MX formats, UE8M0 [ROWS * PADDED_HEADS, D / 32]
    scales, first_scale : and those of the keys in LDS, as :func:`load_key_scales` takes them; a product's are at its number
    Q_KIND, K_KIND : "e4m3" or "e2m1", two values of which share a byte
    """
    NUM_WARPS: gl.constexpr = gl.num_warps()
    PRODUCT_KEYS: gl.constexpr = keys.shape[1]
    PRODUCTS: gl.constexpr = KEYS // PRODUCT_KEYS
    TOGETHER: gl.constexpr = rows_together(ROWS, PADDED_HEADS, NUM_WARPS)
    mfma: gl.constexpr = query.type.layout.parent
    operand: gl.constexpr = gl.DotOperandLayout(1, mfma, 16)
    zeros = gl.zeros([ROWS * PADDED_HEADS, PRODUCT_KEYS], gl.float32, mfma)
    weight, zeros = gl.broadcast(weight[:, None], zeros)
    weight, later_weight = halves(pairs_of_heads(weight, ROWS, PADDED_HEADS, TOGETHER))
    key = async_copy.load_shared_relaxed(keys.index(first).permute([1, 0]), operand)
    if scales is not None:
        GROUPS: gl.constexpr = query_scale.shape[1]
        key_scale = load_key_scales(scales, first_scale, GROUPS, operand)
    sums = ()
    for number in gl.static_range(PRODUCTS):
        if scales is not None:
            product = cdna4.mfma_scaled(query, query_scale, Q_KIND, key, key_scale, K_KIND, zeros)
        elif query.shape[1] >= 64:
            product = cdna4.mfma_scaled(query, None, "e4m3", key, None, "e4m3", zeros)
        else:
            product = cdna4.mfma(query, key, zeros)
        if PACKED_RELU:
            positive, later_positive = halves(pairs_of_heads(product, ROWS, PADDED_HEADS, TOGETHER))
            total = sum_packed(apart(positive), apart(weight), apart(later_positive), positive)
        else:
            positive, later_positive = halves(pairs_of_heads(relu(product), ROWS, PADDED_HEADS, TOGETHER))
            total = sum_products(positive, weight, positive, True)
        if number + 1 < PRODUCTS:  # once half of this product's registers are free
            key = async_copy.load_shared_relaxed(keys.index(first + number + 1).permute([1, 0]), operand)
            if scales is not None:
                key_scale = load_key_scales(scales, first_scale + number + 1, GROUPS, operand)
        if PACKED_RELU:
            total = sum_packed(apart(later_positive), apart(later_weight), (), total)
        else:
            total = sum_products(later_positive, later_weight, total, False)
        sums += (sums_of_two(total) if TOGETHER == 2 else sum_of_pair(total),)
    total = sums[0]  # type: ignore[misc]
    if PRODUCTS == 2:
        total = gl.reshape(gl.permute(gl.join(total, sums[1]), [0, 1, 3, 2]), [ROWS, 2, KEYS])  # type: ignore[misc]
    # Lanes n and n + 32 have one half each of the head sums of two keys: they swap, and each adds up one key.
    return gl.sum(gl.convert_layout(total, logit_layout(ROWS, KEYS, NUM_WARPS)), 1)


@gluon.jit
def fill(out, base, width, row_offset, wanted, stride_on, STRIP: gl.constexpr, INDEX: gl.constexpr, LAYOUT: gl.constexpr):
    """-inf into columns [base, base + width) of the wanted rows; width is at most STRIP."""
    place = gl.arange(0, STRIP, gl.SliceLayout(0, LAYOUT))
    offset = row_offset[:, None] + (place.to(INDEX) * stride_on)[None, :]
    value = gl.full([row_offset.shape[0], STRIP], float("-inf"), out.dtype.element_ty, LAYOUT)
    store(out + base.to(gl.int64) * stride_on, offset, value, wanted[:, None] & (place < width)[None, :])


@gluon.jit
def fill_strip(
    out, strip, first, last, row_offset, wanted, stride_on, STRIP: gl.constexpr, INDEX: gl.constexpr, LAYOUT: gl.constexpr
):
    """One of the whole strips of columns [0, first) and from last on: no column mask, so a store has 4 cells."""
    base = gl.multiple_of(strip_base(strip, first, last, STRIP), 16)
    fill(out, base, STRIP, row_offset, wanted, stride_on, STRIP, INDEX, LAYOUT)


@gluon.jit
def fill_edge(
    out, base, begin, end, num_keys, row_offset, wanted, stride_on,
    BLOCK_KEYS: gl.constexpr, INDEX: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """-inf into the cells of one tile, from column ``base``, that lie outside their row's window."""
    place = gl.arange(0, BLOCK_KEYS, gl.SliceLayout(0, LAYOUT))
    position = (base + place)[None, :]
    outside = (position < begin[:, None]) | (position >= end[:, None])
    offset = row_offset[:, None] + (place.to(INDEX) * stride_on)[None, :]
    value = gl.full([row_offset.shape[0], BLOCK_KEYS], float("-inf"), out.dtype.element_ty, LAYOUT)
    mask = outside & (position < num_keys) & wanted[:, None]
    store(out + base.to(gl.int64) * stride_on, offset, value, mask)


@gluon.jit
def fill_outside(
    out, covered, mine, part, begin, end, num_keys, row_offset, wanted, stride_on,
    PASS: gl.constexpr, STRIP: gl.constexpr, BLOCK_KEYS: gl.constexpr, INDEX: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """-inf into all cells of the wanted rows outside their windows, but for strips that the loop of tiles writes.

    As :func:`.classic.fill_outside`.
    """
    first, last, full_first, full_last = covered
    my_first, my_last = mine
    split, splits = part
    strips = first // STRIP + (num_keys - last) // STRIP
    for strip in range((my_last - my_first + PASS - 1) // PASS * splits + split, strips, splits):
        fill_strip(out, strip, first, last, row_offset, wanted, stride_on, STRIP, INDEX, LAYOUT)
    left_rest = gl.where(split == 0, first % STRIP, 0)
    right_rest = gl.where(split == 0, (num_keys - last) % STRIP, 0)
    fill(out, first - left_rest, left_rest, row_offset, wanted, stride_on, STRIP, INDEX, LAYOUT)
    fill(out, num_keys - right_rest, right_rest, row_offset, wanted, stride_on, STRIP, INDEX, LAYOUT)
    left_last = gl.minimum(gl.cdiv(full_first, BLOCK_KEYS), my_last)
    right_first = gl.maximum(gl.maximum(full_last, 0) // BLOCK_KEYS, my_first)
    for tile in range(my_first, left_last):
        base = tile * BLOCK_KEYS
        fill_edge(out, base, begin, end, num_keys, row_offset, wanted, stride_on, BLOCK_KEYS, INDEX, LAYOUT)
    for tile in range(right_first, my_last):
        base = tile * BLOCK_KEYS
        fill_edge(out, base, begin, end, num_keys, row_offset, wanted, stride_on, BLOCK_KEYS, INDEX, LAYOUT)
    return strips


@gluon.jit
def load(pointer, offset):
    """Buffer loads reach 2 GiB from the pointer; 64-bit offsets take plain ones."""
    return gl.load(pointer + offset) if offset.dtype == gl.int64 else cdna4.buffer_load(pointer, offset)


@gluon.jit
def store(pointer, offset, value, mask):
    """The value, rounded to what the cells hold. Buffer stores reach 2 GiB from the pointer; 64-bit offsets take plain ones."""
    value = value.to(pointer.dtype.element_ty)
    if offset.dtype == gl.int64:
        gl.store(pointer + offset, value, mask=mask)
    else:
        cdna4.buffer_store(value, pointer, offset, mask=mask)
