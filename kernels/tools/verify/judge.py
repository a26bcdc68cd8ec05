"""MQA logits in float64 straight from the formula, calls to try them on, and what counts as agreement.

Independent of capgate's own reference: of capgate only the public function is used. capgate's tests judge by it, too.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from ...mqa_logits import fp8_mqa_logits

CALC_DIFF, CALC_DIFF_BF16 = 5e-6, 3e-5  # upstream's limits against dequantised inputs, of float32 logits and of bfloat16 ones
# Limits of a cell's error, as parts of sum_h |weight| * sum_d |q * k| * |scale|. Float32 rounds each of up to 256 additions
# by 2**-24. NVIDIA's matrix units align 32 fp8 products with the largest and keep 13 fractional bits: 2**-12.
FLOAT32 = 2.0**-19
MATRIX_UNIT = 2.0**-12

BF16_ROUNDING = 2.0**-8  # of a result where it is stored, as a part of it

WORDS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}  # of outputs
NEGATIVE_INFINITY_BITS = {torch.float32: -(2**23), torch.bfloat16: -(2**7)}  # as such a word
SIGNALLING = {torch.float32: (0x7F800001, 2**21), torch.bfloat16: (0x7F81, 2**6 - 1)}  # the first NaN of a row of so many
LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e4m3fnuz: 240.0}
FLOAT64_BYTES = 2**29  # of the formula's scores at a time


class Disagreement(AssertionError):  # noqa: N818
    """A call wrote, returned or changed something else than it has to."""


class Call(NamedTuple):
    """The six tensors that fp8_mqa_logits takes by position."""

    q: torch.Tensor
    k: torch.Tensor
    k_scale: torch.Tensor
    weights: torch.Tensor
    starts: torch.Tensor
    ends: torch.Tensor


def make_call(
    rows: int,
    keys: int,
    heads: int,
    dim: int,
    windows: str = "packed",
    *,
    dtype: torch.dtype = torch.float8_e4m3fn,
    device: str = "cpu",
    seed: int = 0,
) -> Call:
    """Random operands, quantised as serving stacks do: a scale per key, a query's scale folded into its (signed) weights.

    One value in 16 is a zero of either sign: e4m3fn's -0 is e4m3fnuz's NaN.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        values = torch.randn(shape, generator=generator, device=device)
        return values * (torch.rand(shape, generator=generator, device=device) > 1 / 16)

    q, q_scale = _quantised(random(rows, heads, dim), dtype)
    k, k_scale = _quantised(random(keys, dim), dtype)
    weights = random(rows, heads) * q_scale * dim**-0.5 * heads**-0.5
    starts, ends = make_windows(windows, rows, keys, device=device)
    return Call(q, k, k_scale, weights, starts, ends)


