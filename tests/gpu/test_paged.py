"""The paged logits and the key cache on a GPU: agreement, 64-bit offsets, graphs, streams of work, the memory checker."""

from typing import Any

import pytest
import torch

from capgate import compat
from capgate.kernels import fp8_paged_mqa_logits, gather_keys, paged_mqa_schedule, quantize_keys_to_cache
from capgate.kernels.key_cache import reference as cache_reference
from capgate.kernels.key_cache.operands import Written
from capgate.kernels.paged_mqa_logits.api import describe
from capgate.kernels.paged_mqa_logits.operands import Inputs
from capgate.kernels.paged_mqa_logits.operation import operation
from capgate.kernels.quantize import FP8_MAX
from support import paged, taking

pytestmark = pytest.mark.gpu

LENS = [1500, 0, 64, 1, 129, 260, 7000, 0, 33]
cleaning = pytest.mark.parametrize("clean_logits", [True, False], ids=["clean", "unclean"])


@pytest.fixture(params=list(operation.variants))
def variant(request: pytest.FixtureRequest, gpu: torch.device) -> str:
    """Every variant that takes a serving call on this GPU."""
    return taking.taken(operation, operation.example(gpu), request.param)


def taken(variant: str, call: Any, clean_logits: bool = True) -> None:
    """Skip the test, with the reason, where the variant does not take such a call."""
    taking.taken(operation, describe(Inputs(*call), clean_logits), variant)


def needs(gigabytes: float) -> None:
    free, _ = torch.cuda.mem_get_info()
    if free < gigabytes * 1e9:
        pytest.skip(f"needs {gigabytes} GB of GPU memory, {free / 1e9:.1f} GB are free")


def bits(logits: torch.Tensor) -> torch.Tensor:
    return logits.view(torch.int32)


def test_a_tuned_variant_is_taken_where_matrix_instructions_read_fp8(gpu: torch.device) -> None:
    """Known bug 13: Without it every test below could pass on the reference alone."""
    caps = compat.capabilities(gpu)
    if not (caps.fp8_e4m3fn or caps.fp8_e4m3fnuz):
        pytest.skip(caps.why("fp8_e4m3fn"))
    assert operation.select(operation.example(gpu)).name != "reference", operation.explain(operation.example(gpu))


@cleaning
@pytest.mark.parametrize("block", [1, 16, 32, 64, 128])
@pytest.mark.parametrize("next_n", [1, 2, 3, 8, 33])
def test_blocks_and_next_n(variant: str, fp8: torch.dtype, block: int, next_n: int, clean_logits: bool) -> None:
    call = paged.make_call(LENS, next_n, 64, 128, block, gap=16, dtype=fp8, device="cuda")
    taken(variant, call, clean_logits)
    paged.check(call, variant, 7000, clean_logits=clean_logits)


@pytest.mark.parametrize(
    ("heads", "dim"), [(1, 32), (3, 64), (16, 128), (32, 32), (32, 128), (100, 128), (127, 64), (128, 128)], ids=str
)
def test_heads_and_dims(variant: str, fp8: torch.dtype, heads: int, dim: int) -> None:
    call = paged.make_call([[700, 3], [0, 129], [5, 2000]], 2, heads, dim, dtype=fp8, device="cuda")
    taken(variant, call)
    paged.check(call, variant, 2100, clean_logits=True)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 128, 1000])
@cleaning
def test_bug_11_a_full_row_writes_nothing_past_its_end(variant: str, fp8: torch.dtype, length: int, clean_logits: bool) -> None:
    """Known bug 11: Writes past the end when context_len == max_context_len."""
    call = paged.make_call([length] * 5, 2, 64, 128, dtype=fp8, device="cuda")
    out = paged.judge.sentinels(10, length, "cuda", gap=256, offset=256)
    paged.check(call, variant, length, clean_logits=clean_logits, out=out)


