"""The paged Gluon variant for gfx950, as this lane's Triton compiles it: what it takes, and what its steady loop holds."""

from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from capgate.compat import Launch, capabilities
from capgate.compat.offline.child import describe
from capgate.compat.offline.jobs import Job
from capgate.kernels import paged_mqa_schedule
from capgate.kernels.common.rules import padded_heads
from capgate.kernels.common.schedule.operation import CHUNK_KEYS
from capgate.kernels.paged_mqa_logits.api import copies_directly
from capgate.kernels.paged_mqa_logits.operation import Problem, example_call, operation
from capgate.kernels.tools.compile_command import vector_per_32_keys
from emulator import Pieces, Pointer, parse, run
from support.emulated_mqa import TARGET, execute, prepare, spills_nothing, turned, with_64_bit_offsets
from support.emulated_paged_mqa import VARIANTS, PagedCase, paged_launch
from support.emulation import bound, compile_launch
from support.judge import agree
from support.paged import formula, make_call
from support.steady_loop import check_copies_stay_in_flight, check_steady_loop, steady_loop
from support.wait_states import check_wait_states, wait_states

pytestmark = pytest.mark.skipif(not capabilities(TARGET).gluon_cdna4, reason=capabilities(TARGET).why("gluon_cdna4"))

HEADS, DIMS, MODES = (16, 32, 64, 128), (32, 64, 128), ("unclean", "clean")
# Of the models' sizes every output of 64 heads, and of 32 what takes most registers. The lanes but 3.6.0 share out the rest.
KINDS = [
    *((64, 128, mode) for mode in (*MODES, "clean-bf16")),
    (32, 128, "clean"),
    *(
        pytest.param(heads, 128, mode, marks=pytest.mark.dealt)
        for heads in HEADS
        for mode in (*MODES, "clean-bf16")
        if heads != 64 and (heads, mode) != (32, "clean")
    ),
    *(pytest.param(heads, dim, "clean", marks=pytest.mark.dealt) for heads in HEADS for dim in DIMS if dim < 128),
]


def dealt(*cells: tuple[Any, ...]) -> list[Any]:
    """Cells that the lanes share out: of other sizes, rows of a request and blocks than the models'."""
    return [pytest.param(*cell, marks=pytest.mark.dealt) for cell in cells]


def keeps_its_limits(row: dict[str, Any], heads: int, dim: int) -> None:
    assert row["spills"] == row["scratch_bytes"] == row["agprs"] == 0
    assert row["hazards"] == []
    assert row["vgprs"] <= (256 if heads > 64 else 168), "no third wave finds registers, where LDS has room for it"
    assert row["waves_per_simd"] >= 1.5
    assert row["tuning"]["resident"] * row["tuning"]["num_warps"] <= row["waves_per_simd"] * 4, "a CU holds fewer programs"
    assert row["hot_loop"]["keys"] >= 32
    # Multiply-adds of the loop, in the f8f6f4 form wherever its 64 dims fit.
    assert row["hot_loop"]["mfma"] * 32 * 32 * (64 if dim >= 64 else 16) == row["hot_loop"]["keys"] * padded_heads(heads) * dim
    assert set(row["matrix_instructions"]) == {
        "v_mfma_scale_f32_32x32x64_f8f6f4" if dim >= 64 else "v_mfma_f32_32x32x16_fp8_fp8"
    }


@pytest.mark.parametrize(("heads", "dim", "mode"), KINDS)
def test_every_tuning_compiles_within_its_limits(compile_once: Callable[..., Any], heads: int, dim: int, mode: str) -> None:
    (row,) = compile_once("fp8_paged_mqa_logits", str(TARGET), [Job("gluon_cdna4", heads, dim, mode)])
    assert row["compiled"], row["error"]
    keeps_its_limits(row, heads, dim)
    assert CHUNK_KEYS % row["tuning"]["block_keys"] == 0, "two workers would write one tile"
    check_wait_states(row)


