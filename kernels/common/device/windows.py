"""Which keys a row sees and a worker scores, for classic and Gluon kernels alike: Gluon calls classic functions too."""

import triton
import triton.language as tl


@triton.jit
def clip(start, end, num_keys, width, COMPRESSED: tl.constexpr):
    """(begin, end): a window cut to the keys and, if COMPRESSED, to the row's cells."""
    end = tl.minimum(end, num_keys)
    if COMPRESSED:
        end = tl.minimum(end, start + width)
    return tl.maximum(start, 0), end


@triton.jit
def window(row, starts, ends, num_queries, num_keys, width, stride_starts, stride_ends, COMPRESSED: tl.constexpr):
    """(start, begin, end): window [begin, end) is cut to the keys and to the row's cells; a row past the last has none."""
    near_row = tl.minimum(row, num_queries - 1).to(tl.int64)
    start = tl.load(starts + near_row * stride_starts)
    end = tl.where(row < num_queries, tl.minimum(tl.load(ends + near_row * stride_ends), num_keys), 0)
    if COMPRESSED:
        end = tl.minimum(end, start + width)
    return start, tl.maximum(start, 0), end


@triton.jit
def seen(lens, request, row, most, stride_lb, stride_ln, NEXT_N: tl.constexpr, ROW_LENS: tl.constexpr):
    """How many keys a row of a request sees; none if the request has no such row."""
    near = tl.minimum(row, NEXT_N - 1)
    if ROW_LENS:
        length = tl.load(lens + request.to(tl.int64) * stride_lb + near.to(tl.int64) * stride_ln)
    else:
        length = tl.maximum(tl.load(lens + request.to(tl.int64) * stride_lb), 0) - (NEXT_N - 1) + near
    return tl.where(row < NEXT_N, tl.minimum(tl.maximum(length, 0), most), 0)


@triton.jit
def load_share(schedule, worker, num_requests):
    """(first request, chunk of it, last request, chunk of it): where a worker begins and ends.

    Whatever a schedule holds, requests are those of the batch, or behind it, and no chunk lies before a request's first.
    """
    words = schedule + 2 * worker
    first_request = tl.minimum(tl.maximum(tl.load(words), 0), num_requests)
    last_request = tl.minimum(tl.maximum(tl.load(words + 2), 0), num_requests)
    return first_request, tl.maximum(tl.load(words + 1), 0), last_request, tl.maximum(tl.load(words + 3), 0)