@pytest.mark.parametrize("chunk_keys", [128, 256])
@pytest.mark.parametrize("workers", [1, 7, 66, 132, 1000])
def test_any_schedule_and_twenty_repeats_give_the_same_bits(
    variant: str, fp8: torch.dtype, workers: int, chunk_keys: int
) -> None:
    call = paged.make_call(LENS, 2, 64, 128, dtype=fp8, device="cuda")
    keywords = {"max_context_len": 7000, "clean_logits": True, "variant": variant}
    expected = bits(fp8_paged_mqa_logits(*call, **keywords))
    schedule = paged_mqa_schedule(call.context_lens, 64, workers, chunk_keys=chunk_keys)
    on_cpu = paged_mqa_schedule(call.context_lens.cpu(), 64, workers, chunk_keys=chunk_keys)
    assert torch.equal(schedule.cpu(), on_cpu)
    keywords |= {"schedule": schedule, "schedule_chunk_keys": chunk_keys}
    for _ in range(20):
        assert torch.equal(bits(fp8_paged_mqa_logits(*call, **keywords)), expected)


def test_a_call_waits_for_the_schedule_that_it_makes(variant: str, fp8: torch.dtype) -> None:
    """What works by it may be started before it is there. Lengths change from call to call, whose schedules share memory."""
    call = paged.make_call([7000] * len(LENS), 2, 64, 128, dtype=fp8, device="cuda")
    taken(variant, call)
    keywords: dict[str, Any] = {"max_context_len": 7000, "clean_logits": True, "variant": variant}
    lens = torch.tensor([LENS, [7000 - length for length in LENS]], dtype=torch.int32, device="cuda")
    expected = []
    for row in lens:
        call.context_lens.copy_(row)
        schedule = paged_mqa_schedule(call.context_lens, 64, 132)
        expected.append(bits(fp8_paged_mqa_logits(*call, **keywords, schedule=schedule)))
    others = torch.zeros((), dtype=torch.int64, device="cuda")
    for number in range(200):
        call.context_lens.copy_(lens[number % 2])
        others += (bits(fp8_paged_mqa_logits(*call, **keywords)) != expected[number % 2]).sum()
    assert others.item() == 0


LOWEST, HIGHEST = -(2**31), 2**31 - 1


@pytest.mark.parametrize(
    "schedule",
    [
        [(-3, 0), (0, 0)],
        [(0, -2), (9, 0)],
        [(0, 2**30), (9, 2**30)],  # twice or 128 times as much is another number in 32 bits
        [(0, 2**25), (9, -(2**25))],
        [(LOWEST, 5), (HIGHEST, 5), (LOWEST, LOWEST)],
        [(HIGHEST, HIGHEST), (LOWEST, HIGHEST)],
        [(6, 1), (1, 0), (19, 19)],
    ],
    ids=str,
)
@cleaning
def test_any_schedule_writes_logits_or_nothing(
    variant: str, fp8: torch.dtype, schedule: list[tuple[int, int]], clean_logits: bool
) -> None:
    call = paged.make_call(LENS, 2, 64, 128, dtype=fp8, device="cuda")
    taken(variant, call, clean_logits)
    rows = slice(400, 400 + 2 * len(LENS))
    memory, right = (torch.full((818, 7168), 7.0, device="cuda") for _ in range(2))
    keywords = {"max_context_len": 7000, "clean_logits": clean_logits, "variant": variant}
    fp8_paged_mqa_logits(*call, **keywords, out=right[rows, :7000])
    words = torch.tensor(schedule, dtype=torch.int32, device="cuda")
    fp8_paged_mqa_logits(*call, **keywords, schedule=words, out=memory[rows, :7000])
    assert ((bits(memory) == bits(right)) | (memory == 7.0)).all()


@cleaning
@pytest.mark.parametrize("block", [1, 16, 32, 64, 128])
@pytest.mark.parametrize("next_n", [1, 2, 8])
def test_keys_that_the_cache_lacks_score_as_minus_infinity(
    variant: str, fp8: torch.dtype, block: int, next_n: int, clean_logits: bool
) -> None:
    call = paged.make_call(LENS, next_n, 64, 128, block, gap=16, dtype=fp8, device="cuda")
    taken(variant, call, clean_logits)
    for every in (2, 1):
        paged.check(paged.without_blocks(call, every), variant, 7000, clean_logits=clean_logits)


