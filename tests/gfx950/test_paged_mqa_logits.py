"""The compiled gfx950 code of the paged kernels, executed instruction by instruction, agrees with float64 and with torch."""

import pytest
import torch

from capgate.kernels import paged_mqa_schedule
from capgate.kernels.common.schedule import classic as schedule_classic
from capgate.kernels.common.schedule.operands import Inputs as ScheduleInputs
from capgate.kernels.common.schedule.operation import Problem as ScheduleProblem
from capgate.kernels.key_cache import classic as cache_classic
from capgate.kernels.key_cache import reference as cache_reference
from capgate.kernels.key_cache.operands import Between, Gathered, Written
from capgate.kernels.key_cache.operation import Problem
from emulator import parse, run
from support import schedules
from support.code_reading import EVERY_WORD_IS_CUT, uses_of_the_schedule
from support.emulated_mqa import LIMIT, TARGET, Variant, execute, prepare
from support.emulated_paged_mqa import VARIANTS, PagedCase, paged_launch
from support.emulation import bound, compile_launch, emulate
from support.paged import formula, make_call, without_blocks

# Landing of direct-to-LDS copies, and where the kernel is entered.
SWITCHES = [{"landing": "late", "preload": True}, {"landing": "early", "preload": False}]


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> Variant:
    return VARIANTS[request.param]


def agrees(variant: Variant, case: PagedCase) -> None:
    prepared = prepare(variant, case)
    for switches in SWITCHES:
        execute(prepared, measure=False, **switches)


# Compiles take most of the time here: calls that differ in nothing that the compiler is told share one.
blocks = pytest.mark.parametrize(
    ("block", "gap", "clean_logits"),
    [(1, 12, True), (16, 0, False), (32, 1600, True), (64, 0, True), (64, 0, False), (128, 16, False)],
)


@pytest.mark.dealt
@blocks
def test_blocks(variant: Variant, block: int, gap: int, clean_logits: bool) -> None:
    """Scattered blocks, some with gaps between them; table entries past a request's keys are garbage."""
    agrees(variant, PagedCase(make_call([150, 0, 64, 1, 129], 2, 64, 128, block, gap=gap), 150, clean_logits))


@pytest.mark.dealt
@blocks
def test_blocks_that_the_cache_lacks(variant: Variant, block: int, gap: int, clean_logits: bool) -> None:
    """Below 0 and past the last, here and there or all of them: the emulator stops at a read outside of the cache."""
    call = make_call([150, 0, 64, 1], 2, 64, 128, block, gap=gap, spare_entries=0)
    for every in (2, 1):
        agrees(variant, PagedCase(without_blocks(call, every), 150, clean_logits))


@pytest.mark.dealt
@pytest.mark.parametrize(
    ("block", "layout", "clean_logits"),
    [
        (48, "flat", True),
        (96, "flat", False),
        (192, "flat", True),
        (208, "preshuffled", True),
        (48, "preshuffled", False),
    ],
)
def test_blocks_that_tiles_do_not_begin_with(variant: Variant, block: int, layout: str, clean_logits: bool) -> None:
    """A tile begins anywhere in a block and may reach into the next one, which the cache may lack."""
    call = make_call([150, 0, 300, 1], 2, 64, 128, block, spare_entries=0, layout=layout)
    agrees(variant, PagedCase(call, 300, clean_logits, layout=layout))
    agrees(variant, PagedCase(without_blocks(call), 290, clean_logits, layout=layout))


@pytest.mark.dealt
@pytest.mark.parametrize(
    ("heads", "dim", "next_n", "block", "gap", "clean_logits"),
    [
        (64, 128, 1, 64, 0, True),
        (64, 128, 2, 16, 0, False),
        (32, 128, 2, 256, 16, True),
        (128, 64, 1, 64, 0, False),
        (16, 64, 8, 16, 0, False),
    ],
)
def test_preshuffled_caches(
    variant: Variant, heads: int, dim: int, next_n: int, block: int, gap: int, clean_logits: bool
) -> None:
    """The logits are those of the flat cache, bit for bit: the same products in the same order."""
    results = []
    for layout in ("flat", "preshuffled"):
        call = make_call([150, 0, 64, 1, 129], next_n, heads, dim, block, gap=gap, layout=layout)
        prepared = prepare(variant, PagedCase(call, 150, clean_logits, layout=layout))
        for switches in SWITCHES:
            execute(prepared, measure=False, **switches)
        results.append(prepared.out.view(torch.int32).clone())
    assert torch.equal(*results)


