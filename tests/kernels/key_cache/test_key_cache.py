"""The paged key cache: what the writer writes, what the gather reads, and from bf16 activations to logits."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from capgate.kernels import fp8_mqa_logits, fp8_paged_mqa_logits, gather_keys, quantize_keys_to_cache
from capgate.kernels.key_cache import reference
from capgate.kernels.key_cache.operands import Gathered, Written
from capgate.kernels.key_cache.operation import Problem
from capgate.kernels.quantize import FP8_MAX, quantize_keys, quantize_queries
from support import paged

DTYPES = pytest.mark.parametrize("dtype", list(FP8_MAX), ids=str)
BLOCKS = pytest.mark.parametrize("block", [1, 16, 64])
LAYOUTS = ("flat", "preshuffled")


@pytest.fixture(params=[pytest.param("reference", marks=pytest.mark.any_triton), "classic"])
def cache_variant(request: pytest.FixtureRequest) -> Any:
    """What writes and gathers, called as the operations call it."""
    if request.param == "reference":
        return reference
    request.getfixturevalue("interpreter")
    from capgate.kernels.key_cache import classic

    cpu = Problem(torch.device("cpu"))
    return SimpleNamespace(write=partial(classic.write.launch, cpu), gather=partial(classic.gather.launch, cpu))


def empty_cache(blocks: int, block: int, dim: int, gap: int = 0) -> torch.Tensor:
    """A cache of bytes that differ from their neighbours, between the blocks too."""
    stride = block * (dim + 4) + gap
    memory = (torch.arange(blocks * stride + 8) * 37 % 251).to(torch.uint8)
    return memory.as_strided((blocks, block, 1, dim + 4), (stride, dim + 4, dim + 4, 1), 8)


def some_keys(count: int, dim: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Keys of very different sizes, a key of zeros among them."""
    values = torch.randn(count, dim, generator=torch.Generator().manual_seed(3)) * torch.logspace(-3, 3, count)[:, None]
    values[count // 2] = 0
    return values.to(dtype)


@pytest.mark.dealt("dtype", "scale_format", "layout")
@DTYPES
@pytest.mark.parametrize(("block", "scale_format"), [(1, "ue8m0"), (16, "fp32"), (48, "ue8m0"), (64, "fp32"), (256, "ue8m0")])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_key_lands_in_its_slot_and_nowhere_else(
    cache_variant: Any, block: int, dtype: torch.dtype, scale_format: str, layout: str
) -> None:
    if block == 1 and layout == "preshuffled":
        pytest.skip("a tile has 16 keys")
    cache = empty_cache(5, block, 32, gap=12)
    slots = torch.randperm(5 * block, generator=torch.Generator().manual_seed(1))[: 4 * block + 1]
    k, before = some_keys(len(slots), 32), paged.judge.storage_of(cache, torch.uint8).clone()
    cache_variant.write(Written(k, cache, slots), dtype=dtype, scale_format=scale_format, layout=layout)
    quantized, scale = quantize_keys(k, dtype, scale_format=scale_format)
    keys, scales = paged.read_keys(cache, slots // block, slots % block, dtype, layout)
    assert torch.equal(keys, quantized.double())
    assert torch.equal(scales, scale.double())
    start = cache.storage_offset() + slots // block * cache.stride(0)
    written = [start[:, None] + paged.byte_of((slots % block)[:, None], torch.arange(32), 32, layout)]
    written.append((start + 32 * block + slots % block * 4)[:, None] + torch.arange(4))
    kept = torch.ones_like(before, dtype=torch.bool)
    for addresses in written:
        kept[addresses] = False
    assert torch.equal(paged.judge.storage_of(cache, torch.uint8)[kept], before[kept])


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize(
    "slots", [[-1, 3, -(2**31), 17, -1], [5, -1, -1, -1, 0], [-1] * 5, [64, 32, 2**31 - 1, -2, 31]], ids=str
)
def test_slots_outside_the_cache_are_skipped(cache_variant: Any, slots: list[int], index: torch.dtype) -> None:
    cache, k = empty_cache(2, 16, 64), some_keys(5, 64)
    expected = cache.clone(memory_format=torch.preserve_format)
    kept = [number for number, slot in enumerate(slots) if 0 <= slot < 32]
    if kept:
        inside = torch.tensor([slots[number] for number in kept])
        reference.write(Written(k[kept], expected, inside), dtype=torch.float8_e4m3fn, scale_format="fp32")
    cache_variant.write(Written(k, cache, torch.tensor(slots, dtype=index)), dtype=torch.float8_e4m3fn, scale_format="fp32")
    assert torch.equal(cache, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_keys_of_any_float_type_and_strides(cache_variant: Any, dtype: torch.dtype) -> None:
    k = some_keys(21, 128, dtype)[:, None].expand(-1, 2, -1)[:, 1]
    strided = paged.judge.laid_out(k, (1, 0), 3, 2, 5)
    caches = [empty_cache(2, 16, 128) for _ in range(2)]
    slots = paged.judge.laid_out(torch.arange(21).flip(0), step=3)
    cache_variant.write(Written(strided, caches[0], slots), dtype=torch.float8_e4m3fn, scale_format="fp32")
    reference.write(Written(k.contiguous(), caches[1], slots.contiguous()), dtype=torch.float8_e4m3fn, scale_format="fp32")
    assert torch.equal(*caches)


@pytest.mark.usefixtures("interpreter")
@DTYPES
def test_classic_rounds_every_float32_as_torch_does(dtype: torch.dtype) -> None:
    """Every exponent and fraction round which e4m3 rounds, ties and subnormal values among them."""
    from capgate.kernels.key_cache import classic

    fractions = torch.arange(0, 2**23, 2**18 - 1, dtype=torch.int32)
    exponents = torch.arange(100, 137, dtype=torch.int32)[:, None] << 23
    values = (fractions | exponents).flatten().view(torch.float32)
    ties = (torch.arange(0, 64, dtype=torch.int32) << 19 | exponents).flatten().view(torch.float32)
    values = torch.cat([values, -values, ties, -ties])
    values = values[values.abs() < FP8_MAX[dtype]]
    k = torch.full((-(-len(values) // 31), 32), FP8_MAX[dtype])  # the first value of a row: it makes the scale 1
    k[:, 1:].copy_(torch.cat([values, values.new_zeros(-len(values) % 31)]).view(-1, 31))
    blocks = -(-len(k) // 64)
    caches, slots = [torch.zeros(blocks, 64, 1, 36, dtype=torch.uint8) for _ in range(2)], torch.arange(len(k))
    writers = (partial(classic.write.launch, Problem(k.device)), reference.write)
    for write, cache in zip(writers, caches, strict=True):
        write(Written(k, cache, slots), dtype=dtype, scale_format="fp32")
    assert torch.equal(*caches)


@pytest.mark.dealt
@BLOCKS
@pytest.mark.parametrize("lens", [[70, 0, 129, 1, 64], [0, 0], [300], [-3, 5, -(2**31)]], ids=str)
@pytest.mark.parametrize("more", [0, 40, -6], ids=["exactly", "room-left", "cut-short"])
def test_gathered_keys_lie_side_by_side(cache_variant: Any, block: int, lens: list[int], more: int) -> None:
    call = paged.make_call(lens, block=block, gap=8)
    counts = [max(count, 0) for count in lens]
    total = max(0, sum(counts) + more)
    keys, scales = torch.full((total, 32), 9.0).to(torch.float8_e4m3fn), torch.full((total,), 9.0)
    cache_variant.gather(Gathered(call.kv_cache, call.block_table, call.context_lens), keys, scales)
    parts = [(torch.zeros(0, 32).double(), torch.zeros(0).double())]
    for request, count in enumerate(counts):
        position = torch.arange(count)
        pages = call.block_table[request, position // block]
        parts.append(paged.read_keys(call.kv_cache, pages, position % block, torch.float8_e4m3fn))
    for gathered, part in ((keys, 0), (scales, 1)):
        expected = torch.cat([found[part] for found in parts])[:total]
        assert torch.equal(gathered[: len(expected)].double(), expected)
        assert not gathered[len(expected) :].double().any()


def test_gather_gives_zeros_for_blocks_that_the_cache_lacks(cache_variant: Any) -> None:
    """Such keys keep their places, so that the others keep theirs."""
    call = paged.make_call([40, 3, 33], block=16, spare_entries=0)
    lacking = paged.without_blocks(call)
    keys, scales = torch.ones(76, 32).to(torch.float8_e4m3fn), torch.ones(76)
    cache_variant.gather(Gathered(call.kv_cache, call.block_table, call.context_lens), keys, scales)
    held = (lacking.block_table == call.block_table).repeat_interleave(16, 1)
    held = torch.cat([row[:count] for row, count in zip(held, call.context_lens, strict=True)])
    assert 0 < held.sum() < len(held)
    some_keys, some_scales = torch.ones(76, 32).to(torch.float8_e4m3fn), torch.ones(76)
    cache_variant.gather(Gathered(call.kv_cache, lacking.block_table, call.context_lens), some_keys, some_scales)
    assert torch.equal(some_keys.float(), keys.float() * held[:, None])
    assert torch.equal(some_scales, scales * held)


def test_gather_needs_no_cache_for_no_keys(cache_variant: Any) -> None:
    call = paged.make_call([0, 0], spare_entries=0)
    for cache in (call.kv_cache, call.kv_cache[:0]):
        keys, scales = torch.ones(3, 32).to(torch.float8_e4m3fn), torch.ones(3)
        cache_variant.gather(Gathered(cache, call.block_table, call.context_lens), keys, scales)
        assert not keys.float().any()
        assert not scales.any()


@DTYPES
def test_from_bf16_activations_to_logits(dtype: torch.dtype) -> None:
    """Decode through the cache, and prefill through a gather of it, agree with the keys that were never in a cache."""
    generator = torch.Generator().manual_seed(0)

    def activations(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).bfloat16()

    lens, next_n, heads, dim = torch.tensor([70, 5, 131], dtype=torch.int32), 2, 16, 64
    k = activations(int(lens.sum()), dim)
    q, weights = quantize_queries(activations(3, next_n, heads, dim), activations(3, next_n, heads), dtype)
    assert q.shape == (3, next_n, heads, dim)
    assert weights.shape == (3, next_n, heads)

    cache = torch.zeros(8, 64, 1, dim + 4, dtype=torch.uint8)
    table = torch.tensor([[6, 1, 99], [3, -1, -1], [0, 7, 2]], dtype=torch.int32)
    request = torch.repeat_interleave(torch.arange(3), lens.long())
    position = torch.cat([torch.arange(int(count)) for count in lens])
    quantize_keys_to_cache(k, cache, table[request, position // 64] * 64 + position % 64, dtype=dtype)
    logits = fp8_paged_mqa_logits(q, cache, weights.flatten(0, 1), lens, table, max_context_len=131, clean_logits=True)

    keys, scales = gather_keys(cache, table, lens, len(k), dtype=dtype)
    expected, expected_scales = quantize_keys(k, dtype)
    assert torch.equal(keys.float(), expected.float())
    assert torch.equal(scales, expected_scales)
    starts = (lens.cumsum(0) - lens).repeat_interleave(next_n).int()
    ends = starts + lens.repeat_interleave(next_n) - torch.tensor([1, 0] * 3, dtype=torch.int32)
    dense = fp8_mqa_logits(q.flatten(0, 1), keys, scales, weights.flatten(0, 1), starts, ends)
    for row in range(6):
        seen = slice(int(starts[row]), int(ends[row]))
        torch.testing.assert_close(logits[row, : seen.stop - seen.start], dense[row, seen])
        assert logits[row, seen.stop - seen.start :].isneginf().all()


NOT_FINITE = [
    [float("nan")],
    [float("inf")],
    [float("-inf")],
    [float("inf"), float("nan")],
    [1e38, float("inf")],
    [-float("nan")],
]


@DTYPES
@pytest.mark.parametrize("scale_format", ["fp32", "ue8m0"])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_keys_that_are_not_finite_are_nan_altogether(
    cache_variant: Any, dtype: torch.dtype, scale_format: str, given: torch.dtype
) -> None:
    """Bit for bit: the format's one NaN in every value, and the scale's; other keys are as without them."""
    k = some_keys(2 * len(NOT_FINITE), 32, given)
    cache, expected = (torch.zeros(1, 16, 1, 36, dtype=torch.uint8) for _ in range(2))
    slots = torch.arange(len(k))
    reference.write(Written(k, expected, slots), dtype=dtype, scale_format=scale_format)
    for row, values in enumerate(NOT_FINITE):
        k[2 * row, 5 : 5 + len(values)] = torch.tensor(values)
        octets = expected.view(-1)[: 16 * 32].view(16, 32)
        octets[2 * row] = 0x7F if dtype == torch.float8_e4m3fn else 0x80
        expected.view(-1)[16 * 32 :].view(torch.int32)[2 * row] = 0x7FC00000
    cache_variant.write(Written(k, cache, slots), dtype=dtype, scale_format=scale_format)
    assert torch.equal(cache, expected)
    keys, scales = quantize_keys(k, dtype, scale_format=scale_format)
    assert torch.equal(keys.view(torch.uint8).flatten(), expected.view(-1)[: keys.numel()])
    assert torch.equal(scales.view(torch.uint8), expected.view(-1)[16 * 32 :][: 4 * len(k)])


@DTYPES
@pytest.mark.parametrize("scale_format", ["fp32", "ue8m0"])
def test_every_scale_is_torch_s(cache_variant: Any, dtype: torch.dtype, scale_format: str) -> None:
    """From the largest magnitude to the smallest, and round the powers of two."""
    largest = torch.tensor(FP8_MAX[dtype]) * torch.logspace(-130, 118, 249, base=2)
    largest = torch.cat([largest, largest.nextafter(torch.tensor(0.0)), largest.nextafter(torch.tensor(float("inf")))])
    k = torch.zeros(len(largest), 32)
    k[:, 3], k[:, 4] = largest, -largest / 3
    blocks = -(-len(k) // 64)
    caches = [torch.zeros(blocks, 64, 1, 36, dtype=torch.uint8) for _ in range(2)]
    cache_variant.write(Written(k, caches[0], torch.arange(len(k))), dtype=dtype, scale_format=scale_format)
    reference.write(Written(k, caches[1], torch.arange(len(k))), dtype=dtype, scale_format=scale_format)
    assert torch.equal(*caches)


@pytest.mark.parametrize("scale_format", ["fp32", "ue8m0"])
def test_another_largest_value(cache_variant: Any, scale_format: str) -> None:
    """As vLLM writes e4m3fnuz; the definition, in torch's own words."""
    fnuz, k = torch.float8_e4m3fnuz, some_keys(20, 32) * torch.logspace(-6, 3, 20)[:, None].bfloat16()
    scale = k.float().abs().amax(-1).clamp(min=1e-4) / 224
    if scale_format == "ue8m0":
        scale = scale.log2().ceil().exp2()
    cache = empty_cache(20, 1, 32)
    slots = torch.arange(20)
    quantize_keys_to_cache(k, cache, slots, dtype=fnuz, scale_format=scale_format, largest=224)
    rows = cache.view(20, 36)
    assert torch.equal(rows[:, :32], (k.float() / scale[:, None]).to(fnuz).view(torch.uint8))
    assert torch.equal(rows[:, 32:].contiguous().view(torch.float32)[:, 0], scale)


def test_the_cache_shares_no_memory_with_its_keys() -> None:
    memory = torch.zeros(2 * 16 * 36 + 4 * 96 + 8, dtype=torch.uint8)
    cache = memory[: 2 * 16 * 36].view(2, 16, 1, 36)
    words = memory[2 * 16 * 36 - 4 :].view(torch.float32)
    slots = torch.zeros(3, dtype=torch.int32)
    quantize_keys_to_cache(words[1:97].view(3, 32), cache, slots)
    before = memory.clone()
    with pytest.raises(ValueError, match=r"^kv_cache: shares memory with k, needs "):
        quantize_keys_to_cache(words[:96].view(3, 32), cache, slots)
    with pytest.raises(ValueError, match=r"^kv_cache: shares memory with slot_mapping, needs "):
        quantize_keys_to_cache(torch.ones(3, 32), cache, words[:3].view(torch.int32))
    assert torch.equal(memory, before)


GOOD = {"k": lambda: torch.zeros(3, 32), "slot_mapping": lambda: torch.zeros(3, dtype=torch.int32)}
BAD_WRITES = {
    "k-list": ({"k": lambda: [1.0]}, TypeError, "k"),
    "k-three-dimensional": ({"k": lambda: torch.zeros(3, 1, 32)}, ValueError, "k"),
    "k-other-dim": ({"k": lambda: torch.zeros(3, 64)}, ValueError, "k"),
    "k-double": ({"k": lambda: torch.zeros(3, 32).double()}, TypeError, "k"),
    "k-sparse": ({"k": lambda: torch.zeros(3, 32).to_sparse()}, TypeError, "k"),
    "slot_mapping-sparse": ({"slot_mapping": lambda: torch.zeros(3, dtype=torch.int32).to_sparse()}, TypeError, "slot_mapping"),
    "dtype-text": ({"dtype": lambda: "float8_e4m3fn"}, TypeError, "dtype"),
    "scale_format-none": ({"scale_format": lambda: None}, TypeError, "scale_format"),
    "k-other-device": ({"k": lambda: torch.zeros(3, 32, device="meta")}, ValueError, "k"),
    "k-requires-grad": ({"k": lambda: torch.zeros(3, 32).requires_grad_()}, ValueError, "k"),
    "slot_mapping-list": ({"slot_mapping": lambda: [0, 1, 2]}, TypeError, "slot_mapping"),
    "slot_mapping-long": ({"slot_mapping": lambda: torch.zeros(4, dtype=torch.int32)}, ValueError, "slot_mapping"),
    "slot_mapping-float": ({"slot_mapping": lambda: torch.zeros(3)}, TypeError, "slot_mapping"),
    "slot_mapping-device": (
        {"slot_mapping": lambda: torch.zeros(3, dtype=torch.int32, device="meta")},
        ValueError,
        "slot_mapping",
    ),
    "kv_cache-dim-48": ({"kv_cache": lambda: torch.zeros(2, 16, 1, 52, dtype=torch.uint8)}, ValueError, "kv_cache"),
    "kv_cache-address": (
        {"kv_cache": lambda: torch.zeros(2000, dtype=torch.uint8)[1:1153].view(2, 16, 1, 36)},
        ValueError,
        "kv_cache",
    ),
    "largest-text": ({"largest": lambda: "224"}, TypeError, "largest"),
    "largest-none-such": ({"largest": lambda: 449}, ValueError, "largest"),
    "largest-nan": ({"largest": lambda: float("nan")}, ValueError, "largest"),
    "dtype-e5m2": ({"dtype": lambda: torch.float8_e5m2}, ValueError, "dtype"),
    "scale_format-fp16": ({"scale_format": lambda: "fp16"}, ValueError, "scale_format"),
}


@pytest.mark.parametrize(("replacements", "error", "argument"), BAD_WRITES.values(), ids=BAD_WRITES)
def test_a_bad_write_is_refused_by_name_and_changes_nothing(
    replacements: dict[str, Any], error: type[Exception], argument: str
) -> None:
    cache = empty_cache(2, 16, 32)
    before = cache.clone()
    arguments = {"kv_cache": cache, **{name: make() for name, make in (GOOD | replacements).items()}}
    with pytest.raises(error, match=f"^{argument}: "):
        quantize_keys_to_cache(**arguments)
    assert torch.equal(cache, before)


@pytest.mark.parametrize(
    ("replacements", "error", "argument"),
    [
        ({"block_table": [[0]]}, TypeError, "block_table"),
        ({"block_table": torch.zeros(2, dtype=torch.int32)}, ValueError, "block_table"),
        ({"block_table": torch.zeros(2, 3)}, TypeError, "block_table"),
        ({"lens": torch.zeros(3, dtype=torch.int32)}, ValueError, "lens"),
        ({"lens": torch.zeros(2, dtype=torch.int64)}, TypeError, "lens"),
        ({"total": -1}, ValueError, "total"),
        ({"total": torch.tensor(5)}, TypeError, "total"),
        ({"total": True}, TypeError, "total"),
        ({"lens": torch.zeros(2, dtype=torch.int32).to_sparse()}, TypeError, "lens"),
        ({"dtype": torch.uint8}, ValueError, "dtype"),
        ({"kv_cache": torch.zeros(2, 16, 1, 36)}, TypeError, "kv_cache"),
    ],
)
def test_a_bad_gather_is_refused_by_name(replacements: dict[str, Any], error: type[Exception], argument: str) -> None:
    good = {
        "kv_cache": empty_cache(2, 16, 32),
        "block_table": torch.zeros(2, 3, dtype=torch.int32),
        "lens": torch.zeros(2, dtype=torch.int32),
        "total": 5,
    }
    with pytest.raises(error, match=f"^{argument}: got "):
        gather_keys(**good | replacements)