@pytest.mark.parametrize(("next_n", "heads"), [(1, 64), (2, 64), (4, 64), (1, 32), (1, 16)], ids=str)
def test_logits_of_many_keys_are_the_same_hundreds_of_times(variant: str, fp8: torch.dtype, next_n: int, heads: int) -> None:
    """A load that the next copy overtakes may be one in a million: docs/design/fused_selection.md."""
    if variant == "reference":
        pytest.skip("reference: torch's own calls repeat")
    call = paged.make_call([65_536] * 32, next_n, heads, 128, dtype=fp8, device="cuda")
    taken(variant, call, False)
    options: dict[str, Any] = {"max_context_len": 65_536, "clean_logits": False, "variant": variant}
    first = fp8_paged_mqa_logits(*call, **options)
    others = torch.zeros((), dtype=torch.int64, device="cuda")
    out = first.clone()  # what no row sees stays as it was
    for _ in range(300):
        others += (bits(fp8_paged_mqa_logits(*call, **options, out=out)) != bits(first)).sum()
    assert others.item() == 0


@pytest.mark.parametrize("requests", [1, 255, 257, 4096])
def test_schedules_of_large_batches(gpu: torch.device, requests: int) -> None:
    generator = torch.Generator("cuda").manual_seed(requests)
    lens = torch.randint(-5, 2**20, (requests,), dtype=torch.int32, device=gpu, generator=generator)
    for workers in (1, 132, 528):
        assert torch.equal(paged_mqa_schedule(lens, 64, workers), paged_mqa_schedule(lens.cpu(), 64, workers).to(lens.device))


@pytest.mark.parametrize(("stride", "far"), [(1_002_240, 2143), (2**20, 4097)], ids=["2**31-bytes", "2**32-bytes"])
def test_bug_5_and_11_cache_offsets(variant: str, fp8: torch.dtype, stride: int, far: int) -> None:
    """Known bug 11: Logits exactly 0.0 from block 2143 at a block stride of 1,002,240 bytes.

    The writer and the gather go there too.
    """
    call = paged.make_call([1500, 64, 7], 2, 64, 128, dtype=fp8, device="cuda")
    blocks = call.kv_cache.shape[0]
    needs(1.2 * (far + blocks) * stride / 1e9)
    memory = torch.zeros((far + blocks) * stride, dtype=torch.uint8, device="cuda")
    cache = memory.as_strided((far + blocks, *call.kv_cache.shape[1:]), (stride, *call.kv_cache.stride()[1:]))
    cache[far:] = call.kv_cache
    used = (call.block_table >= 0) & (call.block_table < blocks)
    moved = call._replace(kv_cache=cache, block_table=torch.where(used, call.block_table + far, call.block_table))
    keywords = {"max_context_len": 1500, "clean_logits": True, "variant": variant}
    logits = fp8_paged_mqa_logits(*moved, **keywords)
    assert torch.equal(bits(logits), bits(fp8_paged_mqa_logits(*call, **keywords)))

    lens = call.context_lens
    for one, other in zip(
        gather_keys(cache, moved.block_table, lens, 1571, dtype=fp8),
        gather_keys(call.kv_cache, call.block_table, lens, 1571, dtype=fp8),
        strict=True,
    ):
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))
    k = torch.randn(64, 128, device="cuda")
    slots = torch.arange(64, device="cuda")
    quantize_keys_to_cache(k, cache, slots + (far + 1) * 64, dtype=fp8)
    quantize_keys_to_cache(k, call.kv_cache, slots + 64, dtype=fp8)
    assert torch.equal(cache[far + 1], call.kv_cache[1])


