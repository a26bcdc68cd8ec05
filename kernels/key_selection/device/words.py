"""From a block's selected logits to the row that is written, in Triton: quads of slots, the words that say what goes into them,
and what a logit is written as."""

import triton
import triton.language as tl


@triton.jit
def split_quads(quads):
    """The four columns of a tensor of quads."""
    even, odd = tl.split(tl.reshape(quads, (quads.shape[0], 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def join_quads(first, second, third, fourth):
    """The tensor of quads that has these four columns."""
    return tl.reshape(tl.join(tl.join(first, third), tl.join(second, fourth)), (first.shape[0], 4))


@triton.jit
def leave_words(bits, count, indices, RUNS: tl.constexpr, PLANES: tl.constexpr):
    """Leave a word at the first slot of each run, and at the first slot of each quad that begins inside a run.

    bits, count : [RUNS] int32: the planes whose logits are selected, and how many those are

    A word has the run's number and, in its lower half, the bits of the logits from its slot on: the lowest is its own.
    """
    after = tl.cumsum(count, 0)
    slot = after - count
    word = (tl.arange(0, RUNS) << 16) | bits
    tl.store(indices + slot, word, mask=count > 0)
    quad = (slot | 3) + 1
    word = without_lowest(word)
    for number in tl.static_range(1, 4):
        word = tl.where(slot + number < quad, without_lowest(word), word)
    left = after - quad
    cell = indices + quad
    for behind in tl.static_range(0, PLANES, 4):
        tl.store(cell + behind, word, mask=behind < left)
        for _ in tl.static_range(4):
            word = without_lowest(word)


@triton.jit
def without_lowest(word):
    """A word without its lowest bit: that of the next slot, if the run has one."""
    return word & (word - 1)


@triton.jit
def word_after(word, found):
    """The word of the slot after ``word``'s: the same run's next one or, where that has no more, ``found``, which the run
    that begins there has left."""
    following = without_lowest(word)
    return tl.where((following & 0xFFFF) != 0, following, found)


@triton.jit
def place_of(word, PLANES: tl.constexpr):
    """Where in the block the logit of a word is: its run's first one is at a multiple of PLANES."""
    lowest = (word & -word).to(tl.float32).to(tl.int32, bitcast=True)  # a power of two, which its exponent tells
    return (word >> 16) * PLANES + (lowest >> 23) - 127


@triton.jit
def index_of(place, exists, numbering, missing=None):
    """What a logit of the block that ``exists`` is written as, by its place in the block.

    missing : what is read for a candidate that does not exist; anything otherwise
    numbering : (places, first, page table, pages, stride of pages, page size): the places' indices or, where those are None,
        that of the block's first place; and the row of a page table in which an index is looked up, or None
    """
    index = numbering[1] + place if numbering[0] is None else tl.load(numbering[0] + place, mask=exists, other=missing)
    return slot_of(index, exists, numbering)


@triton.jit
def slot_of(index, exists, numbering):
    """What an index that ``exists`` is written as: its slot, where ``numbering``, as of :func:`index_of`, has a page table."""
    if numbering[2] is not None:
        page = index // numbering[5]
        known = exists & (index >= 0) & (page < numbering[3])
        number = tl.load(numbering[2] + page.to(tl.int64) * numbering[4], mask=known, other=-1)
        index = tl.where(number < 0, -1, number * numbering[5] + index % numbering[5])
    return index
