"""The Gluon variants of listed blocks in MX formats for gfx950, as this lane's Triton compiles them: executed and counted."""

from typing import Any, NamedTuple

import pytest
import torch

from capgate.compat import capabilities
from capgate.compat.offline.child import describe
from capgate.kernels.common.rules import padded_heads
from capgate.kernels.sparse_logits.calls import copies_directly, packed_copy_directly
from capgate.kernels.sparse_logits.calls import describe as problem_of
from capgate.kernels.sparse_logits.operands import MxDense, MxPaged
from capgate.kernels.sparse_logits.operation import Problem, example_call, mx_dense, mx_paged
from capgate.kernels.sparse_logits.tunings import gluon_cdna4 as tuning
from capgate.kernels.tools.compile_command import vector_per_32_keys
from support import sparse
from support.emulated_mqa import TARGET, Prepared, execute, prepare
from support.emulated_sparse import PACKED_VARIANTS, VARIANTS, PackedSparseCase, SparseCase
from support.mx_logits import PAIRS
from support.paged import GARBAGE
from support.steady_loop import (
    check_copies_stay_in_flight,
    check_defects_are_found,
    check_steady_loop,
    steady_loop,
)
from support.wait_states import check_wait_states, wait_states

pytestmark = pytest.mark.skipif(not capabilities(TARGET).gluon_cdna4, reason=capabilities(TARGET).why("gluon_cdna4"))
LANDINGS: tuple[dict[str, Any], ...] = ({"landing": "late", "preload": True}, {"landing": "early", "preload": False})
STEADY = 3 * 9 * 2 * 64  # keys of two rounds of each of nine programs


class Kind(NamedTuple):
    """What is compiled apart of cached keys; waves of a SIMD, and most vector instructions for 32 keys of a row of 64 heads.

    As counted in docs/design/mx_logits.md on the Triton on which there are most.
    """

    layout: str
    pair: tuple[str, str]
    heads: int
    dim: int
    block: int  # keys of a candidate block
    page: int  # and of a block of the cache
    next_n: int
    shared: bool
    clean: bool
    waves: float
    most: float


CACHED = [
    Kind("flat", PAIRS[0], 32, 128, 8, 64, 8, True, False, 3, 66.5),
    Kind("preshuffled", PAIRS[1], 32, 128, 16, 48, 2, True, True, 1.25, 86.2),
    Kind("gluon-16", PAIRS[0], 32, 128, 8, 64, 1, False, False, 2.25, 111.5),
    Kind("gluon-32", PAIRS[2], 16, 128, 16, 96, 2, False, False, 2.25, 104.5),
    Kind("flat", PAIRS[3], 16, 64, 32, 64, 2, False, False, 2.25, 91.5),
    Kind("flat", PAIRS[1], 128, 128, 64, 128, 1, False, True, 2, 66),
]


# Pair of formats, heads, dims, keys of a candidate block, rows that share a list, relative; waves and instructions as those.
PACKED = [
    (PAIRS[1], 32, 128, 16, 9, False, 3, 66),
    (PAIRS[3], 64, 64, 8, 2, True, 3, 60),
    (PAIRS[2], 128, 128, 64, 1, False, 2, 60.5),
]


def first_everywhere(kinds: list[Any]) -> list[Any]:
    """Every Triton has the first kind, and the lanes share the others out."""
    return [kinds[0], *(pytest.param(kind, marks=pytest.mark.dealt) for kind in kinds[1:])]