@cleaning
@pytest.mark.parametrize("requests", [300, 1030], ids=["2-GiB", "2**31-cells"])
def test_bug_5_and_11_output_offsets(variant: str, fp8: torch.dtype, requests: int, clean_logits: bool) -> None:
    """Known bug 11: Rows >= 512 silently unwritten at stride 2**20."""
    rows, stride = 2 * requests, 2**20
    needs(1.1 * rows * stride * 4 / 1e9)
    call = paged.make_call([5 + request % 90 for request in range(requests)], 2, 16, 32, dtype=fp8, device="cuda")
    columns = 100
    out = torch.full((rows * stride,), 7.0, device="cuda").as_strided((rows, columns), (stride, 1))
    fp8_paged_mqa_logits(*call, max_context_len=columns, clean_logits=clean_logits, out=out, variant=variant)
    answer = paged.formula(call, columns)
    assert (out[~answer.inside] == (float("-inf") if clean_logits else 7)).all()
    logits = out[answer.inside]
    paged.judge.agree(logits, answer.logits[answer.inside], answer.magnitude[answer.inside], variant != "reference")


@pytest.mark.parametrize("dtype", list(FP8_MAX), ids=str)
@pytest.mark.parametrize("scale_format", ["fp32", "ue8m0"])
@pytest.mark.parametrize("dim", [32, 64, 128])
def test_the_writer_writes_the_bytes_that_torch_computes(dtype: torch.dtype, scale_format: str, dim: int) -> None:
    generator = torch.Generator("cuda").manual_seed(dim)
    k = torch.randn(5000, dim, device="cuda", generator=generator) * torch.logspace(-4, 4, 5000, device="cuda")[:, None]
    slots = torch.randperm(6400, device="cuda", generator=generator)[:5000]
    slots[::9] = -1
    caches = [torch.zeros(100, 64, 1, dim + 4, dtype=torch.uint8, device="cuda") for _ in range(2)]
    quantize_keys_to_cache(k.bfloat16(), caches[0], slots, dtype=dtype, scale_format=scale_format)
    cache_reference.write(Written(k.bfloat16(), caches[1], slots), dtype=dtype, scale_format=scale_format)
    assert torch.equal(*caches)


def test_a_key_with_a_nan_is_all_nan(fp8: torch.dtype) -> None:
    k = torch.ones(3, 128, device="cuda")
    k[1, 77] = float("nan")
    cache = torch.zeros(1, 16, 1, 132, dtype=torch.uint8, device="cuda")
    position = torch.arange(3, device="cuda")
    quantize_keys_to_cache(k, cache, position, dtype=fp8)
    keys, scales = paged.read_keys(cache, position * 0, position, fp8)
    assert torch.equal(keys.isnan().all(1), position == 1)
    assert torch.equal(scales.isnan(), position == 1)


