"""What is judged of selections, schedules, the key cache and MX quantisation: as :mod:`.checks` does."""

from collections.abc import Sequence
from typing import Any

import torch

from ...candidate_blocks import apply_candidate_mask, select_candidate_blocks
from ...key_cache import gather_keys, quantize_keys_to_cache
from ...key_selection import select_keys, select_paged_keys
from ...mx_quantization import quantize_mx_keys
from ...paged_mqa_logits import paged_mqa_schedule
from . import exact, judge, mx, mx_paged, paged, schedules, selection
from .checks import Place
from .judge import Disagreement

LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e4m3fnuz: 240.0}
FLOOR = 1e-4  # of a key's largest magnitude
BLOCK = 64


def select(
    place: Place,
    rows: int,
    columns: int,
    top_k: int,
    kind: str,
    windows: str,
    *,
    logits: str = "float32",
    relative: bool = False,
) -> None:
    """select_from_logits of float32 logits of a kind, or of bfloat16 ones."""
    values = selection.make_logits(kind, rows, columns, device=str(place.device)).to(getattr(torch, logits))
    starts, ends = judge.make_windows(windows, rows, columns, device=str(place.device))
    options = {"relative": True} if relative else {}
    selection.check(values, starts, ends, top_k, place.variant, **options)


def choose_blocks(place: Place, rows: int, columns: int, top_blocks: int, kind: str, windows: str, *, block: int = 8) -> None:
    """select_candidate_blocks, of logits whose blocks' largest are sorted in float64."""
    values = selection.make_logits(kind, rows, columns)
    starts, ends = judge.make_windows(windows, rows, columns)
    right = torch.full((rows, top_blocks), -1, dtype=torch.int32)
    for row, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        seen = values[row, max(start, 0) : max(min(end, columns), 0)].double()
        blocks = (
            [part.max().nan_to_num(torch.inf, torch.inf, -torch.inf).item() for part in seen.split(block)] if len(seen) else []
        )
        blocks[-1:] = [torch.inf] * len(blocks[-1:])
        best = sorted(range(len(blocks)), key=lambda number: (-blocks[number], number))[:top_blocks]
        found = sorted(number for number in best if blocks[number] > -torch.inf)
        right[row, : len(found)] = torch.tensor(found, dtype=torch.int32)
    operands = (tensor.to(place.device) for tensor in (values, starts, ends))
    chosen = select_candidate_blocks(*operands, top_blocks=top_blocks, candidate_block=block, variant=place.variant).cpu()
    if not torch.equal(chosen.sort().values, right.sort().values):  # a block of nothing but -inf leaves its -1 where it is
        raise Disagreement(f"{int((chosen.sort().values != right.sort().values).sum())} blocks of {right.numel()} are others")