def within_limits(prepared: Prepared, problem: Problem, waves: float, most: float) -> None:
    """No vector register in memory, and so many waves and vector instructions; scalar ones may lie in lanes between lists."""
    row = {**describe(prepared.compiled, TARGET, example_call(problem), ""), "heads": problem.heads}
    tune = tuning(problem)
    assert "scratch_" not in prepared.compiled.asm["amdgcn"]
    assert row["scratch_bytes"] == row["agprs"] == 0
    assert row["waves_per_simd"] == waves == tune.resident * tune.num_warps / 4
    assert set(row["matrix_instructions"]) == {"v_mfma_scale_f32_32x32x64_f8f6f4"}
    assert row["hot_loop"]["mfma"] * 32 * 32 * 64 == row["hot_loop"]["keys"] * padded_heads(problem.heads) * problem.dim
    vector = vector_per_32_keys(row)
    assert vector is not None
    assert 48 < vector <= most


def agrees(prepared: Prepared) -> None:
    """Executed with copies that land late and early, and without a bank conflict."""
    for switches in LANDINGS:
        counters = execute(prepared, **switches).counters
        assert counters.lds_cycles == counters.lds_ideal_cycles > 0


def described(case: SparseCase | PackedSparseCase) -> Problem:
    cached = isinstance(case, SparseCase)
    inputs, place = (MxPaged(*case.call), case.layout) if cached else (MxDense(*case.call), case.relative)
    return problem_of(inputs, case.dtype, case.block, case.clean_logits, place)._replace(device=TARGET)


