"""The key cache in MX formats: every byte that the writer writes and the gather reads, by each engine's own formula."""

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from capgate.kernels import gather_keys, quantize_keys_to_cache, quantize_mx_keys
from capgate.kernels.key_cache import reference_mx
from capgate.kernels.key_cache.api import gather_keys_between
from capgate.kernels.key_cache.operands_mx import MxBetween, MxGathered, MxWritten
from capgate.kernels.key_cache.operation_mx import MODES, Problem, gathering, writing
from support import mx
from support.judge import storage_of

BLOCKS = {"flat": (1, 48), "preshuffled": (16, 80), "gluon-16": (48,), "gluon-32": (64, 96), "flydsl": (64,)}
# Every layout, with blocks of several sizes and one of the dims each.
KINDS = [
    (name, layout, block, dims[place % len(dims)])
    for (name, layout), dims in mx.LAYOUTS.items()
    for place, block in enumerate(BLOCKS[layout])
]
each_kind = pytest.mark.parametrize(("name", "layout", "block", "dim"), KINDS, ids=["-".join(map(str, kind)) for kind in KINDS])


@pytest.fixture(params=[pytest.param("reference", marks=pytest.mark.any_triton), "classic"])
def cache_variant(request: pytest.FixtureRequest) -> Any:
    """What writes and gathers, called as the operations call it."""
    if request.param == "reference":
        return reference_mx
    request.getfixturevalue("interpreter")
    from capgate.kernels.key_cache import classic_mx

    cpu = Problem(torch.device("cpu"))
    return SimpleNamespace(write=partial(classic_mx.write.launch, cpu), gather=partial(classic_mx.gather.launch, cpu))


def empty_cache(name: str, layout: str, blocks: int, block: int, dim: int, gap: int = 12) -> tuple[torch.Tensor, Any]:
    """A cache, and its scales where they lie apart, of bytes that differ from their neighbours, between the blocks too."""

    def strided(shape: tuple[int, ...]) -> torch.Tensor:
        steps = [int(np.prod(shape[place + 1 :])) for place in range(1, len(shape))]
        distance = steps[0] * shape[1] + gap
        memory = (torch.arange(blocks * distance + 8) * 37 % 251).to(torch.uint8)
        return memory.as_strided((blocks, *shape[1:]), (distance, *steps), 8)

    if layout == "flydsl":
        return strided((blocks, 1, 4, block, 16)), strided((blocks, 1, 4, block))
    return strided((blocks, block, 1, mx.key_bytes(name, dim) + 4)), None


def addresses(kv_cache: torch.Tensor, layout: str, slot: int, place: int, of_scales: int, key_bytes: int) -> tuple[int, int]:
    """Of a byte's place: which tensor has it, and where in that one's storage."""
    block = kv_cache.shape[3] if layout == "flydsl" else kv_cache.shape[1]
    if layout == "flydsl":
        distance = block * (4 if of_scales else 64) + 12
        return of_scales, 8 + slot // block * distance + place
    return 0, 8 + slot // block * kv_cache.stride(0) + block * key_bytes * of_scales + place