def mask_blocks(place: Place, rows: int, columns: int, listed: int, windows: str, *, block: int = 8) -> None:
    """apply_candidate_mask, in rows with room between them."""
    values = selection.make_logits("normal", rows, columns)
    starts, ends = judge.make_windows(windows, rows, columns)
    random = torch.Generator().manual_seed(listed)
    lists = torch.randint(-1, columns // block + 2, (rows, listed), generator=random, dtype=torch.int32)
    column = torch.arange(columns)
    local = column - starts.clamp(min=0)[:, None]
    numbers = (local // block)[:, :, None] == lists[:, None, :].long()
    kept = (local >= 0) & (column < ends[:, None]) & numbers.any(-1)
    out = judge.sentinels(rows, columns, str(place.device)).copy_(values)
    right = judge.storage_of(out, torch.int32).cpu().clone()
    right.as_strided(out.shape, out.stride(), out.storage_offset())[~kept] = judge.NEGATIVE_INFINITY_BITS[torch.float32]
    operands = (tensor.to(place.device) for tensor in (starts, ends, lists))
    apply_candidate_mask(out, *operands, candidate_block=block, variant=place.variant)
    changed = judge.storage_of(out, torch.int32).cpu() != right
    if changed.any():
        raise Disagreement(f"{int(changed.sum())} words of {changed.numel()} are others")


def fused(place: Place, rows: int, keys: int, heads: int, dim: int, top_k: int, windows: str, *, ties: bool = False) -> None:
    """select_keys in one kernel, of logits that are known to the bit.

    ties : logits of few values, so that many are equal
    """
    random = torch.Generator().manual_seed(rows * keys)
    numbers = torch.randint(0, 4 if ties else 256, (rows, keys), generator=random)
    weights = 2.0 ** torch.randint(-3, 4, (rows,), generator=random) * (1 - 2 * torch.randint(0, 2, (rows,), generator=random))
    scales = torch.ones(keys) if ties else 2.0 ** torch.randint(-4, 5, (keys,), generator=random)
    starts, ends = judge.make_windows(windows, rows, keys)
    call = exact.make_call(numbers, weights, scales, (starts, ends), heads=heads, dim=dim, dtype=place.fp8)
    logits = exact.logits_of(numbers, weights, scales)
    right, right_scores = selection.expected(logits, starts, ends, top_k)
    tensors = [tensor.to(place.device) for tensor in call]
    _agree_on_both(
        select_keys(*tensors, top_k=top_k, return_scores=True, fused=True, variant=place.variant),
        select_keys(*tensors, top_k=top_k, fused=True, variant=place.variant),
        right,
        right_scores,
    )


def fused_paged(place: Place, lens: Sequence[int], next_n: int, heads: int, dim: int, top_k: int, block: int = BLOCK) -> None:
    """select_paged_keys in one kernel, of logits that are known to the bit."""
    random = torch.Generator().manual_seed(sum(lens))
    numbers = [torch.randint(0, 256, (max(length, 1),), generator=random) for length in lens]
    call = exact.make_paged_call(numbers, lens, next_n, block, heads=heads, dim=dim, dtype=place.fp8)
    columns, rows = max(*lens, 1), len(lens) * next_n
    logits = torch.zeros(rows, columns)
    for request, number in enumerate(numbers):
        logits[request * next_n : (request + 1) * next_n, : len(number)] = number.float()
    ends = call.seen.clamp(0, columns).flatten().int()
    right, right_scores = selection.expected(logits, None, ends, top_k)
    memory = judge.storage_of(call.kv_cache, torch.uint8).to(place.device)
    cache = memory.as_strided(call.kv_cache.shape, call.kv_cache.stride())
    q, _, *others = (tensor.to(place.device) for tensor in call)
    options: dict[str, Any] = {"max_context_len": columns, "top_k": top_k, "fused": True, "variant": place.variant}
    _agree_on_both(
        select_paged_keys(q, cache, *others, **options, return_scores=True),
        select_paged_keys(q, cache, *others, **options),
        right,
        right_scores,
    )


def _agree_on_both(both: Any, alone: Any, right: torch.Tensor, right_scores: torch.Tensor) -> None:
    """Indices with scores, and indices alone, are these."""
    indices, scores = both
    for found in (indices, alone):
        selection.agree(found.cpu(), right)
    if not selection.same(scores.cpu(), right_scores):
        raise Disagreement("scores are not the selected logits")


def schedule(place: Place, lens: Sequence[int], workers: int, chunk_keys: int = 128) -> None:
    """paged_mqa_schedule."""
    made = paged_mqa_schedule(_lengths(lens, place), BLOCK, workers, chunk_keys=chunk_keys)
    right = schedules.even(schedules.units_of(lens, chunk_keys), workers)
    if list(map(tuple, made.tolist())) != right:
        raise Disagreement(f"gives {made.tolist()[:20]} and not {list(map(list, right[:20]))}")


def _lengths(lens: Sequence[int], place: Place) -> torch.Tensor:
    return torch.tensor(lens, dtype=torch.int32, device=place.device)


# --- the key cache ----------------------------------------------------------------------------------------------------------


def some_keys(count: int, dim: int) -> torch.Tensor:
    """bfloat16 keys of very different sizes, on the CPU; one of zeros of either sign, and three that are not finite."""
    values = torch.randn(count, dim, generator=torch.Generator().manual_seed(count)) * torch.logspace(-4, 3, count)[:, None]
    values[count // 2] = torch.tensor([0.0, -0.0]).repeat(dim // 2)
    values[1, 3], values[2, -1], values[3, 5] = torch.nan, torch.inf, -torch.inf
    return values.bfloat16()


def write(place: Place, keys: int, dim: int, block: int, *, layout: str = "flat", scale_format: str = "fp32") -> None:
    """quantize_keys_to_cache of fp8 keys; some slots are negative or past the cache, and blocks lie apart."""
    k, (memory, slots) = some_keys(keys, dim), _empty(keys, block, dim, place)
    octets, scales = fp8_bytes(k, place.fp8, scale_format == "ue8m0")
    stride = block * (dim + 4) + 16
    cache = memory.as_strided((len(memory) // stride, block, 1, dim + 4), (stride, dim + 4, dim + 4, 1))
    expected, held = memory.cpu(), (slots >= 0) & (slots < len(cache) * block)
    start, inside = slots[held] // block * stride, slots[held] % block
    place_of = paged.byte_of(inside[:, None], torch.arange(dim), dim, layout)
    expected[start[:, None] + place_of] = octets[held]
    expected[start[:, None] + block * dim + inside[:, None] * 4 + torch.arange(4)] = scales[held]
    quantize_keys_to_cache(
        k.to(place.device), cache, slots.to(place.device), dtype=place.fp8, scale_format=scale_format, layout=layout
    )
    _same_bytes(memory, expected)


def _empty(keys: int, block: int, width: int, place: Place) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory of a cache with too few blocks for its keys, full of bytes that differ from their neighbours, and slots."""
    blocks = keys // block + 1
    memory = (torch.arange(blocks * (block * (width + 4) + 16)) * 37 % 251).to(torch.uint8)
    slots = torch.randperm(blocks * block + 6, generator=torch.Generator().manual_seed(1))[:keys] - 3
    return memory.to(place.device), slots


def fp8_bytes(k: torch.Tensor, dtype: torch.dtype, power_of_two: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes of keys [n, D] and of their scales [n, 4], uint8; a key with a NaN or an infinity is NaN altogether.

    Quotients of float32 values, rounded once: float64 has more than twice their bits.
    """
    values = k.double()
    amax = values.abs().amax(-1)
    whole = amax.isfinite()
    scale = (amax.clamp(min=float(torch.tensor(FLOOR))) / LARGEST[dtype]).float()
    if power_of_two:
        mantissa, exponent = torch.frexp(scale.double())  # mantissa in [0.5, 1)
        scale = torch.exp2((exponent - (mantissa == 0.5).int()).double()).float()
    scale = torch.where(whole, scale, torch.nan)
    scaled = (values / scale.double()[:, None]).float().clamp(-LARGEST[dtype], LARGEST[dtype])
    octets = torch.where(whole[:, None], scaled, torch.nan).to(dtype).view(torch.uint8)
    return octets, scale[:, None].contiguous().view(torch.uint8)


def gather(place: Place, lens: Sequence[int], dim: int, block: int, *, layout: str = "flat", absent: bool = False) -> None:
    """gather_keys of fp8 keys, to one place more than there are."""
    call = paged.make_call(lens, dim=dim, block=block, gap=16, layout=layout, dtype=place.fp8, device=str(place.device))
    if absent:
        call = paged.without_blocks(call, 3)
    memory, stride = judge.storage_of(call.kv_cache, torch.uint8).cpu(), call.kv_cache.stride(0)
    total = sum(lens) + 1
    keys, scales = torch.zeros(total, dim, dtype=torch.uint8), torch.zeros(total, 4, dtype=torch.uint8)
    for row, start, inside in _held(call.block_table.cpu(), lens, block, call.kv_cache.shape[0], stride):
        keys[row] = memory[start[:, None] + paged.byte_of(inside[:, None], torch.arange(dim), dim, layout)]
        scales[row] = memory[start[:, None] + block * dim + inside[:, None] * 4 + torch.arange(4)]
    found = gather_keys(call.kv_cache, call.block_table, _lengths(lens, place), total, dtype=place.fp8, layout=layout)
    _same_bytes(found[0].view(torch.uint8), keys)
    _same_bytes(found[1].view(torch.uint8), scales.flatten())


def _held(table: torch.Tensor, lens: Sequence[int], block: int, blocks: int, stride: int) -> Any:
    """Of each request its keys that the cache has: their rows side by side, where their blocks begin, their places in them."""
    first = 0
    for request, count in enumerate(lens):
        position = torch.arange(count)
        pages = table[request].long()[position // block]
        held = (pages >= 0) & (pages < blocks)
        yield first + position[held], pages[held] * stride, position[held] % block
        first += count


def _same_bytes(found: torch.Tensor, expected: torch.Tensor) -> None:
    wrong = found.cpu() != expected
    if wrong.any():
        raise Disagreement(f"{int(wrong.sum())} bytes of {wrong.numel()} are others")


# --- MX formats -------------------------------------------------------------------------------------------------------------


def quantize_mx(place: Place, keys: int, dim: int, key_format: str, rule: str) -> None:
    """quantize_mx_keys."""
    k = some_keys(keys, dim)
    octets, scales = mx.quantized(k.double(), key_format, rule)
    found, words = quantize_mx_keys(k.to(place.device), key_format, rule=rule)
    _same_bytes(found.view(torch.uint8), octets)
    _same_bytes(words[:, None].contiguous().view(torch.uint8), _four(scales))


def _four(scales: torch.Tensor) -> torch.Tensor:
    """Scale bytes [n, D / 32] as words have them: bytes that no group has are 0."""
    return torch.nn.functional.pad(scales, (0, 4 - scales.shape[1]))


def write_mx(place: Place, keys: int, dim: int, block: int, key_format: str, rule: str, *, layout: str = "flat") -> None:
    """quantize_keys_to_cache of MX keys, as :func:`write`."""
    width = mx.key_bytes(key_format, dim)
    k, (memory, slots) = some_keys(keys, dim), _empty(keys, block, width, place)
    octets, scales = mx.quantized(k.double(), key_format, rule)
    stride = block * (width + 4) + 16
    cache = memory.as_strided((len(memory) // stride, block, 1, width + 4), (stride, width + 4, width + 4, 1))
    expected, held = memory.cpu(), (slots >= 0) & (slots < len(cache) * block)
    start, inside = slots[held] // block * stride, slots[held] % block
    expected[start[:, None] + mx_paged.value_places(layout, inside, width, block)] = octets[held]
    expected[start[:, None] + block * width + mx_paged.scale_places(layout, inside, 4, block)] = _four(scales)[held]
    options: dict[str, Any] = {"key_format": key_format, "rule": rule, "layout": layout}
    quantize_keys_to_cache(k.to(place.device), cache, slots.to(place.device), **options)
    _same_bytes(memory, expected)


def gather_mx(place: Place, lens: Sequence[int], dim: int, block: int, key_format: str, *, layout: str = "flat") -> None:
    """gather_keys of MX keys, to one place more than there are."""
    pair = (key_format, key_format)
    call = mx_paged.make_call(lens, dim=dim, block=block, pair=pair, layout=layout, gap=16, device=str(place.device))
    width = mx.key_bytes(key_format, dim)
    memory, stride = judge.storage_of(call.kv_cache, torch.uint8).cpu(), call.kv_cache.stride(0)
    total = sum(lens) + 1
    keys, scales = torch.zeros(total, width, dtype=torch.uint8), torch.zeros(total, 4, dtype=torch.uint8)
    for row, start, inside in _held(call.block_table.cpu(), lens, block, call.kv_cache.shape[0], stride):
        keys[row] = memory[start[:, None] + mx_paged.value_places(layout, inside, width, block)]
        scales[row] = memory[start[:, None] + block * width + mx_paged.scale_places(layout, inside, 4, block)]
    found = gather_keys(call.kv_cache, call.block_table, _lengths(lens, place), total, key_format=key_format, layout=layout)
    _same_bytes(found[0].view(torch.uint8), keys)
    _same_bytes(found[1][:, None].contiguous().view(torch.uint8), scales)