def _quantised(values: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    scale = values.abs().amax(-1).clamp(min=1e-4) / LARGEST[dtype]
    return (values / scale[..., None]).to(dtype), scale


def make_windows(kind: str, rows: int, keys: int, *, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Starts and ends of one kind.

    causal : one request; compressed keys appear as its tokens proceed
    suffix : the last rows of one request, whose last row sees every key
    context-parallel : one rank's two chunks of a causal triangle, mirrored so that all ranks have the same work
    packed : requests of 1, 2, 3, 4, 1, ... rows, each with keys of its own: neighbouring rows share a window's start or nothing
    ragged : every row differs: inverted, empty, negative starts and ends past the last key among them
    extreme : the ends of int32
    """
    row = torch.arange(rows)
    if kind == "full":
        starts, ends = torch.zeros(rows), torch.full((rows,), keys)
    elif kind == "causal":
        starts, ends = torch.zeros(rows), (row + 1) * keys // max(rows, 1)
    elif kind == "suffix":
        starts, ends = torch.zeros(rows), keys - rows + row + 1
    elif kind == "context-parallel":
        chunk, ranks = rows // 2, max(1, keys // max(rows, 1))
        starts, rank = torch.zeros(rows), ranks // 3
        ends = torch.where(row < chunk, rank * chunk + row, (2 * ranks - 2 - rank) * chunk + row)
    elif kind == "packed":
        lengths = torch.arange(rows) % 4 + 1
        request = torch.repeat_interleave(torch.arange(rows), lengths)[:rows]
        first_row = (torch.cumsum(lengths, 0) - lengths)[request]
        starts = first_row * keys // max(rows, 1)
        ends = starts + (row - first_row + 1) * max(1, keys // max(rows, 1))
    elif kind == "ragged":
        generator = torch.Generator().manual_seed(rows * keys)
        starts = torch.randint(-keys // 4 - 2, keys + 2, (rows,), generator=generator)
        ends = starts + torch.randint(-2, keys + 2, (rows,), generator=generator)
    elif kind == "extreme":
        least, most = -(2**31), 2**31 - 1
        starts = torch.tensor([least, 0, most, least, 1])[row % 5]
        ends = torch.tensor([most, most, least, 2, least])[row % 5]
    elif kind == "empty":
        starts, ends = row % 3, row % 3 - row % 2
    else:
        raise ValueError(f"windows: no kind {kind!r}")
    return starts.to(device, torch.int32), ends.to(device, torch.int32)


class Answer(NamedTuple):
    """What the formula gives for rows of a call: float64 logits, which cells lie inside the windows, and the error's unit."""

    logits: torch.Tensor
    inside: torch.Tensor
    magnitude: torch.Tensor


def formula(call: Call, max_window: int | None = None, rows: Sequence[int] | slice = slice(None)) -> Answer:
    """logits[i, j] = k_scale[j] * sum_h weights[i, h] * relu(sum_d q[i, h, d] * k[j, d]) for the given rows, in float64.

    max_window : column j means key starts[i] + j
    """
    q = call.q.view(torch.uint8)[rows].view(call.q.dtype).to(torch.float32).double()  # not every fp8 type can be indexed
    weights = call.weights[rows].double()
    k, scale = call.k.to(torch.float32).double(), call.k_scale.reshape(-1).double()
    starts, ends = call.starts[rows, None].long(), call.ends[rows, None].long()
    num_rows, num_keys = q.shape[0], k.shape[0]
    key = torch.arange(num_keys if max_window is None else max_window, device=k.device).expand(num_rows, -1)
    key = key if max_window is None else key + starts
    inside = (key >= starts) & (key < ends) & (key >= 0) & (key < num_keys)
    logits, magnitude = torch.zeros_like(key, dtype=torch.float64), torch.zeros_like(key, dtype=torch.float64)
    step = max(1, FLOAT64_BYTES // (8 * q.shape[1] * max(num_keys, 1)))
    for first in range(0, num_rows if num_keys else 0, step):
        block = slice(first, first + step)
        dots = torch.einsum("ihd,jd->ihj", q[block], k).relu_()
        sizes = torch.einsum("ihd,jd->ihj", q[block].abs(), k.abs())
        nearest = key[block].clamp(0, num_keys - 1)
        logits[block] = torch.einsum("ih,ihj->ij", weights[block], dots).mul_(scale).gather(1, nearest)
        magnitude[block] = torch.einsum("ih,ihj->ij", weights[block].abs(), sizes).mul_(scale.abs()).gather(1, nearest)
    return Answer(logits, inside, magnitude)


def calc_diff(x: torch.Tensor, y: torch.Tensor) -> float:
    """Upstream's measure: 0 for equal tensors, and for two that are zero everywhere."""
    x, y = x.double(), y.double()
    denominator = (x * x + y * y).sum()
    return float(1 - 2 * (x * y).sum() / denominator) if denominator else 0.0


def laid_out(tensor: torch.Tensor, order: Sequence[int] = (), gap: int = 0, step: int = 1, offset: int = 0) -> torch.Tensor:
    """A copy of ``tensor`` with other strides.

    order : dimensions from the outermost in memory to the innermost; as they are by default
    gap : unused elements between the lines, planes, ... of the memory
    step : stride of the innermost dimension
    offset : unused elements before the first one, and as many after the last
    """
    strides, stride = [0] * tensor.ndim, step
    for dimension in reversed(order or range(tensor.ndim)):
        strides[dimension] = stride
        stride = stride * max(1, tensor.shape[dimension]) + gap
    copy = torch.zeros(stride + 2 * offset, dtype=tensor.dtype, device=tensor.device)
    return copy.as_strided(tensor.shape, strides, offset).copy_(tensor)


def storage_of(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """All of the memory that ``tensor`` lives in, its padding included, seen as ``dtype``."""
    return torch.empty(0, dtype=dtype, device=tensor.device).set_(tensor.untyped_storage())


def sentinels(rows: int, columns: int, device: str = "cpu", dtype: torch.dtype = torch.float32, **layout: Any) -> torch.Tensor:
    """An output whose words of memory are different signalling NaNs, of bfloat16 63; by default its rows are padded."""
    out = laid_out(torch.empty(rows, columns, dtype=dtype, device=device), **layout or {"gap": 5, "offset": 3})
    words, (first, count) = storage_of(out, WORDS[dtype]), SIGNALLING[dtype]
    words.copy_(torch.arange(words.numel(), device=device) % count + first)
    return out


def check(
    call: Any,
    variant: str | None,
    *,
    clean_logits: bool = True,
    max_window: int | None = None,
    out: torch.Tensor | None = None,
    function: Callable[..., torch.Tensor] = fp8_mqa_logits,
    values: Call | None = None,
) -> torch.Tensor:
    """Run ``variant`` into sentinels, hold everything that it wrote against the formula, and return the output.

    function, values : another function of MQA logits, and what its operands mean, where the formula cannot read them

    Inside the windows the logits agree; outside, clean cells are -inf and others keep their bits, as does the padding; the
    operands keep all their bytes. An output of bfloat16 is that of float32, rounded. Raises Disagreement where it is not so.
    """
    rows, columns = call.q.shape[0], call.k.shape[0] if max_window is None else max_window
    out = sentinels(rows, columns, str(call.q.device)) if out is None else out
    run = partial(function, *call, clean_logits=clean_logits, max_window=max_window, variant=variant)
    hold(call, run, out, lambda: formula(values or call, max_window), clean_logits=clean_logits, variant=variant)
    return out


def hold(
    call: Any,
    run: Callable[..., torch.Tensor],
    out: torch.Tensor,
    answer_of: Callable[[], Answer],
    *,
    clean_logits: bool,
    variant: str | None,
    lacking: bool = False,
) -> None:
    """Run a call into ``out``, and hold everything that it wrote against what is right, or raise Disagreement.

    call : its operands, by name
    run : the call, but for its ``out``, without which it makes a new output of float32
    answer_of : what is right, worked out once the call has run
    lacking : whether keys may be absent, whose logits are -inf inside

    Cells inside agree, clean ones outside are -inf, and all others, the padding and the operands keep their bits. An output of
    bfloat16 is that of float32, rounded.
    """
    memory = storage_of(out, WORDS[out.dtype])
    before, operands = memory.clone(), [storage_of(tensor, torch.uint8).clone() for tensor in call]
    if run(out=out) is not out:
        raise Disagreement("the call did not return its out")
    for name, tensor, bytes_before in zip(call._fields, call, operands, strict=True):
        if not torch.equal(storage_of(tensor, torch.uint8), bytes_before):
            raise Disagreement(f"{name} changed")
    answer = answer_of()
    written, absent = answer.inside | clean_logits, answer.inside & answer.logits.isneginf() & lacking
    address = torch.arange(memory.numel(), device=out.device).as_strided(out.shape, out.stride(), out.storage_offset())
    kept = torch.ones_like(memory, dtype=torch.bool)
    kept[address[written]] = False
    changed = (memory != before) & kept
    if changed.any():
        raise Disagreement(f"{int(changed.sum())} words changed that belong to no written cell, of {int(kept.sum())}")
    if clean_logits or lacking:
        filled, expected = memory[address] == NEGATIVE_INFINITY_BITS[out.dtype], absent | (~answer.inside & clean_logits)
        if not torch.equal(filled, expected):
            raise Disagreement(f"{int((filled != expected).sum())} cells wrongly -inf or not")
    scored, on_matrix_unit = answer.inside & ~absent, variant != "reference" and out.device.type != "cpu"
    agree(out[scored], answer.logits[scored], answer.magnitude[scored], on_matrix_unit)
    if out.dtype != torch.float32 and not torch.equal(out[written], run().to(out.dtype)[written]):
        raise Disagreement("the logits are not those of float32, rounded")


def agree(actual: torch.Tensor, expected: torch.Tensor, magnitude: torch.Tensor, on_matrix_unit: bool = False) -> None:
    """Logits inside the windows are finite, near the formula's as a whole, and near them in every cell, or a Disagreement."""
    if not torch.isfinite(actual).all():
        raise Disagreement(f"{int((~torch.isfinite(actual)).sum())} logits are not finite")
    difference, bf16 = calc_diff(actual, expected), actual.dtype == torch.bfloat16
    if not difference < (CALC_DIFF_BF16 if bf16 else CALC_DIFF):
        raise Disagreement(f"calc_diff is {difference:.2e}")
    limit = (MATRIX_UNIT if on_matrix_unit else FLOAT32) * magnitude
    if bf16:
        limit = limit + BF16_ROUNDING * expected.abs()
    error = ((actual.double() - expected).abs() - limit).clamp(min=0)
    if error.any():
        off, worst = int((error > 0).sum()), float(error.max())
        raise Disagreement(f"{off} cells of {error.numel()} are off, the worst by {worst:.2e} too much")