def some_keys(count: int, dim: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Keys of very different sizes; among them one of zeros of either sign, and groups that are not finite."""
    values = torch.randn(count, dim, generator=torch.Generator().manual_seed(3)) * torch.logspace(-4, 3, count)[:, None]
    values[count // 2] = torch.tensor([0.0, -0.0]).repeat(dim // 2)
    values[1, 3], values[2, -1], values[3, 5] = torch.nan, torch.inf, -torch.inf
    return values.to(dtype)


@pytest.mark.dealt("name", "layout")
@each_kind
def test_each_byte_lands_in_its_place_and_no_other_changes(
    cache_variant: Any, name: str, layout: str, block: int, dim: int
) -> None:
    """Some slots negative, some past the cache; in blocks with gaps between them."""
    rule = "sglang" if name == "mxfp4" else "deepgemm"
    slots = torch.randperm(5 * block + 6, generator=torch.Generator().manual_seed(1)).tolist()[: 5 * block + 2][:60]
    slots = [slot - 3 for slot in slots]
    k, (kv_cache, kv_scale) = some_keys(60, dim)[: len(slots)], empty_cache(name, layout, 5, block, dim)
    tensors = [tensor for tensor in (kv_cache, kv_scale) if tensor is not None]
    expected = [storage_of(tensor, torch.uint8).clone() for tensor in tensors]
    for key, of_scales, place, byte in placed(layout, k, slots, name, rule, block):
        if 0 <= slots[key] < 5 * block:
            tensor, at = addresses(kv_cache, layout, slots[key], place, of_scales, mx.key_bytes(name, dim))
            expected[tensor][at] = byte
    index = torch.int32 if block > 50 else torch.int64
    inputs = MxWritten(k, kv_cache, torch.tensor(slots, dtype=index), kv_scale)
    cache_variant.write(inputs, key_format=name, rule=rule, layout=layout)
    for tensor, wanted in zip(tensors, expected, strict=True):
        assert torch.equal(storage_of(tensor, torch.uint8), wanted)


def placed(layout: str, k: torch.Tensor, slots: list[int], name: str, rule: str, block: int) -> Iterator[tuple[int, ...]]:
    """Each byte that keys become: (the key, 0 for a value and 1 for a scale, its place in the block, the byte)."""
    octets, scales = mx.quantized(k.float().double().numpy(), name, rule)
    for key, inside in enumerate(slot % block for slot in slots):
        for byte, octet in enumerate(octets[key].tolist()):
            yield key, 0, mx.value_place(layout, inside, byte, octets.shape[1], block), octet
        for group, scale in enumerate((scales[key].tolist() + [0] * 4)[:4]):  # a byte that no group has is 0
            yield key, 1, mx.scale_place(layout, inside, group, block), scale


@pytest.mark.dealt("name", "layout")
@each_kind
@pytest.mark.parametrize("between", [False, True])
def test_gathered_keys_lie_side_by_side(
    cache_variant: Any, name: str, layout: str, block: int, dim: int, between: bool
) -> None:
    """Keys of requests, one block of which the cache lacks; what nobody asks for stays, or becomes zeros."""
    kv_cache, kv_scale = empty_cache(name, layout, 6, block, dim)
    memory = [storage_of(tensor, torch.uint8) for tensor in (kv_cache, kv_scale) if tensor is not None]
    width, entries = mx.key_bytes(name, dim), -(-70 // block)
    counts = [min(70, 5 * block), 0, min(3, block)]
    table = torch.full((3, max(entries, 5) + 1), 99, dtype=torch.int32)
    table[0, :5], table[2, 0] = torch.tensor([3, -1, 0, 2, 5]), 4
    expected = np.full((90, width + 4), 7, np.uint8)
    first = 5 if between else 0
    if not between:
        expected[:] = 0
    position = first
    for request, count in enumerate(counts):
        for offset in range(count):
            page = int(table[request, offset // block])
            row = expected[position]
            row[:] = 0
            if 0 <= page < 6:
                slot, at = page * block + offset % block, offset % block
                for byte in range(width):
                    tensor, where = addresses(kv_cache, layout, slot, mx.value_place(layout, at, byte, width, block), 0, width)
                    row[byte] = memory[tensor][where]
                for group in range(4):
                    tensor, where = addresses(kv_cache, layout, slot, mx.scale_place(layout, at, group, block), 1, width)
                    row[width + group] = memory[tensor][where]
            position += 1
    keys, scales = (
        torch.full((90, width + 16), 7, dtype=torch.uint8)[:, :width],
        torch.full((90, 2), 0x07070707, dtype=torch.int32)[:, 1],
    )
    if between:
        ends = torch.tensor([first + sum(counts[:count]) for count in range(4)], dtype=torch.int32)
        inputs: Any = MxBetween(kv_cache, table, ends, kv_scale)
    else:
        inputs = MxGathered(kv_cache, table, torch.tensor(counts, dtype=torch.int32), kv_scale)
    cache_variant.gather(inputs, keys, scales, key_format=name, layout=layout)
    assert torch.equal(keys, torch.from_numpy(expected[:, :width].copy()))
    assert torch.equal(scales, torch.from_numpy(expected[:, width:].copy()).view(torch.int32)[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_keys_of_other_types_and_strides(cache_variant: Any, dtype: torch.dtype) -> None:
    k = some_keys(21, 128, dtype)[:, None].expand(-1, 2, -1)[:, 1].t().contiguous().t()
    kv_cache, _ = empty_cache("mxfp4", "gluon-32", 2, 32, 128)
    cache_variant.write(MxWritten(k, kv_cache, torch.arange(63)[::3], None), key_format="mxfp4", rule="vllm", layout="gluon-32")
    octets, scales = mx.quantized(k.double().numpy(), "mxfp4", "vllm")
    memory = storage_of(kv_cache, torch.uint8)
    for key, slot in enumerate(range(0, 63, 3)):
        start = 8 + slot // 32 * kv_cache.stride(0)
        found = [int(memory[start + mx.value_place("gluon-32", slot % 32, byte, 64, 32)]) for byte in range(64)]
        assert found == octets[key].tolist()
        found = [int(memory[start + 32 * 64 + mx.scale_place("gluon-32", slot % 32, group, 32)]) for group in range(4)]
        assert found == scales[key].tolist()


def test_nothing_is_written_where_no_slot_is_in_the_cache(cache_variant: Any) -> None:
    kv_cache, kv_scale = empty_cache("mxfp4", "flydsl", 2, 64, 128)
    before = [storage_of(tensor, torch.uint8).clone() for tensor in (kv_cache, kv_scale)]
    inputs = MxWritten(some_keys(4, 128), kv_cache, torch.tensor([-1, 128, -128, 2**40]), kv_scale)
    cache_variant.write(inputs, key_format="mxfp4", rule="vllm", layout="flydsl")
    for tensor, memory in zip((kv_cache, kv_scale), before, strict=True):
        assert torch.equal(storage_of(tensor, torch.uint8), memory)


# --- the public functions -------------------------------------------------------------------------------------------------


@pytest.mark.any_triton
@pytest.mark.parametrize(("name", "rule"), mx.PRODUCERS, ids=["-".join(kind) for kind in mx.PRODUCERS])
def test_what_is_written_is_gathered_in_every_layout(name: str, rule: str) -> None:
    k, slots = some_keys(70, 128), torch.randperm(128, generator=torch.Generator().manual_seed(2))[:70]
    table, lens = torch.tensor([[0, 1]], dtype=torch.int32), torch.tensor([128], dtype=torch.int32)
    expected = [torch.zeros(130, mx.key_bytes(name, 128), dtype=torch.uint8), torch.zeros(130, dtype=torch.int32)]
    for whole, part in zip(expected, quantize_mx_keys(k, name, rule=rule), strict=True):
        whole[slots] = part.view(torch.uint8) if part.dtype == torch.float8_e4m3fn else part
    for layout in (layout for kind, layout in mx.LAYOUTS if kind == name):
        kv_cache, kv_scale = (
            part and part.zero_() if part is None else part.zero_() for part in empty_cache(name, layout, 2, 64, 128)
        )
        options: dict[str, Any] = {"key_format": name, "layout": layout, "kv_scale": kv_scale}
        quantize_keys_to_cache(k, kv_cache, slots, rule=rule, **options)
        keys, scales = gather_keys(kv_cache, table, lens, 130, **options)
        assert keys.dtype == (torch.uint8 if name == "mxfp4" else torch.float8_e4m3fn)
        assert torch.equal(keys.view(torch.uint8), expected[0])
        assert torch.equal(scales, expected[1])
        given = (torch.ones(130, keys.shape[1] + 16, dtype=torch.int8)[:, : keys.shape[1]], torch.ones(130, dtype=torch.int32))
        given = (given[0] if name == "mxfp4" else given[0].view(torch.float8_e4m3fn), given[1])
        assert gather_keys(kv_cache, table, lens, 130, out=given, **options) is not None
        assert torch.equal(given[0].view(torch.uint8), expected[0])
        between = (torch.ones(130, keys.shape[1], dtype=torch.uint8), torch.ones(130, dtype=torch.int32))
        gather_keys_between(kv_cache, table, torch.tensor([0, 128], dtype=torch.int32), *between, **options)
        assert torch.equal(between[0][:128], expected[0][:128])
        assert torch.equal(between[1][:128], expected[1][:128])


def byte_zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


MXFP4 = {"key_format": "mxfp4", "kv_cache": byte_zeros(2, 64, 1, 68)}
FLYDSL = {
    "key_format": "mxfp4",
    "layout": "flydsl",
    "kv_cache": byte_zeros(2, 1, 4, 64, 16),
    "kv_scale": byte_zeros(2, 1, 4, 64),
}
SHARED = byte_zeros(2 * (64 * 64 + 256))
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no such format": ({"key_format": "fp4"}, ValueError, "key_format: got 'fp4', needs 'fp8', 'mxfp8' or 'mxfp4'"),
    "a format that is none": ({"key_format": 4}, TypeError, "key_format: got int"),
    "fp8 has no rule": ({"rule": "vllm"}, ValueError, "rule: got 'vllm', needs None with key_format 'fp8'"),
    "fp8 has no kv_scale": ({"kv_scale": byte_zeros(2)}, ValueError, "kv_scale: got Tensor, needs None with key_format 'fp8'"),
    "fp8 in another layout": ({"layout": "flydsl"}, ValueError, "layout: got 'flydsl', needs 'flat' or 'preshuffled'"),
    "a dtype": (MXFP4 | {"dtype": torch.float8_e4m3fnuz}, ValueError, "dtype: got torch.float8_e4m3fnuz, which fp8 keys have"),
    "a scale format": (MXFP4 | {"scale_format": "ue8m0"}, ValueError, "scale_format: got 'ue8m0', which fp8 keys have"),
    "largest": (MXFP4 | {"largest": 224.0}, ValueError, "largest: got 224.0, which fp8 keys have"),
    "mxfp8 in FP4's layout": (
        {"key_format": "mxfp8", "layout": "gluon-16"},
        ValueError,
        "layout: got 'gluon-16', needs 'flat' or 'preshuffled'",
    ),
    "no such rule": (MXFP4 | {"rule": "ocp"}, ValueError, "rule: got 'ocp', needs 'vllm', 'deepgemm', 'sglang'"),
    "mxfp8's width in mxfp4": (MXFP4 | {"kv_cache": byte_zeros(2, 64, 1, 132)}, ValueError, "kv_cache: got shape"),
    "other dims than the cache's": (MXFP4 | {"k": torch.zeros(3, 64)}, ValueError, r"k: got shape \(3, 64\), needs \[T, 128\]"),
    "64 dims in aiter's layout": (
        MXFP4 | {"layout": "gluon-16", "kv_cache": byte_zeros(2, 64, 1, 36), "k": torch.zeros(3, 64)},
        ValueError,
        r"kv_cache: got shape \(2, 64, 1, 36\), needs \[num_blocks, block, 1, D / 2 \+ 4\] with .* D / 2 \+ 4 in \(68,\)",
    ),
    "parts of a tile": (
        MXFP4 | {"layout": "gluon-32", "kv_cache": byte_zeros(2, 48, 1, 68)},
        ValueError,
        "kv_cache: got blocks of 48 keys, needs a multiple of 32 in a gluon-32 cache",
    ),
    "scales where they have no place": (
        MXFP4 | {"kv_scale": byte_zeros(2, 1, 4, 64)},
        ValueError,
        "kv_scale: got Tensor, needs None: flat blocks hold the scales of their keys",
    ),
    "no scales": (FLYDSL | {"kv_scale": None}, TypeError, "kv_scale: got NoneType, needs a torch.Tensor"),
    "one cache for both": (FLYDSL | {"kv_cache": byte_zeros(2, 64, 1, 68)}, ValueError, "kv_cache: got shape"),
    "blocks of 128": (
        FLYDSL | {"kv_cache": byte_zeros(2, 1, 4, 128, 16)},
        ValueError,
        r"kv_cache: got shape \(2, 1, 4, 128, 16\), needs .* with block in \(64,\)",
    ),
    "scales of other blocks": (FLYDSL | {"kv_scale": byte_zeros(3, 1, 4, 64)}, ValueError, "kv_scale: got shape"),
    "values apart": (
        FLYDSL | {"kv_cache": byte_zeros(2, 1, 4, 64, 32)[..., :16]},
        ValueError,
        "kv_cache: got strides .*, needs blocks of adjacent bytes, at least 4096 bytes apart",
    ),
    "blocks of scales over one another": (
        FLYDSL | {"kv_scale": byte_zeros(1, 1, 4, 64).expand(2, -1, -1, -1)},
        ValueError,
        "kv_scale: got strides .*, needs blocks of adjacent bytes, at least 256 bytes apart",
    ),
    "scales over keys": (
        FLYDSL | {"kv_scale": SHARED[:512].view(2, 1, 4, 64), "k": SHARED[: 3 * 128 * 4].view(torch.float32).view(3, 128)},
        ValueError,
        "kv_scale: shares memory with k, needs ",
    ),
    "scales over values": (
        FLYDSL
        | {
            "kv_cache": SHARED.as_strided((2, 1, 4, 64, 16), (4096 + 256, 4096, 1024, 16, 1)),
            "kv_scale": SHARED.as_strided((2, 1, 4, 64), (4096 + 256, 256, 64, 1), 4000),
        },
        ValueError,
        "kv_cache: shares memory with kv_scale, needs ",
    ),
}


@pytest.mark.any_triton
@pytest.mark.parametrize(("change", "error", "words"), BAD.values(), ids=BAD)
def test_a_bad_call_is_refused_by_name_and_nothing_is_written(
    change: dict[str, Any], error: type[Exception], words: str
) -> None:
    good = {"k": torch.ones(3, 128), "kv_cache": byte_zeros(2, 64, 1, 132), "slot_mapping": torch.arange(3)}
    quantize_keys_to_cache(**good)
    arguments = good | {"kv_cache": byte_zeros(2, 64, 1, 132)} | change
    with pytest.raises(error, match=f"^{words}"):
        quantize_keys_to_cache(**arguments)
    assert not any(arguments[name].any() for name in ("kv_cache", "kv_scale") if isinstance(arguments.get(name), torch.Tensor))


@pytest.mark.any_triton
def test_values_and_scales_of_a_page_may_lie_in_one_pool() -> None:
    """The scales behind the values of each page: the layout's formulas meet where a pool of 4352 bytes a page has both."""
    pool = SHARED.clone()
    parts = {
        "kv_cache": pool.as_strided((2, 1, 4, 64, 16), (4096 + 256, 4096, 1024, 16, 1)),
        "kv_scale": pool.as_strided((2, 1, 4, 64), (4096 + 256, 256, 64, 1), 4096),
    }
    k, slots = some_keys(20, 128), torch.arange(20) * 6
    quantize_keys_to_cache(k, slot_mapping=slots, layout="flydsl", key_format="mxfp4", **parts)
    other = {name: tensor.clone() for name, tensor in FLYDSL.items() if name.startswith("kv")}
    quantize_keys_to_cache(k, slot_mapping=slots, layout="flydsl", key_format="mxfp4", **other)
    assert all(torch.equal(parts[name], other[name]) for name in parts)


GATHERED = {"block_table": torch.zeros(2, 3, dtype=torch.int32), "lens": torch.zeros(2, dtype=torch.int32), "total": 5}
KEYS, SCALES = byte_zeros(5, 64), torch.zeros(5, dtype=torch.int32)


@pytest.mark.any_triton
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"dtype": torch.float8_e4m3fnuz}, ValueError, "dtype: got torch.float8_e4m3fnuz, which fp8 keys have"),
        ({"layout": "rows"}, ValueError, "layout: got 'rows', needs 'flat', 'preshuffled', 'gluon-16', 'gluon-32' or 'flydsl'"),
        ({"total": -1}, ValueError, "total: got -1"),
        ({"lens": torch.zeros(3, dtype=torch.int32)}, ValueError, r"lens: got shape \(3,\), needs \[2\]"),
        ({"kv_cache": byte_zeros(2, 64, 1, 132)}, ValueError, r"kv_cache: got shape \(2, 64, 1, 132\)"),
        ({"out": KEYS}, TypeError, "out: got Tensor, needs a pair"),
        (
            {"out": (KEYS.view(torch.float8_e4m3fn), SCALES)},
            TypeError,
            "out: got keys of torch.float8_e4m3fn, needs torch.uint8",
        ),
        ({"out": (KEYS, SCALES.float())}, TypeError, "out: got scales of torch.float32, needs torch.int32"),
        (
            {"out": (byte_zeros(5, 128), SCALES)},
            ValueError,
            r"out: got shapes \(5, 128\) and \(5,\), needs \[5, 64\] and \[5\]",
        ),
    ],
)
def test_a_bad_gather_is_refused_by_name(change: dict[str, Any], error: type[Exception], words: str) -> None:
    gather_keys(**MXFP4 | GATHERED)
    with pytest.raises(error, match=f"^{words}"):
        gather_keys(**MXFP4 | GATHERED | change)


