"""The search for a threshold, in Triton: what exactly top_k of the logits that a program holds are not less than.

It counts how many reach a pivot, and moves the pivot by interpolation, five or six times for logits as they come; where that
stalls it bisects the bits of a float, so that no row takes more than a few dozen counts.
"""

import triton
import triton.language as tl

LOWEST = tl.constexpr(0x007FFFFF)  # the key of -inf
PAST_LARGEST = tl.constexpr(0xFF800001)  # one more than the key of inf: only NaN is not less than its value, a NaN
COUNT_BIT = tl.constexpr(17)  # of a tally: from here up it counts, and below it has a bit for each plane
COUNT_ONE = tl.constexpr(2.0**COUNT_BIT.value)  # what counts one
PASSES = tl.constexpr(5)  # with two pivots, at most
STEPS = tl.constexpr(8)  # of so many in the search for a threshold one draws the bracket in


@triton.jit
def key_of(value):
    """An unsigned integer that has the float's order; -0 comes right before 0."""
    bits = value.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) | -0x80000000)).to(tl.uint32, bitcast=True)


@triton.jit
def value_of(key):
    """The float of a key."""
    bits = key.to(tl.int32, bitcast=True)
    return (bits ^ ((~bits >> 31) | -0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def first_guess(logits, skip, size, top_k, RUNS: tl.constexpr, PLANES: tl.constexpr):
    """(pivot, spacing): where a normal distribution with the mean and deviation of one plane has its threshold, and how far
    logits lie apart there. Neither need be finite."""
    sample = tl.where(tl.abs(logits[0]) < float("inf"), logits[0], 0.0)
    number = tl.cdiv(size, PLANES).to(tl.float32)
    mean = tl.sum(sample, 0) / number
    deviation = tl.sqrt(tl.maximum(tl.sum(sample * sample, 0) / number - mean * mean, 0.0))
    share = 1.0 * top_k / (size - skip).to(tl.float32)  # a top_k of 1 is a constant to Triton, which cannot be converted
    # Tukey's lambda distribution with 0.14 is within 0.01 of the normal one's quantiles.
    quantile = 4.91 * (tl.exp2(0.14 * tl.log2(1.0 - share)) - tl.exp2(0.14 * tl.log2(share)))
    density = tl.exp2(-0.7213475 * quantile * quantile) * 0.3989423 * (size - skip).to(tl.float32)
    return mean + quantile * deviation, deviation / density


@triton.jit
def tally_reaching(logits, pivot, RUNS: tl.constexpr, PLANES: tl.constexpr):
    """[RUNS] int32: from COUNT_BIT up how many of each run's logits are not less than ``pivot``, below it a bit for each
    plane whose logit is one of them."""
    # As a float, in which a multiply-add serves both; the largest, 16 planes, is less than 2 ** 22.
    tally = tl.zeros((RUNS,), tl.float32)
    for plane in tl.static_range(PLANES):
        tally = tl.fma(tl.where(logits[plane] < pivot, 0.0, 1.0), COUNT_ONE + (1 << plane), tally)
    return tally.to(tl.int32)


@triton.jit
def find_threshold(logits, skip, size, top_k, RUNS: tl.constexpr, PLANES: tl.constexpr, most=None, bracket=None):
    """(threshold, reached, exceeded, tally): ``reached`` logits are not less than ``threshold``, top_k at least. Where it is
    top_k, ``tally`` is :func:`tally_reaching` of the threshold; otherwise ``exceeded`` of them, fewer than top_k, are larger
    than the threshold, and the rest equal it. NaN is less than nothing, and counts as inf here.

    The threshold's key lies in [low, high), whose values at_low and at_high logits reach. It is found once at_low is top_k, or
    once one key is left. Where ``most`` is given, at_low need not be top_k, but no more than that. ``bracket`` is what
    :func:`narrow` left, which takes the place of :func:`first_guess`: it is drawn in at first.
    """
    enough_at = top_k if most is None else most
    if bracket is None:
        low = tl.full((), LOWEST, tl.uint32)
        high = tl.full((), PAST_LARGEST, tl.uint32)
        at_low = size - skip
        at_high = tl.full((), 0, tl.int32)
        guess, spacing = first_guess(logits, skip, size, top_k, RUNS, PLANES)
        pivot = tl.where(tl.abs(guess) < float("inf"), key_of(guess), low + ((high - low) >> 1))
        step = tl.full((), 0, tl.int32)
    else:
        low, high, at_low, at_high, spacing = bracket
        pivot = low + ((high - low) >> 1)
        step = tl.full((), STEPS - 1, tl.int32)
    tally = tl.zeros((RUNS,), tl.int32)
    stalled = tl.full((), 0, tl.int32)
    while (at_low > enough_at) & (high - low > 1):
        step += 1
        if step % STEPS == 0:
            low, high = draw_in(logits, low, high, RUNS, PLANES)
            if bracket is not None:  # with one logit too many, or missing, the threshold is next to an end
                pivot = tl.where(at_low - top_k == 1, low + 1, tl.where(top_k - at_high == 1, high - 1, pivot))
        else:
            pivot = tl.minimum(tl.maximum(pivot, low + 1), high - 1)
            value = value_of(pivot)
            tally = tally_reaching(logits, value, RUNS, PLANES)
            at_pivot = tl.sum(tally >> COUNT_BIT, 0)
            before = at_low - at_high
            enough = at_pivot >= top_k
            low = tl.where(enough, pivot, low)
            high = tl.where(enough, high, pivot)
            at_low = tl.where(enough, at_pivot, at_low)
            at_high = tl.where(enough, at_high, at_pivot)

            # The next pivot: interpolated between the values at both ends. While one end is infinite, a bit farther away than
            # the count was off, so that both come near. After the first drawing in, a step that does not halve the bracket is
            # followed by one that interpolates between the keys, which grow as a logarithm, and that by one halfway.
            between = at_low - at_high
            share = ((at_low - top_k).to(tl.float32) + 0.5) * reciprocal((between + 1).to(tl.float32))
            if (low == LOWEST) | (high == PAST_LARGEST):
                missed = tl.abs(at_pivot - top_k).to(tl.float32)
                away = spacing * (1.15 * missed + 1.5 * tl.sqrt(missed) + 2.0)
                guess = tl.where(enough, value + away, value - away)
                spacing *= 4.0
            else:
                low_value = value_of(low)
                guess = low_value + (value_of(high) - low_value) * share
            middle = low + ((high - low) >> 1)
            pivot = tl.where(tl.abs(guess) < float("inf"), key_of(guess), middle)
            if step > STEPS:
                stalled = tl.where(2 * between <= before, 0, (stalled + 1) % 3)
                keyed = low + ((high - low).to(tl.float32) * share).to(tl.uint32)
                pivot = tl.where(stalled == 1, keyed, tl.where(stalled == 2, middle, pivot))
    return value_of(low), at_low, at_high, tally


@triton.jit
def count_reaching_both(logits, first, second, RUNS: tl.constexpr, PLANES: tl.constexpr):
    """How many logits are not less than ``first``, and not less than ``second``: 32767 at most."""
    both = tl.zeros((RUNS,), tl.float32)  # as in a tally: two instructions for a logit and a pivot
    for plane in tl.static_range(PLANES):
        both += tl.where(logits[plane] < first, 0.0, 1.0)
        both = tl.fma(tl.where(logits[plane] < second, 0.0, 1.0), 65536.0, both)
    both = tl.sum(both.to(tl.int32), 0)
    return both & 0xFFFF, both >> 16


@triton.jit
def narrow(logits, lower, total, top_k, guess, spacing, RUNS: tl.constexpr, PLANES: tl.constexpr):
    """A bracket for :func:`find_threshold` between ``lower``, which ``total`` logits reach, and what fewer than top_k reach,
    or the end of floats: two pivots at a time, on either side of where the threshold should be. Mostly top_k reach its low.

    guess, spacing : where to begin, and how far logits lie apart there; any float, as a pivot outside of the bracket ends it
    """
    upper = tl.full((), float("inf"), tl.float32)
    at_lower = total
    at_upper = tl.full((), 0, tl.int32)
    first = guess
    second = guess + spacing * (0.06 * top_k)
    step = tl.full((), 0, tl.int32)
    while (at_lower > top_k) & (first > lower) & (second < upper) & (step < PASSES):
        step += 1
        at_first, at_second = count_reaching_both(logits, first, second, RUNS, PLANES)
        first_enough = at_first >= top_k
        second_enough = at_second >= top_k
        apart = (second - first) * reciprocal((at_first - at_second + 1).to(tl.float32))
        upper = tl.where(second_enough, upper, tl.where(first_enough, second, first))
        at_upper = tl.where(second_enough, at_upper, tl.where(first_enough, at_second, at_first))
        lower = tl.where(second_enough, second, tl.where(first_enough, first, lower))
        at_lower = tl.where(second_enough, at_second, tl.where(first_enough, at_first, at_lower))
        missed = (at_lower - top_k).to(tl.float32) + 0.5
        if upper == float("inf"):
            first = lower + apart * missed
            second = first + apart * (missed + 8.0)
        else:
            # Logits between are spread about evenly: where the threshold is among them varies as the root of how many they are.
            root = tl.rsqrt((at_lower - at_upper + 1).to(tl.float32))
            share = missed * root * root
            width = upper - lower
            first = lower + width * tl.maximum(share - 0.4 * root, share * 0.67)
            second = lower + width * tl.minimum(share + 0.4 * root, share * 0.67 + 0.33)
    high = tl.where(upper == float("inf"), PAST_LARGEST, key_of(upper))
    return key_of(lower), high.to(tl.uint32), at_lower, at_upper, spacing


@triton.jit
def reciprocal(number):
    """About 1 / ``number``: a division would take longer, and need not be exact."""
    root = tl.rsqrt(number)
    return root * root


@triton.jit
def draw_in(logits, low, high, RUNS: tl.constexpr, PLANES: tl.constexpr):
    """[low, high) without the keys at either end that no logit has: of equal logits one key is left."""
    low_value, high_value = value_of(low), value_of(high)
    least = tl.where(logits[0] >= low_value, logits[0], float("inf"))
    most = tl.where(logits[0] < high_value, logits[0], float("-inf"))
    for plane in tl.static_range(1, PLANES):
        logit = logits[plane]
        least = tl.where((logit >= low_value) & (logit < least), logit, least)
        most = tl.where((logit < high_value) & (logit > most), logit, most)
    # 0 is added because -0 and 0 have two keys: the larger one serves both.
    least_key = tl.maximum(low, key_of(tl.min(least, 0) + 0.0))
    most_key = tl.minimum(high, key_of(tl.max(most, 0) + 0.0) + 1)
    return least_key, tl.where(high == PAST_LARGEST, high, most_key)  # NaN may lie in a bracket without an upper end