@pytest.mark.parametrize("scheduled", [True, False], ids=["scheduled", "unscheduled"])
@pytest.mark.parametrize("row_lens", [True, False], ids=["row-lengths", "lengths"])
def test_a_captured_step_replays_while_lengths_and_tables_change(
    variant: str, fp8: torch.dtype, scheduled: bool, row_lens: bool
) -> None:
    """Schedule, write, logits and gather of one decode step in one graph, as an engine captures them."""

    def operands(lens: list[int], seed: int) -> tuple[Any, torch.Tensor, torch.Tensor]:
        each = [[length, max(length - 3, 0)] for length in lens] if row_lens else lens
        call = paged.make_call(each, 2, 64, 128, dtype=fp8, seed=seed)
        blocks, width = 64, 13  # as an engine allocates them: for any lengths
        cache = torch.zeros(blocks, 64, 1, 132, dtype=torch.uint8)
        cache[: len(call.kv_cache)] = call.kv_cache
        table = torch.full((len(lens), width), -1, dtype=torch.int32)
        table[:, : call.block_table.shape[1]] = call.block_table
        slots = torch.where(torch.tensor(lens) > 0, table[:, 0].long() * 64, -1)
        k = torch.randn(len(lens), 128, generator=torch.Generator().manual_seed(seed)).bfloat16()
        moved = [tensor.cuda() for tensor in call._replace(kv_cache=cache, block_table=table)]
        return type(call)(*moved), k.cuda(), slots.cuda()

    def step(call: Any, k: torch.Tensor, slots: torch.Tensor, out: torch.Tensor) -> tuple[torch.Tensor, ...]:
        quantize_keys_to_cache(k, call.kv_cache, slots, dtype=fp8)
        schedule = paged_mqa_schedule(call.context_lens, 64, 132) if scheduled else None
        keywords = {"max_context_len": 600, "clean_logits": True, "variant": variant}
        fp8_paged_mqa_logits(*call, **keywords, schedule=schedule, out=out)
        lens = call.context_lens[:, 0] if row_lens else call.context_lens
        return gather_keys(call.kv_cache, call.block_table, lens, 1300, dtype=fp8)

    call, k, slots = operands([200, 0, 64, 500], 0)
    captured = torch.zeros(8, 600, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(call, k, slots, captured)  # compiles
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        keys, scales = step(call, k, slots, captured)
    for lens, seed in (([0, 1, 600, 130], 1), ([0, 0, 0, 0], 2), ([300, 300, 300, 300], 3)):
        other, other_k, other_slots = operands(lens, seed)
        for tensor, changed in zip((*call, k, slots), (*other, other_k, other_slots), strict=True):
            tensor.view(torch.uint8).copy_(changed.view(torch.uint8))
        captured.fill_(7.0)
        graph.replay()
        expected = torch.zeros_like(captured)
        expected_keys, expected_scales = step(other, other_k, other_slots, expected)
        assert torch.equal(bits(captured), bits(expected))
        assert torch.equal(keys.view(torch.uint8), expected_keys.view(torch.uint8))
        assert torch.equal(bits(scales), bits(expected_scales))
        answer = paged.formula(other, 600)
        assert torch.equal(captured.isneginf(), ~answer.inside)
        paged.judge.agree(captured[answer.inside], answer.logits[answer.inside], answer.magnitude[answer.inside], True)


SMALL_CALLS = """
import sys

import torch
from support import paged
from capgate.kernels import gather_keys, paged_mqa_schedule, quantize_keys_to_cache
from capgate.kernels.common.schedule import classic as schedules
from capgate.kernels.paged_mqa_logits.api import describe
from capgate.kernels.paged_mqa_logits.operands import Inputs
from capgate.kernels.paged_mqa_logits.operation import operation

fp8, calls = getattr(torch, operation.example(torch.device("cuda", 0)).dtype), 0
lens, columns, workers = {
    "memcheck": ([200, 0, 1, 129], 200, None),
    "racecheck": ([1500, 0, 1, 900, 64, 65, 400], 1500, 3),
}[sys.argv[1]]
if sys.argv[1] == "racecheck":  # so few programs that each reuses its shared memory
    schedules.multiprocessors = lambda device: 1
for block in (1, 16, 64, 128):
    for heads, dim, next_n in [(64, 128, 1), (64, 128, 3), (3, 32, 2)]:
        call = paged.make_call(lens, next_n, heads, dim, block, spare_entries=0, dtype=fp8, device="cuda")
        lacking = paged.without_blocks(call)
        schedule = workers and paged_mqa_schedule(call.context_lens, block, workers)
        for clean_logits in (True, False):
            problem = describe(Inputs(*call), clean_logits)
            for variant in operation.variants:
                if sys.argv[1] == "racecheck" and variant == "gluon_hopper":
                    continue
                if operation.explain(problem, variant=variant).variant:
                    for some in (call, lacking):
                        out = torch.zeros(len(lens) * next_n, columns, device="cuda")
                        paged.check(some, variant, columns, clean_logits=clean_logits, schedule=schedule, out=out)
                        calls += 1
        for some in (call, lacking):
            gather_keys(call.kv_cache, some.block_table, call.context_lens, 333, dtype=fp8)
        slots = torch.tensor([-1, 0, 3, 2**40, 5], device="cuda")
        quantize_keys_to_cache(torch.randn(5, dim, device="cuda"), call.kv_cache, slots, dtype=fp8)
print(calls, "calls")
"""


def test_the_sanitizer_finds_nothing_on_small_calls(sanitizer: Any) -> None:
    sanitizer.passes(SMALL_CALLS, calls=48)  # those of one variant
