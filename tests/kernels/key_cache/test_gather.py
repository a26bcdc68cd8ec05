"""The gathers of the key cache: every layout, into memory of the caller's, and in the form that engines have."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from capgate.kernels import fp8_paged_mqa_logits, gather_keys, quantize_keys_to_cache
from capgate.kernels.key_cache import reference
from capgate.kernels.key_cache.api import gather_keys_between
from capgate.kernels.key_cache.operands import Between, Gathered
from capgate.kernels.key_cache.operation import Problem
from capgate.kernels.quantize import quantize_keys
from support import paged

FN = torch.float8_e4m3fn
LAYOUTS = pytest.mark.parametrize(
    ("layout", "block", "dim"),
    [("flat", 1, 32), ("flat", 48, 64), ("flat", 256, 32), ("preshuffled", 16, 128), ("preshuffled", 80, 64)],
)


@pytest.fixture(params=[pytest.param("reference", marks=pytest.mark.any_triton), "classic"])
def gather(request: pytest.FixtureRequest) -> Callable[..., None]:
    """As the operation calls a variant."""
    if request.param == "reference":
        return reference.gather
    request.getfixturevalue("interpreter")
    from capgate.kernels.key_cache import classic

    return partial(classic.gather.launch, Problem(torch.device("cpu")))


def results(total: int, dim: int, key_gap: int = 0, scale_gap: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory for gathered keys, full of sevens."""
    keys = torch.full((total * (dim + key_gap) + 3,), 7, dtype=torch.uint8)
    scales = torch.full((total * (1 + scale_gap) + 1,), 7.0)
    return (
        keys.as_strided((total, dim), (dim + key_gap, 1), 3).view(FN),
        scales.as_strided((total,), (1 + scale_gap,), 1),
    )