@pytest.mark.dealt
@pytest.mark.parametrize(("heads", "next_n"), [(128, 1), (16, 8)])
def test_sizes_of_programs_whose_cache_lacks_blocks(variant: Variant, heads: int, next_n: int) -> None:
    """Tiles of 32 keys, and rows that share a lane's keys."""
    for block in (16, 64):
        agrees(variant, PagedCase(without_blocks(make_call([130, 70], next_n, heads, 64, block)), 131, False, workers=2))


LOWEST, HIGHEST = -(2**31), 2**31 - 1


@pytest.mark.dealt(together=["variant"])
@pytest.mark.parametrize(
    "schedule",
    [
        [(-3, 0), (0, 0)],
        [(0, -2), (3, 0)],
        [(LOWEST, 5), (HIGHEST, 5)],
        [(HIGHEST, HIGHEST), (LOWEST, HIGHEST)],
        [(0, 2**25), (3, 2**25)],
        [(LOWEST, LOWEST), (2, 1)],
        [(2, 1), (1, 0), (9, 9)],
    ],
    ids=str,
)
def test_any_schedule(variant: Variant, schedule: list[tuple[int, int]]) -> None:
    """Cells get their logits or keep their bits, and nothing outside of an operand is read or written."""
    call = make_call([30, 0, 150], 1, 32, 64, spare_entries=0)
    answer, out = formula(call, 150), torch.zeros(3, 150)
    words = torch.tensor(schedule, dtype=torch.int32)
    launch = paged_launch(variant.kernel, call, words, out, False)
    compiled = compile_launch(launch, variant.make_source)
    arguments = bound(compiled, launch.arguments, [out])
    result = run(parse(compiled.asm["amdgcn"]), launch.grid, arguments, lds_bytes=compiled.metadata.shared)
    position = next(number for number, argument in enumerate(launch.arguments) if argument is out)
    written = torch.from_numpy(result.written[position].reshape(3, 150, 4).any(axis=2))
    assert not (written & ~answer.inside).any()
    assert ((out.double() - answer.logits).abs() <= LIMIT * answer.magnitude)[written].all()


def test_every_word_of_a_schedule_is_cut_before_anything_else(variant: Variant) -> None:
    """Of a kernel that test_blocks compiles, too."""
    prepared = prepare(variant, PagedCase(make_call([150, 0, 64, 1, 129], 2, 64, 128), 150, False))
    assert uses_of_the_schedule(prepared.compiled.asm["ttgir"]) == EVERY_WORD_IS_CUT


def test_blocks_that_are_not_aligned() -> None:
    agrees(VARIANTS["classic"], PagedCase(make_call([150, 0, 64, 1, 129], 1, 64, 128, 1), 150, True))


@pytest.mark.dealt
@pytest.mark.parametrize(
    ("heads", "dim", "next_n", "block"),
    [
        (32, 128, 1, 64),
        (16, 32, 3, 16),
        (20, 64, 8, 64),
        (100, 128, 2, 64),
        (128, 32, 8, 16),
        (64, 64, 9, 64),
        (20, 32, 33, 16),
    ],
)
def test_sizes(variant: Variant, heads: int, dim: int, next_n: int, block: int) -> None:
    agrees(variant, PagedCase(make_call([130, 3, 70], next_n, heads, dim, block), 131, True, workers=2))


@pytest.mark.dealt
def test_a_request_without_tiles_between_two_others(variant: Variant) -> None:
    """A worker that reads and writes shared memory for it alone met no barrier in Triton 3.5.1."""
    agrees(variant, PagedCase(make_call([130, 3, 70], 8, 20, 64), 131, False, workers=1))


