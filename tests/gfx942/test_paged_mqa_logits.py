"""The paged Gluon variant compiled for gfx942 by this lane's Triton: what it takes, and that its code agrees with float64."""

import re
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from capgate.compat import Target, capabilities
from capgate.compat.offline.child import describe
from capgate.kernels import paged_mqa_schedule
from capgate.kernels.common.rules import padded_heads
from capgate.kernels.common.schedule.operation import CHUNK_KEYS
from capgate.kernels.paged_mqa_logits.operation import operation
from capgate.kernels.tools.compile_command import vector_per_32_keys
from emulator import Pieces, Pointer, parse, run
from emulator.hazards import hazards
from support.emulated_mqa import Prepared, Variant, execute, on_gfx942, prepare, spills_nothing, turned, with_64_bit_offsets
from support.emulated_paged_mqa import PagedCase, paged_launch
from support.emulation import GFX942, bound, compile_launch
from support.judge import agree
from support.paged import formula, make_call, without_blocks
from support.steady_loop import check_defects_are_found, steady_loop

TARGET = Target("hip", "gfx942", 64)
FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
gluon = pytest.mark.skipif(not capabilities(TARGET).gluon_cdna3, reason=capabilities(TARGET).why("gluon_cdna3"))


class Kind(NamedTuple):
    """A kernel, the waves that a SIMD holds of it, and the most vector instructions for 32 keys of a row of 64 heads."""

    heads: int
    dim: int
    next_n: int
    block: int
    waves: int
    vector: float
    clean_logits: bool = False
    layout: str = "flat"
    dtype: torch.dtype = FNUZ


KINDS = (
    Kind(64, 128, 1, 64, 3, 55),
    Kind(64, 128, 2, 64, 3, 55, clean_logits=True),
    Kind(64, 128, 4, 128, 3, 55, layout="preshuffled"),
    Kind(64, 128, 1, 64, 2, 200, clean_logits=True, dtype=FN),
    Kind(64, 128, 1, 16, 2, 66, clean_logits=True, layout="preshuffled"),
    Kind(64, 128, 2, 48, 3, 68),
    Kind(64, 128, 1, 1, 2, 93),
    Kind(128, 128, 1, 256, 2, 53, clean_logits=True),
    Kind(100, 64, 2, 16, 2, 120, dtype=FN, layout="preshuffled"),
    Kind(32, 128, 1, 32, 3, 82, clean_logits=True),
    Kind(16, 128, 8, 64, 3, 74),
    Kind(20, 32, 3, 64, 3, 100),
)


def gluon_variant() -> Variant:
    from capgate.compat.gluon import GluonASTSource
    from capgate.kernels.paged_mqa_logits import gluon_cdna3

    return on_gfx942(Variant(gluon_cdna3.kernel, GluonASTSource))


def prepared_for(kind: Kind, lens: Any, absent: int = 0) -> Prepared:
    """The kernel and a call of it; every so manieth block may be one that the cache lacks."""
    gap = 12 if kind.block == 1 else 0  # blocks are a multiple of 16 bytes apart
    call = make_call(
        lens, kind.next_n, kind.heads, kind.dim, kind.block, gap=gap, spare_entries=3, layout=kind.layout, dtype=kind.dtype
    )
    call = without_blocks(call, absent) if absent else call
    return prepare(gluon_variant(), PagedCase(call, 1904, kind.clean_logits, workers=2, aligned=True, layout=kind.layout))


def agrees(prepared: Prepared) -> None:
    """Executed once: no copy goes straight to LDS, whose landing could be early or late."""
    execute(prepared, measure=False)


def loads_stay_in_flight(texts: list[str]) -> bool:
    """Whether a pass waits for none of its own loads before its last product; behind that, for its scales."""
    last_product = max(place for place, text in enumerate(texts) if text.startswith("v_mfma"))
    started, waits = 0, []
    for text in texts[:last_product]:
        started += text.startswith(("buffer_", "global_"))
        waits += [int(left) >= started for left in re.findall(r"vmcnt\((\d+)\)", text)]
    return len(waits) >= 2 and all(waits)


LENS = [150, 1900, 0]  # a program takes more tiles than it meets requests


@gluon
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))
def test_kinds(kind: Kind) -> None:
    """Registers without spills, and of the steady loop: no conflict, no barrier too many, keys under way, and no hazard."""
    prepared = prepared_for(kind, LENS)
    assembly = prepared.compiled.asm["amdgcn"]
    row: dict[str, Any] = describe(prepared.compiled, TARGET, SimpleNamespace(products=padded_heads(kind.heads) * kind.dim), "")
    assert row["spills"] == row["scratch_bytes"] == row["agprs"] == 0
    assert row["waves_per_simd"] >= kind.waves
    assert 48 < vector_per_32_keys({**row, "heads": kind.heads}) <= kind.vector
    assert set(row["matrix_instructions"]) == {"v_mfma_f32_32x32x16_fp8_fp8"}
    assert row["hot_loop"]["mfma"] * 32 * 32 * 16 == row["hot_loop"]["keys"] * padded_heads(kind.heads) * kind.dim
    assert not hazards(parse(assembly))

    texts, counters = steady_loop(prepared)  # which agrees with float64
    waves = prepared.compiled.metadata.num_warps
    assert counters.lds_cycles == counters.lds_ideal_cycles > 0
    assert sum(text == "s_barrier" for text in texts) == (2 if waves > 1 else 0)  # one for either half of a tile
    assert loads_stay_in_flight(texts)
    assert CHUNK_KEYS % 64 == 0, "two workers would write one tile"
    agrees(prepared_for(kind, LENS, absent=2))