def expected(call: paged.PagedCall, counts: list[int], layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The first keys of each request in float64, side by side; zeros for those whose block the cache lacks."""
    block, (blocks, _, _, width) = call.kv_cache.shape[1], call.kv_cache.shape
    keys, scales = [torch.zeros(0, width - 4).double()], [torch.zeros(0).double()]
    for request, count in enumerate(counts):
        position = torch.arange(count)
        page = call.block_table[request, (position // block).clamp(max=call.block_table.shape[1] - 1)]
        held = (page >= 0) & (page < blocks) & (position < call.block_table.shape[1] * block)
        found = paged.read_keys(call.kv_cache, torch.where(held, page, 0), position % block, FN, layout)
        keys.append(torch.where(held[:, None], found[0], 0))
        scales.append(torch.where(held, found[1], 0))
    return torch.cat(keys), torch.cat(scales)


@LAYOUTS
@pytest.mark.parametrize(("key_gap", "scale_gap"), [(0, 0), (16, 3)])
def test_keys_lie_side_by_side(gather: Any, layout: str, block: int, dim: int, key_gap: int, scale_gap: int) -> None:
    counts = [70, 0, 3, 64]
    call = paged.make_call(counts, dim=dim, block=block, gap=16, layout=layout)
    keys, scales = results(150, dim, key_gap, scale_gap)
    bytes_before = paged.judge.storage_of(keys, torch.uint8).clone()
    gather(Gathered(call.kv_cache, call.block_table, call.context_lens), keys, scales, layout=layout)
    for gathered, values in zip((keys, scales), expected(call, counts, layout), strict=True):
        assert torch.equal(gathered[:137].double(), values)
        assert not gathered[137:].double().any()
    between = torch.ones(len(bytes_before), dtype=torch.bool)
    between.as_strided(keys.shape, keys.stride(), keys.storage_offset()).zero_()
    assert torch.equal(paged.judge.storage_of(keys, torch.uint8)[between], bytes_before[between])


@LAYOUTS
@pytest.mark.parametrize(
    ("cu_lens", "total"),
    [([0, 70, 70, 73, 137], 150), ([0, 70, 70, 73, 137], 100), ([5, 75, 75, 78, 142], 142), ([0, 0, 0, 0, 0], 9)],
    ids=["upper-bound", "cut-short", "not-from-0", "nothing"],
)
def test_between_running_sums_and_nowhere_else(
    gather: Any, layout: str, block: int, dim: int, cu_lens: list[int], total: int
) -> None:
    counts = [cu_lens[place + 1] - cu_lens[place] for place in range(4)]
    call = paged.without_blocks(paged.make_call(counts, dim=dim, block=block, layout=layout), 3)
    keys, scales = results(total, dim)
    sums = paged.judge.laid_out(torch.tensor(cu_lens, dtype=torch.int32), step=2)
    gather(Between(call.kv_cache, call.block_table, sums), keys, scales, layout=layout)
    first, last = min(cu_lens[0], total), min(cu_lens[-1], total)
    for gathered, values in zip((keys, scales), expected(call, counts, layout), strict=True):
        assert torch.equal(gathered[first:last].double(), values[: last - first])
    for untouched in (keys[:first], keys[last:]):
        assert (untouched.view(torch.uint8) == 7).all()
    assert (scales[:first] == 7).all()
    assert (scales[last:] == 7).all()


def test_requests_longer_than_their_rows_of_the_table_end_in_zeros(gather: Any) -> None:
    call = paged.make_call([48, 16], block=16, spare_entries=0)
    keys, scales = results(80, 32)
    gather(Between(call.kv_cache, call.block_table, torch.tensor([0, 60, 76], dtype=torch.int32)), keys, scales)
    found, found_scales = expected(call, [60, 16], "flat")
    assert torch.equal(keys[:76].double(), found)
    assert torch.equal(scales[:76].double(), found_scales)
    assert not scales[48:60].any()
    assert (keys[76:].view(torch.uint8) == 7).all()


@pytest.mark.parametrize("empty", ["requests", "blocks", "entries"])
def test_nothing_to_gather_from(gather: Any, empty: str) -> None:
    call = paged.make_call([20, 3], block=16)
    cache, table, sums = call.kv_cache, call.block_table, torch.tensor([0, 20, 23], dtype=torch.int32)
    if empty == "requests":
        table, sums = table[:0], sums[:1]
    elif empty == "blocks":
        cache = cache[:0]
    else:
        table = table[:, :0]
    keys, scales = results(30, 32)
    gather(Between(cache, table, sums), keys, scales)
    written = 0 if empty == "requests" else 23
    assert not keys[:written].float().any()
    assert not scales[:written].any()
    assert (keys[written:].view(torch.uint8) == 7).all()
    assert (scales[written:] == 7).all()


@pytest.mark.parametrize("layout", ["flat", "preshuffled"])
@pytest.mark.parametrize("block", [16, 48, 256])
def test_write_gather_and_read_agree_in_every_layout(layout: str, block: int) -> None:
    """Through the public functions; the two layouts hold the same keys at other places."""
    generator = torch.Generator().manual_seed(block)
    k, lens = torch.randn(90, 64, generator=generator).bfloat16(), torch.tensor([70, 20], dtype=torch.int32)
    blocks = -(-70 // block) + 1
    table = torch.randperm(2 * blocks, generator=generator).int().view(2, blocks)
    position, request = torch.cat([torch.arange(70), torch.arange(20)]), torch.tensor([0] * 70 + [1] * 20)
    cache = torch.zeros(2 * blocks, block, 1, 68, dtype=torch.uint8)
    slots = table[request, position // block] * block + position % block
    quantize_keys_to_cache(k, cache, slots, layout=layout)
    new = gather_keys(cache, table, lens, 95, layout=layout)
    given = results(95, 64, 16, 1)
    assert gather_keys(cache, table, lens, 95, layout=layout, out=given) == given
    for one, other, values in zip(new, given, quantize_keys(k), strict=True):
        assert torch.equal(one.float(), other.float())
        assert torch.equal(one[:90].float(), values.float())
        assert not one[90:].float().any()
    call = paged.make_call([70, 20], 1, 16, 64, 16)._replace(kv_cache=cache, block_table=table)
    paged.check(call, None, 70, clean_logits=True, layout=layout)
    other = "flat" if layout == "preshuffled" else "preshuffled"
    assert not torch.equal(
        fp8_paged_mqa_logits(*call, max_context_len=70, clean_logits=True, layout=layout),
        fp8_paged_mqa_logits(*call, max_context_len=70, clean_logits=True, layout=other),
    )


GOOD = {
    "kv_cache": torch.zeros(2, 16, 1, 36, dtype=torch.uint8),
    "block_table": torch.zeros(2, 3, dtype=torch.int32),
}
SCALES = torch.zeros(5)
KEYS = torch.zeros(5, 32).to(FN)


@pytest.mark.parametrize(
    ("out", "error", "words"),
    [
        (KEYS, TypeError, "out: got Tensor, needs a pair"),
        ((KEYS, SCALES, SCALES), TypeError, "out: got tuple, needs a pair"),
        ((KEYS[:4], SCALES), ValueError, r"out: got shapes \(4, 32\) and \(5,\), needs \[5, 32\] and \[5\]"),
        ((KEYS, SCALES[:, None]), ValueError, r"out: got shapes \(5, 32\) and \(5, 1\), needs"),
        ((KEYS.to(torch.float8_e4m3fnuz), SCALES), TypeError, "out: got keys of torch.float8_e4m3fnuz, needs"),
        ((KEYS, SCALES.double()), TypeError, "out: got scales of torch.float64, needs torch.float32"),
        ((KEYS.to("meta"), SCALES), ValueError, "out: got device meta, needs kv_cache's cpu"),
        ((KEYS.t().contiguous().t(), SCALES), ValueError, "out: got strides .*, needs keys of 32 adjacent bytes"),
        ((KEYS, SCALES[:1].expand(5)), ValueError, "out: got strides .* scales that do not"),
    ],
)
def test_what_gathered_keys_cannot_go_into(out: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=f"^{words}"):
        gather_keys(**GOOD, lens=torch.zeros(2, dtype=torch.int32), total=5, out=out)


def test_gathered_keys_do_not_go_where_they_come_from() -> None:
    memory = torch.zeros(4 * 16 * 36, dtype=torch.uint8)
    cache, lens = memory[: 2 * 16 * 36].view(2, 16, 1, 36), torch.ones(2, dtype=torch.int32)
    inside, behind = memory[:160].view(5, 32).view(FN), memory[2 * 16 * 36 :]
    keys = behind[:160].view(5, 32).view(FN)
    gather_keys(cache, GOOD["block_table"], lens, 5, out=(keys, SCALES.clone()))
    for out in ((inside, SCALES.clone()), (keys, memory[:20].view(torch.float32))):
        with pytest.raises(ValueError, match=r"^out: shares memory with kv_cache, needs "):
            gather_keys(cache, GOOD["block_table"], lens, 5, out=out)
    with pytest.raises(ValueError, match=r"^out: shares memory with scales, needs "):
        gather_keys(cache, GOOD["block_table"], lens, 5, out=(keys, behind[:20].view(torch.float32)))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"cu_lens": torch.zeros(2, dtype=torch.int32)}, ValueError, r"cu_lens: got shape \(2,\), needs \[3\]"),
        ({"cu_lens": torch.zeros(3)}, TypeError, "cu_lens: got torch.float32, needs torch.int32"),
        ({"keys": KEYS.float()}, TypeError, "keys: got torch.float32, needs a type of one byte"),
        ({"keys": [1]}, TypeError, "keys: got list, needs a torch.Tensor"),
        ({"scales": SCALES[:3]}, ValueError, "out: got shapes"),
        ({"layout": "tiles"}, ValueError, "layout: got 'tiles', needs 'flat' or 'preshuffled'"),
        (
            {"kv_cache": torch.zeros(2, 1, 1, 36).byte(), "layout": "preshuffled"},
            ValueError,
            "kv_cache: got blocks of 1 keys, ",
        ),
    ],
)
def test_what_a_gather_between_running_sums_does_not_take(change: dict[str, Any], error: type[Exception], words: str) -> None:
    good = {**GOOD, "cu_lens": torch.zeros(3, dtype=torch.int32), "keys": KEYS, "scales": SCALES}
    gather_keys_between(**good)
    with pytest.raises(error, match=f"^{words}"):
        gather_keys_between(**good | change)