@pytest.mark.dealt
@pytest.mark.parametrize("clean_logits", [True, False], ids=["clean", "skipped"])
def test_lengths_of_rows(variant: Variant, clean_logits: bool) -> None:
    """Each row its own, none or all that its row of the output holds; some below 0, some past the output."""
    lens = [(130, 7), (0, 200), (3, 0), (0, 0), (-5, 64), (65, 66)]
    agrees(variant, PagedCase(make_call(lens, 2, 64, 128), 130, clean_logits))


@pytest.mark.dealt(together=["variant"])
@pytest.mark.parametrize("workers", [1, 4, 40])
def test_workers(variant: Variant, workers: int) -> None:
    """Few, so that programs share one's tiles, and more than there are chunks. The table ends with the longest request."""
    agrees(variant, PagedCase(make_call([5, 0, 130, 260, 64, 700], 1, 32, 64, spare_entries=0), 700, False, workers))


@pytest.mark.dealt(together=("variant", "chunk_keys"))
@pytest.mark.parametrize("chunk_keys", [128, 256])
@pytest.mark.parametrize("kind", ["even", "unbalanced", "half"])
def test_schedules_of_others(variant: Variant, kind: str, chunk_keys: int) -> None:
    lens = [5, 0, 130, 260, 64, 700, 0]
    units = schedules.units_of(lens, chunk_keys)
    schedule = {
        "even": schedules.even(units, 4),
        "unbalanced": schedules.cut(units, [0, 1, 1, sum(units) - 1, sum(units)]),
        "half": schedules.even(units, 1),
    }[kind]
    call = make_call(lens, 2, 32, 64, spare_entries=0)
    agrees(variant, PagedCase(call, 700, False, chunk_keys=chunk_keys, schedule=tuple(schedule)))


@pytest.mark.dealt(together=["variant"])
@pytest.mark.parametrize("columns", [1, 64, 1500])
def test_widths(variant: Variant, columns: int) -> None:
    """Rows that end inside the keys, and rows with room for whole strips of -inf behind them."""
    agrees(variant, PagedCase(make_call([200, 64, 1200], 1, 32, 64), columns, True))


def test_schedule() -> None:
    lens = torch.tensor([300, 0, 129, 5, 70000] * 60, dtype=torch.int32)
    schedule = torch.full((21, 2), -1, dtype=torch.int32)
    emulate(schedule_classic.prepare(ScheduleProblem(TARGET), ScheduleInputs(lens), schedule), [schedule])
    assert torch.equal(schedule, paged_mqa_schedule(lens, 64, 20))


@pytest.mark.dealt
@pytest.mark.parametrize("layout", ["flat", "preshuffled"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e4m3fnuz], ids=str)
def test_write_and_gather(dtype: torch.dtype, layout: str) -> None:
    call, problem = make_call([70, 5], layout=layout), Problem(TARGET)
    slots = torch.arange(20) * 5 - 3
    k = torch.randn(20, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    k[3, 5], k[4, 6], k[5, 7] = float("nan"), float("inf"), float("-inf")
    caches = [call.kv_cache.contiguous().clone() for _ in range(2)]
    options = {"dtype": dtype, "scale_format": "ue8m0", "layout": layout}
    cache_reference.write(Written(k, caches[0], slots), **options)
    emulate(cache_classic.prepare_write(problem, Written(k, caches[1], slots), **options), [])
    assert torch.equal(*caches)

    call = without_blocks(call, 3)
    sums = torch.tensor([3, 73, 78], dtype=torch.int32)
    for inputs in (Gathered(caches[0], call.block_table, call.context_lens), Between(caches[0], call.block_table, sums)):
        gathered = [(torch.ones(80, 48).to(dtype)[:, :32], torch.ones(80, 2)[:, 1]) for _ in range(2)]
        cache_reference.gather(inputs, *gathered[0], layout=layout)
        emulate(cache_classic.prepare_gather(problem, inputs, *gathered[1], layout=layout), [])
        for one, other in zip(*gathered, strict=True):
            assert torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