@gluon
@pytest.mark.parametrize("block", [64, 16, 1])
def test_a_cache_that_has_none_of_the_blocks(block: int) -> None:
    """The emulator stops at a read outside of it; the table ends with the longest request."""
    call = make_call([64, 0, 1, 150], 1, 32, 64, block, gap=12 if block == 1 else 0, spare_entries=0, dtype=FNUZ)
    agrees(prepare(gluon_variant(), PagedCase(call, 150, True)))
    agrees(prepare(gluon_variant(), PagedCase(without_blocks(call, 1), 150, True)))


@gluon
@pytest.mark.parametrize("workers", [1, 40])
def test_lengths_of_rows_and_workers(workers: int) -> None:
    """Each row its own length, none or all that its row of the output holds; few workers, and more than there are chunks."""
    lens = [(130, 7), (0, 200), (3, 0), (0, 0), (-5, 64), (65, 66)]
    agrees(prepare(gluon_variant(), PagedCase(make_call(lens, 2, 64, 128, dtype=FNUZ), 130, True, workers)))


@gluon
@pytest.mark.parametrize(("next_n", "heads"), [(9, 64), (33, 20)])
def test_more_rows_than_a_program_takes(next_n: int, heads: int) -> None:
    """The last program of a request has rows that it lacks."""
    call = make_call([130, 3, 70], next_n, heads, 128, 16, dtype=FN)
    agrees(prepare(gluon_variant(), PagedCase(call, 131, False, workers=2)))


@gluon
@pytest.mark.parametrize(("heads", "next_n"), [(128, 1), (64, 2)])
def test_queries_whose_dims_are_not_adjacent(heads: int, next_n: int) -> None:
    """They take a register for each byte while they are loaded: in parts, so that none spills."""
    call = turned(make_call([150, 0, 70], next_n, heads, 128, dtype=FNUZ))
    prepared = prepare(gluon_variant(), PagedCase(call, 150, False, workers=1))
    assert spills_nothing(prepared)
    agrees(prepared)


@gluon
def test_queries_that_are_not_aligned() -> None:
    call = make_call([150, 70], 1, 64, 128, dtype=FNUZ)
    apart = torch.zeros(*call.q.shape[:3], 129, dtype=torch.uint8)[..., :128].view(FNUZ).copy_(call.q)
    agrees(prepare(gluon_variant(), PagedCase(call._replace(q=apart), 150, False)))


@gluon
def test_bfloat16_and_64_bit_offsets() -> None:
    call = make_call([150, 70], 2, 64, 64, dtype=FNUZ)
    call = call._replace(weights=call.weights.to(torch.bfloat16))
    case = PagedCase(call, 150, True, dtype=torch.bfloat16)
    agrees(prepare(with_64_bit_offsets(gluon_variant()), case))


@gluon
@pytest.mark.parametrize(("block", "apart", "last"), [(64, 1_002_240, 2143), (128, 5 * 2**30, 2)])
def test_blocks_past_2_gib(block: int, apart: int, last: int) -> None:
    """Block 2143 at a stride of 1,002,240 bytes is the first past 2**31; a stride, and a scale's number, may pass 32 bits."""
    call = make_call([block, block], 1, 64, 128, block, dtype=FNUZ)
    answer = formula(call, block)
    blocks = [call.kv_cache[page].flatten().numpy() for page in call.block_table[:, 0].tolist()]
    call.block_table[:, 0] = torch.tensor([0, last])
    shape, strides = (last + 1, *call.kv_cache.shape[1:]), (apart, *call.kv_cache.stride()[1:])
    cache = torch.empty_strided(shape, strides, dtype=torch.uint8, device="meta")
    schedule, out = paged_mqa_schedule(call.context_lens, 64, 2), torch.full((2, block), 7.0)
    variant = gluon_variant()
    launch = paged_launch(variant.kernel, call._replace(kv_cache=cache), schedule, out, False)
    held = {1: Pieces({0: blocks[0], last * apart: blocks[1]}), 2: Pointer(blocks[0], block * 128)}  # keys, scales
    code = compile_launch(launch, variant.make_source, GFX942)
    arguments = bound(code, [held.get(number, argument) for number, argument in enumerate(launch.arguments)])
    run(parse(code.asm["amdgcn"]), launch.grid, arguments, lds_bytes=code.metadata.shared)
    agree(out, answer.logits, answer.magnitude)


@pytest.mark.one_lane
@gluon
@pytest.mark.parametrize(("kind", "next_n"), [("barrier dropped", 2), ("wait dropped", 1)])
def test_the_loop_without_one_of_its_barriers_or_waits_is_found_out(kind: str, next_n: int) -> None:
    """The loads' waits: those of LDS operations of one wave alone order nothing that hardware does not."""
    call = make_call([1500], next_n, 64, 64, dtype=FNUZ)
    prepared = prepare(gluon_variant(), PagedCase(call, 1500, False, workers=1))
    check_defects_are_found(prepared, kind)


def test_chosen_on_gfx942() -> None:
    """From Triton 3.6 on; before, the trace says what is missing."""
    problem, caps = operation.example(TARGET), capabilities(TARGET)
    trace = operation.explain(problem)
    step = next(step for step in trace.steps if step.variant == "gluon_cdna3")
    if caps.gluon_cdna3:
        assert (trace.variant, step.accepted) == ("gluon_cdna3", True)
        declined = operation.explain(problem._replace(direct_keys=False))
        assert declined.variant == "classic"
        assert "a multiple of 16 bytes apart" in str(declined)
    else:
        assert (trace.variant, step.accepted) == ("classic", False)
        assert step.reason.startswith("needs the Gluon API of Triton 3.6: found 3.5.1")
