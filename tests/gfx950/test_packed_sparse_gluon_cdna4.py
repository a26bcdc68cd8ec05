"""The Gluon variant of packed keys' sparse logits for gfx950, as this lane's Triton compiles it: executed and counted."""

import re

import pytest
import torch

from capgate.compat import capabilities
from capgate.kernels.sparse_logits.calls import packed_copy_directly
from capgate.kernels.sparse_logits.operands import Dense
from capgate.kernels.sparse_logits.operation import dense
from support import sparse
from support.emulated_mqa import TARGET, Prepared, execute, prepare
from support.emulated_sparse import PACKED_VARIANTS, PackedSparseCase
from support.steady_loop import check_copies_stay_in_flight, check_steady_loop, steady_loop
from support.wait_states import check_wait_states, wait_states

pytestmark = pytest.mark.skipif(not capabilities(TARGET).gluon_cdna4, reason=capabilities(TARGET).why("gluon_cdna4"))
WINDOWS = [(0, 70), (9, 9), (40, 1673)]  # of one row each: short, empty, and of several rounds


def prepared_of(case: PackedSparseCase) -> Prepared:
    """Compiled without a vector register in memory; scalar ones may lie in lanes between lists, never in the loop of tiles."""
    prepared = prepare(PACKED_VARIANTS["gluon_cdna4"], case)
    assert not re.search(r"vgpr_spill_count: +[1-9]", prepared.compiled.asm["amdgcn"])
    return prepared


def agrees(case: PackedSparseCase) -> None:
    """Executed with copies that land late and early."""
    prepared = prepared_of(case)
    for switches in ({"landing": "late", "preload": True}, {"landing": "early", "preload": False}):
        execute(prepared, measure=False, **switches)
    check_wait_states(wait_states(prepared.compiled.asm["amdgcn"]))


@pytest.mark.parametrize(
    ("heads", "list_rows", "waves", "vector"), [(64, 1, 1, 80), pytest.param(32, 8, 4, 70, marks=pytest.mark.dealt)]
)
def test_steady_loop(heads: int, list_rows: int, waves: int, vector: int) -> None:
    """No bank conflict, two tiles in flight whenever one is scored, and so many vector instructions for 32 keys at most."""
    call = sparse.make_call([(0, 2304)] * list_rows, list_rows, 2304, 288, heads=heads, dim=128)
    prepared = prepared_of(PackedSparseCase(call._replace(candidates=call.candidates[:1])))
    texts, counters = steady_loop(prepared)
    check_steady_loop(texts)
    check_copies_stay_in_flight(texts, passes=3)
    assert prepared.compiled.metadata.num_warps == waves
    assert counters.lds_cycles == counters.lds_ideal_cycles > 0
    products = sum(text.startswith("v_mfma") for text in texts)
    assert products == 3 * 2 * 2 * 2, "of three tiles of 64 keys, with a row of 64 heads or two of 32 for each wave"
    arithmetic = sum(text.startswith("v_") for text in texts) - products
    assert 6 * 48 < arithmetic <= 6 * vector
    execute(prepared, landing="early")


def test_only_listed_keys_are_scored() -> None:
    """Other keys and scales are NaN, and entries name blocks that the row does not have."""
    call = sparse.make_call(WINDOWS, 3, 1673, 160, heads=64, dim=128)
    agrees(PackedSparseCase(sparse.poisoned(call, 8)))  # by the kernel of the steady loop
    call.candidates[2, 5:20:3] = torch.tensor([-1, 2**31 - 1, 205, -(2**31), 204], dtype=torch.int32)
    agrees(PackedSparseCase(sparse.poisoned(call, 8)))


@pytest.mark.dealt
@pytest.mark.parametrize(
    ("heads", "list_rows", "block", "relative"), [(32, 9, 16, True), (32, 9, 8, False), (64, 2, 8, False), (128, 1, 64, False)]
)
def test_agrees(heads: int, list_rows: int, block: int, relative: bool) -> None:
    """Rows that share a list and begin at one key or at several, and tiles that a candidate block has several of."""
    windows = [(row // 4 * block, 700 - 30 * row) if row % 5 else (row, 17 * row) for row in range(2 * list_rows)]
    call = sparse.make_call(windows, len(windows), 640, 11, block, heads, 128, relative=relative)
    call = call._replace(candidates=call.candidates[list_rows - 1 :: list_rows].contiguous())
    agrees(PackedSparseCase(call, block, clean_logits=True, relative=relative))


def test_keys_and_scales_apart() -> None:
    """Keys that other bytes lie between, scales two apart, bfloat16 weights and logits."""
    call = sparse.make_call(WINDOWS, 3, 1700, 20, heads=16, dim=64)
    k = torch.zeros(1700, 80, dtype=torch.uint8).view(call.k.dtype)[:, :64].copy_(call.k)
    scale = torch.full((1700, 2), float("nan"))
    scale[:, 0] = call.k_scale.flatten()
    call = call._replace(k=k, k_scale=scale[:, 0], weights=call.weights.bfloat16())
    agrees(PackedSparseCase(call, dtype=torch.bfloat16))


def test_chosen_on_gfx950() -> None:
    problem = dense.example(TARGET)
    assert dense.select(problem).name == "gluon_cdna4"
    declined = problem._replace(direct_keys=False)
    assert dense.select(declined).name == "classic"
    assert "16-byte aligned rows" in str(dense.explain(declined))
    assert dense.select(problem._replace(dtype="float8_e4m3fnuz")).name != "gluon_cdna4"


def test_keys_that_can_be_copied_directly() -> None:
    call = sparse.make_call([(0, 70)], 1, 70, 8, dim=64)
    memory = torch.empty(4096, dtype=torch.uint8).view(call.k.dtype)

    def direct(k: torch.Tensor, **changed: torch.Tensor) -> bool:
        return packed_copy_directly(Dense(*call._replace(k=k, **changed)))

    assert direct(memory.as_strided((8, 64), (80, 1), 16))
    assert not direct(memory.as_strided((8, 64), (72, 1)))
    assert not direct(memory.as_strided((8, 64), (80, 1), 8))
    assert not direct(memory.as_strided((8, 32), (128, 2)))
    assert not direct(torch.empty_strided((2**15, 64), (2**16, 1), dtype=call.k.dtype, device="meta"))
    far = torch.empty(1, 2, dtype=torch.int32, device="meta").as_strided((1, 8), (2**30, 2**28))
    assert not direct(memory.as_strided((8, 64), (64, 1)), candidates=far)
    far = torch.empty(1, device="meta").as_strided((8,), (2**26,))
    assert not direct(memory.as_strided((8, 64), (64, 1)), k_scale=far)