@pytest.mark.parametrize("kind", first_everywhere(CACHED), ids=str)
def test_every_kind_of_cached_keys_agrees_within_its_limits(kind: Kind) -> None:
    """Keys and scales that no row lists are NaN, and the cache lacks some blocks."""
    layout, pair, heads, dim, block, page, next_n, shared, clean, waves, most = kind
    options = {"heads": heads, "dim": dim, "layout": layout, "pair": pair, "gap": 16}
    call = sparse.make_paged_call([150, 0, 333], 160 // block, block, next_n, block_of_cache=page, **options)
    if shared:
        call = call._replace(candidates=call.candidates[next_n - 1 :: next_n].contiguous())
    call = sparse.poisoned(call, block, layout=layout)
    call.block_table[2, 1] = GARBAGE[0]
    case = SparseCase(call, block, clean, layout=layout)
    prepared = prepare(VARIANTS["gluon_cdna4"], case)
    within_limits(prepared, described(case), waves, most)
    agrees(prepared)
    check_wait_states(wait_states(prepared.compiled.asm["amdgcn"]))


def test_steady_loop_of_cached_keys() -> None:
    """Two tiles in flight whenever one is scored, a wait that no other can replace, and listed keys alone."""
    call = sparse.poisoned(sparse.make_paged_call([5000], STEADY // 8, heads=64, dim=128, pair=PAIRS[0]), 8)
    case = SparseCase(call)
    prepared = prepare(VARIANTS["gluon_cdna4"], case)
    within_limits(prepared, described(case), 2.25, 71)
    texts, _ = steady_loop(prepared)
    check_steady_loop(texts)
    check_copies_stay_in_flight(texts, passes=3)
    assert sum(text.startswith("v_mfma") for text in texts) == 3 * 2 * 2 * 2, "of three tiles of 64 keys, a row of 64 heads"
    check_defects_are_found(prepared, "wait dropped")
    agrees(prepared)


@pytest.mark.parametrize("kind", first_everywhere(PACKED), ids=str)
def test_every_kind_of_packed_keys_agrees_within_its_limits(kind: Any) -> None:
    """Scales that no row lists are NaN; rows that share a list begin at one key or at several; keys lie 144 bytes apart."""
    pair, heads, dim, block, list_rows, relative, waves, most = kind
    windows = [(row // 4 * block, 700 - 30 * row) if row % 5 else (row, 17 * row) for row in range(2 * list_rows)]
    call = sparse.make_call(windows, len(windows), 640, 11, block, heads, dim, relative=relative, pair=pair)
    call = call._replace(candidates=call.candidates[list_rows - 1 :: list_rows].contiguous())
    call = sparse.poisoned(call, block, relative=relative)
    apart = torch.zeros(640, 144, dtype=torch.uint8)[:, : call.k.shape[1]].copy_(call.k.view(torch.uint8)).view(call.k.dtype)
    case = PackedSparseCase(call._replace(k=apart), block, clean_logits=True, relative=relative)
    prepared = prepare(PACKED_VARIANTS["gluon_cdna4"], case)
    within_limits(prepared, described(case), waves, most)
    agrees(prepared)
    check_wait_states(wait_states(prepared.compiled.asm["amdgcn"]))


@pytest.mark.parametrize("kind", first_everywhere([(64, 1, STEADY, 2.75, 66.2), (32, 8, STEADY // 3, 3, 63.5)]), ids=str)
def test_steady_loop_of_packed_keys(kind: tuple[Any, ...]) -> None:
    """As of cached keys, by a wave alone, and by four whose rows share a list and begin at different keys."""
    heads, list_rows, keys, waves, most = kind
    windows = [(8 * (row % 2), 2 * keys) for row in range(2 * list_rows)]
    call = sparse.make_call(windows, len(windows), 2 * keys, keys // 8, heads=heads, dim=128, pair=PAIRS[0], relative=False)
    call = call._replace(candidates=call.candidates[list_rows - 1 :: list_rows].contiguous())
    case = PackedSparseCase(sparse.poisoned(call, 8, relative=False), relative=False)
    prepared = prepare(PACKED_VARIANTS["gluon_cdna4"], case)
    within_limits(prepared, described(case), waves, most)
    texts, _ = steady_loop(prepared)
    check_steady_loop(texts)
    check_copies_stay_in_flight(texts, passes=3)
    assert sum(text.startswith("v_mfma") for text in texts) == 3 * 2 * 2 * 2, "a row of 64 heads or two of 32 for each wave"
    if list_rows == 1:
        check_defects_are_found(prepared, "wait dropped")
    agrees(prepared)


def test_chosen_on_gfx950() -> None:
    few = {"dim": 32, "dtype": "mxfp8", "k_format": "mxfp8"}
    for operation, change, reason in (
        (mx_paged, {"direct_keys": False}, "a multiple of 16 bytes apart"),
        (mx_paged, {"block_size": 48, "candidate_block": 32}, "found 32 keys in blocks of 48"),
        (mx_paged, few, "needs 64 dims or 128"),
        (mx_dense, {"direct_keys": False}, "16-byte aligned rows"),
        (mx_dense, few, "needs 64 dims or 128"),
    ):
        problem = operation.example(TARGET)
        assert operation.select(problem).name == "gluon_cdna4"
        declined = problem._replace(**change)
        assert operation.select(declined).name == "classic"
        assert reason in str(operation.explain(declined))


def test_caches_that_can_be_copied_directly() -> None:
    """Of blocks 16 bytes apart, as those of 68 bytes for each of 64 keys are."""
    for gap, direct in ((0, True), (4, False), (16, True)):
        call = MxPaged(*sparse.make_paged_call([70], 8, heads=16, dim=128, pair=PAIRS[0], gap=gap))
        assert copies_directly(call) == direct
        assert problem_of(call, torch.float32, 8, False, "flat").direct_keys == direct


def test_keys_that_can_be_copied_directly() -> None:
    call = MxDense(*sparse.make_call([(0, 70)], 1, 8, 1, dim=128, pair=PAIRS[0]))
    memory = torch.empty(4096, dtype=torch.uint8)
    for apart, first, direct in ((64, 0, True), (80, 16, True), (72, 0, False), (80, 8, False)):
        moved = call._replace(k=memory.as_strided((8, 64), (apart, 1), first))
        assert packed_copy_directly(moved) == direct
        assert problem_of(moved, torch.float32, 8, False, True).direct_keys == direct
    far = torch.empty(1, dtype=torch.int32, device="meta").as_strided((8,), (2**26,))
    assert not packed_copy_directly(call._replace(k_scale=far))