@lru_cache
def compiled_for(heads: int, dim: int, next_n: int, block: int, layout: str = "flat") -> dict[str, Any]:
    """A row of figures, as ``capgate compile`` gives it for one row of queries and blocks of 64 keys."""
    problem = Problem(TARGET, heads, dim, "float8_e4m3fn", True, block, next_n, layout=layout)
    call = example_call(problem)
    inputs, out = call.operands
    blocks, stride = inputs.kv_cache.shape[0], -(-block * (dim + 4) // 16) * 16
    cache = torch.empty(blocks, stride, dtype=torch.uint8, device="meta").as_strided(
        (blocks, block, 1, dim + 4), (stride, dim + 4, dim + 4, 1)
    )
    from capgate.kernels.paged_mqa_logits import gluon_cdna4

    (launch,) = gluon_cdna4.prepare(problem, inputs._replace(kv_cache=cache), out, **call.options)
    code, tuning = compile_launch(launch, VARIANTS["gluon_cdna4"].make_source), gluon_cdna4.tuning(problem)._asdict()
    return {**describe(code, TARGET, call, ""), **wait_states(code.asm["amdgcn"]), "heads": heads, "tuning": tuning}


@pytest.mark.dealt
@pytest.mark.parametrize(
    ("heads", "dim", "next_n", "block"),
    [
        *((64, 128, next_n, 64) for next_n in (2, 3, 8)),
        *((64, 128, 1, block) for block in (1, 16, 32)),
        *((64, 128, 1, 48), (128, 128, 1, 48), (16, 128, 8, 112), (64, 128, 1, 256)),
        *((64, 128, 4, 128), (128, 128, 1, 64), (128, 128, 2, 16)),
        *((32, 128, 2, 64), (16, 128, 8, 64), (48, 128, 4, 64), (100, 128, 2, 1)),
        *((64, 64, 1, 64), (64, 32, 8, 16), (128, 64, 8, 64)),
    ],
)
def test_rows_and_blocks_compile_within_their_limits(heads: int, dim: int, next_n: int, block: int) -> None:
    row = compiled_for(heads, dim, next_n, block)
    keeps_its_limits(row, heads, dim)
    assert row["tuning"]["resident"] * row["tuning"]["num_warps"] == row["waves_per_simd"] * 4, "a CU holds more programs"
    check_wait_states(row)


@pytest.mark.parametrize(
    ("heads", "next_n", "block", "most"),
    [
        *((64, 1, 64, 53), (64, 2, 64, 53), (64, 4, 128, 53)),
        *dealt((64, 1, 32, 62), (64, 1, 16, 64), (16, 8, 64, 60)),
    ],
)
def test_vector_instructions(heads: int, next_n: int, block: int, most: float) -> None:
    """Of 32 keys of 64 heads 32 relu and 16 packed fma are the floor. Where tiles cross blocks, lanes compute addresses."""
    vector = vector_per_32_keys(compiled_for(heads, 128, next_n, block))
    assert vector is not None
    assert 48 < vector <= most


@pytest.mark.parametrize(
    ("heads", "next_n", "block", "most"),
    [
        *((64, 1, 64, 13), (64, 2, 64, 11), (64, 4, 128, 15)),
        *dealt((64, 4, 64, 10), (64, 6, 64, 11), (32, 2, 64, 13), (16, 8, 64, 22)),
        *dealt((64, 1, 128, 17.5), (128, 1, 64, 16), (32, 1, 64, 26)),
    ],
)
def test_scalar_instructions(heads: int, next_n: int, block: int, most: float) -> None:
    """For 32 keys of 64 heads in one wave, which are four matrix instructions. 15 are wanted; more have tiles that are less
    than two such units of a wave, or one wave's tiles that lie anywhere in a block. Each copy of a wave, of 1024 bytes of keys
    or of 64 scales, takes one that says where in LDS it goes."""
    row = compiled_for(heads, 128, next_n, block)
    loop, tiles, waves = row["hot_loop"], 3, row["tuning"]["num_warps"]
    copies = tiles * (row["tuning"]["block_keys"] * 128 // 1024 // waves + 1)
    assert copies < loop["salu"] <= most * loop["mfma"] / 4


@pytest.mark.dealt
@pytest.mark.parametrize(
    ("heads", "next_n", "block"),
    [(64, 1, 64), (64, 2, 64), (64, 1, 16), (64, 1, 256), (32, 2, 64), (16, 8, 64), (128, 1, 64)],
)
def test_a_preshuffled_cache_costs_nothing(heads: int, next_n: int, block: int) -> None:
    """A pass of the hot loop is within 2 % of that of a flat cache, of vector instructions and of all."""
    flat, preshuffled = (compiled_for(heads, 128, next_n, block, layout) for layout in ("flat", "preshuffled"))
    keeps_its_limits(preshuffled, heads, 128)
    for count in ("valu", "total"):
        assert preshuffled["hot_loop"][count] <= 1.02 * flat["hot_loop"][count], count
    assert preshuffled["hot_loop"]["keys"] == flat["hot_loop"]["keys"]
    assert preshuffled["waves_per_simd"] == flat["waves_per_simd"]


@pytest.mark.dealt
@pytest.mark.parametrize(
    ("heads", "dim", "next_n", "block", "waves", "layout"),
    [
        *((64, 128, 1, 64, 1, "flat"), (64, 128, 2, 64, 2, "flat"), (64, 128, 4, 128, 4, "flat"), (32, 128, 2, 64, 1, "flat")),
        *((128, 128, 1, 64, 1, "flat"), (16, 64, 8, 32, 4, "flat"), (64, 128, 1, 1, 1, "flat"), (64, 64, 2, 16, 2, "flat")),
        *((32, 32, 1, 16, 1, "flat"), (64, 128, 4, 128, 4, "preshuffled"), (128, 128, 1, 64, 1, "preshuffled")),
        (32, 32, 1, 16, 1, "preshuffled"),
    ],
)
def test_steady_loop(heads: int, dim: int, next_n: int, block: int, waves: int, layout: str) -> None:
    """No bank conflict, no barrier but between the waves of a program, and two tiles in flight whenever one is scored."""
    call = make_call([4608], next_n, heads, dim, block, gap=12 if block == 1 else 0, layout=layout)
    prepared = prepare(VARIANTS["gluon_cdna4"], PagedCase(call, 4608, False, layout=layout))
    texts, counters = steady_loop(prepared)
    check_steady_loop(texts)
    check_copies_stay_in_flight(texts, passes=3)
    # Before LLVM's pull request 179305 its waits for LDS reads count these copies, which the hardware does not count there.
    assert "global_load_lds" not in prepared.compiled.asm["amdgcn"]
    assert prepared.compiled.metadata.num_warps == waves
    assert sum(text == "s_barrier" for text in texts) == (3 if waves > 1 else 0)  # one for each tile of a round
    assert sum(text.startswith("v_mfma") for text in texts) >= 3 * 2
    assert counters.lds_cycles == counters.lds_ideal_cycles > 0
    assert any(text.startswith("v_pk_fma_f32") for text in texts)


@pytest.mark.dealt
@pytest.mark.parametrize(
    ("next_n", "rows", "block", "waves"), [(2, 2, 64, 3), (5, 2, 64, 3), (6, 2, 64, 3), (7, 4, 64, 3), (6, 2, 16, 2.5)]
)
def test_programs_of_a_request(next_n: int, rows: int, block: int, waves: float) -> None:
    """At most one row is for nobody up to 6, and programs of two waves fill a CU where tiles lie in one block."""
    row = compiled_for(64, 128, next_n, block)
    assert row["tuning"]["rows"] == row["tuning"]["num_warps"] == rows
    assert row["waves_per_simd"] == waves == row["tuning"]["resident"] * rows / 4
    keeps_its_limits(row, 64, 128)


@pytest.mark.dealt
def test_rows_have_the_bits_that_they_have_in_another_program() -> None:
    """Six rows of a request, and the same as two rows of three requests, each with both landings."""
    lens = [(130, 7, 129, 64, 0, 200), (3, 0, 0, 65, 66, 1)]
    six = make_call(lens, 6, 64, 128)
    two = six._replace(
        q=six.q.view(6, 2, 64, 128),
        context_lens=six.context_lens.view(6, 2),
        block_table=six.block_table.repeat_interleave(3, 0),
    )
    found = []
    for call in (six, two):
        prepared = prepare(VARIANTS["gluon_cdna4"], PagedCase(call, 200, True))
        for landing in ("late", "early"):
            execute(prepared, landing=landing)
            found.append(prepared.out.view(torch.int32).clone())
    assert all(torch.equal(found[0], other) for other in found)


@pytest.mark.dealt
@pytest.mark.parametrize(("next_n", "block"), [(1, 64), (2, 128), (1, 16)])
def test_more_tiles_than_a_line_has_entries(next_n: int, block: int) -> None:
    """One worker's, of which two programs take every other one, and requests with no more than one tile round them."""
    lens = [70, 9000, 0, 5, 4000]
    case = PagedCase(make_call(lens, next_n, 32, 64, block, spare_entries=0), 9000, False, schedule=((0, 0), *[(5, 0)] * 5))
    launch = case.launch(VARIANTS["gluon_cdna4"].kernel, case.output())
    assert launch.grid == (2 * 5, 1)
    prepared = prepare(VARIANTS["gluon_cdna4"], case)
    for landing in ("late", "early"):
        execute(prepared, measure=False, landing=landing)


@pytest.mark.dealt
@pytest.mark.parametrize("clean_logits", [True, False], ids=["clean", "skipped"])
def test_64_bit_offsets_inside_a_program(clean_logits: bool) -> None:
    """The kernel of calls whose rows lie further apart than buffer instructions reach, executed on a small one."""
    case = PagedCase(make_call([130, 0, 70], 2, 64, 128), 131, clean_logits)
    execute(prepare(with_64_bit_offsets(VARIANTS["gluon_cdna4"]), case))


@pytest.mark.dealt
@pytest.mark.parametrize(("heads", "next_n"), [(128, 1), (64, 2)])
def test_queries_whose_dims_are_not_adjacent(heads: int, next_n: int) -> None:
    """Each takes a register for each byte while it is loaded: in parts, so that none spills."""
    case = PagedCase(turned(make_call([130, 0, 70], next_n, heads, 128)), 131, False, workers=1)
    prepared = prepare(VARIANTS["gluon_cdna4"], case)
    assert spills_nothing(prepared)
    for landing in ("late", "early"):
        execute(prepared, landing=landing)


def emulate(launch: Launch, pieces: dict[int, Pieces | Pointer]) -> None:
    """Execute, with the arguments at these positions in memory that torch does not hold."""
    code = compile_launch(launch, VARIANTS["gluon_cdna4"].make_source)
    arguments = bound(code, [pieces.get(number, argument) for number, argument in enumerate(launch.arguments)])
    for landing in ("late", "early"):
        run(parse(code.asm["amdgcn"]), launch.grid, arguments, lds_bytes=code.metadata.shared, landing=landing)


KEYS, SCALES, OUT = 1, 2, 7  # positions of arguments


@pytest.mark.dealt
@pytest.mark.parametrize(("block", "apart", "last"), [(64, 1_002_240, 2143), (64, 5 * 2**30, 1), (128, 1_002_240, 2143)])
def test_blocks_past_2_gib(block: int, apart: int, last: int) -> None:
    """Block 2143 at a stride of 1,002,240 bytes is the first past 2**31; a stride may pass 32 bits by itself."""
    call = make_call([block, block], 1, 64, 128, block)
    answer = formula(call, block)
    blocks = [call.kv_cache[page].flatten().numpy() for page in call.block_table[:, 0].tolist()]
    call.block_table[:, 0] = torch.tensor([0, last])
    shape, strides = (last + 1, *call.kv_cache.shape[1:]), (apart, *call.kv_cache.stride()[1:])
    cache = torch.empty_strided(shape, strides, dtype=torch.uint8, device="meta")
    schedule, out = paged_mqa_schedule(call.context_lens, 64, 2), torch.full((2, block), 7.0)
    launch = paged_launch(VARIANTS["gluon_cdna4"].kernel, call._replace(kv_cache=cache), schedule, out, False)
    emulate(launch, {KEYS: Pieces({0: blocks[0], last * apart: blocks[1]}), SCALES: Pointer(blocks[0], block * 128)})
    agree(out, answer.logits, answer.magnitude)


@pytest.mark.dealt
@pytest.mark.parametrize(("rows", "apart", "clean_logits"), [(514, 2**22, False), (6, 2**29 + 64, True)])
def test_rows_past_2_gib(rows: int, apart: int, clean_logits: bool) -> None:
    """The last row lies past 2**31 cells; rows may also lie 2 GiB apart, and -inf is stored in all of them."""
    call = make_call([70, *[0] * (rows - 2), 130], 1, 16, 32)
    answer = formula(call, 200)
    held = {row: np.full(200, 7.0, np.float32) for row in (range(rows) if clean_logits else (0, rows - 1))}
    out = torch.empty_strided((rows, 200), (apart, 1), device="meta")
    schedule = paged_mqa_schedule(call.context_lens, 64, 2)
    launch = paged_launch(VARIANTS["gluon_cdna4"].kernel, call, schedule, out, clean_logits)
    emulate(launch, {OUT: Pieces({4 * row * apart: cells for row, cells in held.items()})})
    for row, cells in held.items():
        cells, inside = torch.from_numpy(cells), answer.inside[row]
        agree(cells[inside], answer.logits[row, inside], answer.magnitude[row, inside])
        assert (cells[~inside] == (float("-inf") if clean_logits else 7)).all()


def test_chosen_on_gfx950() -> None:
    problem = operation.example(TARGET)
    assert operation.select(problem).name == "gluon_cdna4"
    declined = problem._replace(direct_keys=False)
    assert operation.select(declined).name == "classic"
    assert "a multiple of 16 bytes apart" in str(operation.explain(declined))
    assert operation.select(problem._replace(dtype="float8_e4m3fnuz")).name != "gluon_cdna4"


@pytest.mark.parametrize(
    ("blocks", "block", "apart", "offset", "direct"),
    [
        (9, 64, 64 * 132, 0, True),
        (9, 64, 64 * 132 + 4, 0, False),
        (9, 64, 64 * 132, 4, False),
        (9, 1, 132, 0, False),
        (9, 1, 144, 0, True),
        (2**24, 1, 144, 0, False),
        (2**20, 32, 2**16, 0, False),
        (2**20, 64, 2**16, 0, True),
    ],
)
def test_blocks_that_can_be_copied_directly(blocks: int, block: int, apart: int, offset: int, direct: bool) -> None:
    cache = torch.empty_strided((blocks, block, 1, 132), (apart, 132, 132, 1), dtype=torch.uint8, device="meta")
    assert cache.data_ptr() == 0
    held = SimpleNamespace(shape=cache.shape, stride=cache.stride, data_ptr=lambda: offset)
    assert copies_directly(held, torch.empty(1, 64), torch.empty(1, 4)) == direct


def test_weights_and_table_entries_that_can_be_copied_directly() -> None:
    cache, near = torch.empty(9, 64, 1, 132, dtype=torch.uint8), torch.empty(2, 2)
    far = torch.empty(2, 2, device="meta").as_strided((2, 2), (2**28, 2**24))
    assert copies_directly(cache, near, near)
    assert not copies_directly(cache, far, near)
    assert not copies_directly(cache, near, far)