@pytest.mark.any_triton
def test_no_keys_and_no_cache() -> None:
    empty = MXFP4 | {"kv_cache": byte_zeros(0, 64, 1, 68)}
    quantize_keys_to_cache(torch.ones(3, 128), slot_mapping=torch.arange(3), **empty)
    quantize_keys_to_cache(torch.ones(0, 128), slot_mapping=torch.arange(0), **MXFP4)
    keys, scales = gather_keys(**empty | GATHERED | {"lens": torch.tensor([2, 1], dtype=torch.int32)})
    assert not keys.any()
    assert not scales.any()
    assert gather_keys(**MXFP4 | GATHERED | {"total": 0})[0].shape == (0, 64)


@pytest.mark.any_triton
def test_torch_understands_the_operators() -> None:
    """Values and scales in tensors of their own are two that one operator writes."""
    parts = [FLYDSL["kv_cache"].clone(), FLYDSL["kv_scale"].clone()]
    slots, options = torch.tensor([3, -1, 64]), ("mxfp4", "vllm", "flydsl")
    torch.library.opcheck(
        torch.ops.capgate.quantize_mx_keys_to_cache, (torch.randn(3, 128), parts[0], slots, parts[1], *options)
    )
    table, lens = GATHERED["block_table"], torch.tensor([20, 5], dtype=torch.int32)
    torch.library.opcheck(torch.ops.capgate.gather_mx_keys, (parts[0], table, lens, parts[1], 30, "mxfp4", "flydsl"))
    torch.library.opcheck(
        torch.ops.capgate.gather_mx_keys_out,
        (parts[0], table, lens, parts[1], byte_zeros(30, 64), torch.zeros(30, dtype=torch.int32), "mxfp4", "flydsl"),
    )

    def step(k: torch.Tensor, kv_cache: torch.Tensor, kv_scale: torch.Tensor, total: int) -> Any:
        where: dict[str, Any] = {"key_format": "mxfp4", "layout": "flydsl", "kv_scale": kv_scale}
        quantize_keys_to_cache(k, kv_cache, slots, **where)
        return gather_keys(kv_cache, table, lens, total, **where)

    torch._dynamo.reset()
    compiled: Callable[..., Any] = torch.compile(step, fullgraph=True, backend="aot_eager")
    both = [[part.clone() for part in parts] for _ in range(2)]
    k = torch.randn(3, 128)
    results = [call(k, *caches, 30) for call, caches in zip((compiled, step), both, strict=True)]
    for one, other in zip((*results[0], *both[0]), (*results[1], *both[1]), strict=True):
        assert torch.equal(one, other)
    assert both[0][1].any()


def test_classic_fits_sm90_without_spills(compile_once: Callable[..., Any]) -> None:
    """What it becomes on AMD is in tests/gfx950."""
    from capgate.compat.offline.jobs import Job

    jobs = [Job("classic", mode=mode) for mode in ("mxfp8-preshuffled", "mxfp4-flydsl")]
    assert {job.mode for job in jobs} < set(MODES)
    for row in (*compile_once(writing.name, "cuda:90", jobs), *compile_once(gathering.name, "cuda:90", jobs[1:])):
        assert row["compiled"], row["error"]
        assert (row["spills"], row["scratch_bytes"]) == (0, 0), row["mode"]
