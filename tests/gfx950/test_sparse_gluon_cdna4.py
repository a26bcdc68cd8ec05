"""The Gluon variant of sparse logits for gfx950, as this lane's Triton compiles it: executed, counted, and what it takes."""

from types import SimpleNamespace

import pytest
import torch

from capgate.compat import capabilities
from capgate.kernels.sparse_logits.calls import copies_directly
from capgate.kernels.sparse_logits.operation import paged
from support import sparse
from support.emulated_mqa import TARGET, execute, prepare, spills_nothing
from support.emulated_sparse import VARIANTS, SparseCase
from support.paged import without_blocks
from support.steady_loop import check_copies_stay_in_flight, check_steady_loop, steady_loop
from support.wait_states import check_wait_states, wait_states

pytestmark = pytest.mark.skipif(not capabilities(TARGET).gluon_cdna4, reason=capabilities(TARGET).why("gluon_cdna4"))


def agrees(case: SparseCase) -> None:
    """Executed with copies that land late and early, of a kernel that keeps no register in memory."""
    prepared = prepare(VARIANTS["gluon_cdna4"], case)
    assert spills_nothing(prepared)
    for switches in ({"landing": "late", "preload": True}, {"landing": "early", "preload": False}):
        execute(prepared, measure=False, **switches)
    check_wait_states(wait_states(prepared.compiled.asm["amdgcn"]))


def test_steady_loop() -> None:
    """No bank conflict, two tiles in flight whenever one is scored, and at most 90 vector instructions for 32 keys."""
    prepared = prepare(VARIANTS["gluon_cdna4"], SparseCase(sparse.make_paged_call([70, 0, 1633], 160, heads=64, dim=128)))
    assert spills_nothing(prepared)
    texts, counters = steady_loop(prepared)
    check_steady_loop(texts)
    check_copies_stay_in_flight(texts, passes=3)
    assert prepared.compiled.metadata.num_warps == 1
    assert counters.lds_cycles == counters.lds_ideal_cycles > 0
    vector = sum(text.startswith("v_") and not text.startswith("v_mfma") for text in texts)
    assert 6 * 48 < vector <= 6 * 90, "of three tiles of 64 keys"
    execute(prepared, landing="early")


def test_only_listed_keys_are_scored() -> None:
    """Other keys and scales are NaN, entries name blocks that the row does not have, and the cache lacks some."""
    call = sparse.make_paged_call([70, 0, 1633], 160, heads=64, dim=128)
    agrees(SparseCase(sparse.poisoned(call, 8)))  # by the kernel of the steady loop
    call.candidates[2, 5:20:3] = torch.tensor([-1, 2**31 - 1, 205, -(2**31), 210], dtype=torch.int32)
    agrees(SparseCase(without_blocks(call)))


@pytest.mark.dealt
@pytest.mark.parametrize(
    ("heads", "next_n", "block", "page", "layout", "shared"),
    [(32, 2, 16, 48, "preshuffled", True), (128, 1, 64, 128, "flat", False)],
)
def test_agrees(heads: int, next_n: int, block: int, page: int, layout: str, shared: bool) -> None:
    """Rows that share a list, blocks of no power of two of keys, and tiles that a candidate block has several of."""
    call = sparse.make_paged_call(
        [150, 0, 333], 10, block, next_n, block_of_cache=page, heads=heads, dim=128, layout=layout, gap=16
    )
    if shared:
        call = call._replace(candidates=call.candidates[next_n - 1 :: next_n].contiguous())
    agrees(SparseCase(call, block, clean_logits=True, layout=layout))


def test_chosen_on_gfx950() -> None:
    problem = paged.example(TARGET)
    assert paged.select(problem).name == "gluon_cdna4"
    for change, reason in (
        ({"direct_keys": False}, "a multiple of 16 bytes apart"),
        ({"block_size": 48, "candidate_block": 32}, "found 32 keys in blocks of 48"),
    ):
        declined = problem._replace(**change)
        assert paged.select(declined).name == "classic"
        assert reason in str(paged.explain(declined))
    assert paged.select(problem._replace(dtype="float8_e4m3fnuz")).name != "gluon_cdna4"


@pytest.mark.parametrize(
    ("blocks", "apart", "offset", "direct"),
    [
        (9, 64 * 132, 0, True),
        (9, 64 * 132 + 4, 0, False),
        (9, 64 * 132, 4, False),
        (2**15, 2**16, 0, False),
    ],
)
def test_caches_that_can_be_copied_directly(blocks: int, apart: int, offset: int, direct: bool) -> None:
    cache = torch.empty_strided((blocks, 64, 1, 132), (apart, 132, 132, 1), dtype=torch.uint8, device="meta")
    held = SimpleNamespace(shape=cache.shape, stride=cache.stride, data_ptr=lambda: offset)
    near = sparse.make_paged_call([70], 8)
    assert copies_directly(near._replace(kv_cache=held)) == direct
    far = torch.empty(1, 2, dtype=torch.int32, device="meta").as_strided((1, 8), (2**30, 2**28))
    assert not copies_directly(near._replace(candidates=far))
