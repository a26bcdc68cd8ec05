"""The gluon_hopper kernels compiled for an H100 that is not here, by this lane's Triton: what a pass over keys needs, once."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from capgate import compat
from capgate.compat.offline.jobs import compiling_environment
from capgate.compat.offline.occupancy import MULTIPROCESSORS, RESERVED_SHARED_BYTES
from support.code_reading import EVERY_WORD_IS_CUT
from support.compile_server import Servers

# Kinds of call as support.compile_hopper takes them: heads, dims, output; then query rows, where they are so few that the
# kernel guesses what it needs first, or keys of a block, next_n and, if they are few, workers. Every row of the tuning
# tables, and every output mode. First those that each Triton compiles, of the models' sizes.
DENSE = ("64,128,clean", "64,128,unclean", "64,128,compressed", "32,128,clean")
DENSE_DEALT = (
    *("16,64,clean", "128,32,clean", "64,128,unclean,64"),
    *("32,128,compressed,64", "64,128,clean-bf16", "16,64,compressed-bf16,64"),
)
PAGED = {  # and the columns of their products, rows of a request together times heads; further rows take a second product
    "64,128,unclean,64,1": 64,
    "64,128,unclean,64,8,1": 128,
    "32,128,clean,64,1,1": 32,
}
PAGED_DEALT = {
    "64,128,clean,32,2": 128,
    "32,128,unclean,128,3": 128,
    "128,128,clean,128,8": 128,
    "16,64,unclean,32,8": 128,
    "16,32,clean,64,1": 16,
    "64,128,clean-bf16,64,2": 128,
    "32,128,clean,32,6": 128,
    "16,32,unclean-bf16,64,1": 16,
}
SPARSE = {  # heads, dims, output, keys of a candidate block, rows that share a list; and the columns of each warpgroup
    "64,128,clean,8,8": 128,
}
SPARSE_DEALT = {
    "32,128,shared,8,8": 128,
    "32,64,clean-bf16,64,2": 64,
    "16,32,clean,32,8": 64,
    "128,128,shared-bf16,16,2": 128,
}
PACKED = {**dict.fromkeys((*DENSE, *DENSE_DEALT), 128), **SPARSE, **SPARSE_DEALT}
COLUMNS = PAGED | PAGED_DEALT


def parameters(operation: str, everywhere: Iterable[str], dealt: Iterable[str]) -> list[Any]:
    shared = [pytest.param(operation, kind, marks=pytest.mark.dealt) for kind in dealt]
    return [(operation, kind) for kind in everywhere] + shared


PAGED_KINDS = parameters("paged_mqa_logits", PAGED, PAGED_DEALT)
# The paged ones first: a lane that has one of them for a test of all kinds has it for those of paged kinds, too.
KINDS = [*PAGED_KINDS, *parameters("mqa_logits", DENSE, DENSE_DEALT), *parameters("sparse_logits", SPARSE, SPARSE_DEALT)]


@pytest.fixture(autouse=True)
def _gluon_hopper() -> None:
    caps = compat.capabilities("cuda:90")
    if not caps.gluon_hopper:
        pytest.skip(caps.why("gluon_hopper"))


@pytest.fixture
def result(once: Callable[..., Any], compile_servers: Servers, operation: str, kind: str) -> dict[str, Any]:
    def compiled() -> dict[str, Any]:
        request = {"operation": operation, "jobs": [kind]}
        return compile_servers.answers("support.compile_hopper", request, compiling_environment()).answer(0)

    row: dict[str, Any] = once(("gluon_hopper", operation, kind), compiled)
    assert row["compiled"], row["error"]
    return row


kinds = pytest.mark.parametrize(("operation", "kind"), KINDS)


@kinds
def test_fits_without_spills(result: dict[str, Any], operation: str) -> None:
    """One program of packed keys fills an SM; two of the paged kernel fit there, and keep more bytes in flight."""
    programs = 2 if operation == "paged_mqa_logits" else 1
    assert result["spills"] == 0
    assert result["warps"] * 32 >= programs * result["threads"]
    assert 0 < result["shared"] <= MULTIPROCESSORS["90"].shared_bytes // programs - RESERVED_SHARED_BYTES


@kinds
def test_products_are_issued_in_one_place_and_in_parallel(result: dict[str, Any], operation: str, kind: str) -> None:
    """A second place, such as a peeled iteration, would need wgmma_after_zero_trip_loop, which some of the lanes lack.

    C7514 is ptxas's warning that it serializes wgmmas: an accumulator in flight crosses the loop's back edge.
    """
    dim = int(kind.split(",")[1])
    # Two warpgroups of the kernels of packed keys have two tiles each.
    columns, tiles = (COLUMNS[kind], passes(kind)) if operation == "paged_mqa_logits" else (PACKED[kind], 2 * 2)
    assert result["wgmma"] == {f"wgmma.mma_async.sync.aligned.m64n{columns}k32.f32.e4m3.e4m3": tiles * dim // 32}
    assert result["undefined"] == []
    assert not result["serialized"]


@kinds
def test_loads_of_a_stage_end_before_the_next_copy_to_it(result: dict[str, Any], operation: str) -> None:
    """A scale is loaded before a product and used behind the barrier that lets the stage go: without a fence the copy engine
    overtook such a load once (docs/design/fused_selection.md). Kernels of packed keys use one before the barrier."""
    assert result["fenced"] or operation != "paged_mqa_logits"


def passes(kind: str) -> int:
    """Products of each tile of keys: two where a request's rows make an even number of them."""
    heads, _, _, _, next_n, *_ = kind.split(",")
    return 1 + (-(-int(heads) * int(next_n) // 128) % 2 == 0)


@kinds
def test_an_mbarriers_memory_is_nobody_elses_while_it_is_valid(result: dict[str, Any], operation: str, kind: str) -> None:
    """Triton's allocator gives the memory of a barrier that is not used any more to the next tile, scratch, or arguments of
    specialised warps, invalidated or not; then cells of -inf held what an init had stored there."""
    assert result["faults"] == []


@pytest.mark.parametrize("bits", [32, 16])
@pytest.mark.parametrize("next_n", [1, 2, 8])
@pytest.mark.parametrize("heads", [4, 32, 64, 128])
def test_the_copy_engine_writes_a_request_s_weights_to_a_multiple_of_128_bytes(heads: int, next_n: int, bits: int) -> None:
    """It takes no other address; 16 weights of float32, and 32 of bfloat16, are half as long."""
    from capgate.kernels.paged_mqa_logits.gluon_hopper import spread, tuning
    from capgate.kernels.paged_mqa_logits.operation import example

    tune = tuning(example("cuda:90")._replace(heads=heads, next_n=next_n))
    step = spread(tune.rows, tune.columns // tune.rows, bits) * tune.columns * bits // 8
    assert step % 128 == 0
    assert step == max(128, tune.columns * bits // 8)


@kinds
def test_no_load_left_the_producers_loops(result: dict[str, Any], operation: str, kind: str) -> None:
    """In every lane alike, also where carried_loop_bounds does not hold: what is loaded ahead is loaded for every item."""
    clean = kind.split(",")[2].startswith("clean")
    if operation == "mqa_logits":  # the windows of the next group; the fill's, beside the key tiles and behind them
        assert result["loads"] == 1 + 2 * clean
    elif operation == "sparse_logits":
        # Of each of two producers: words of the schedule, windows, three tiles' blocks, two tiles' scales; the fill's windows.
        assert result["loads"] == 2 * (4 + 2 + 3 + 2) + 2 * clean
    else:  # the next request's lengths and its first 32 blocks; this one's second 32, and further ones; the fill's lengths
        assert result["loads"] == 4 + clean


@pytest.mark.parametrize(("operation", "kind"), PAGED_KINDS)
def test_every_word_of_a_schedule_is_cut_before_anything_else(result: dict[str, Any]) -> None:
    """As in the other variants: tests/gfx950/test_paged_mqa_logits.py."""
    assert list(map(tuple, result["uses"])) == EVERY_WORD_IS_CUT


@pytest.mark.parametrize(
    ("operation", "kind", "keys"), [("mqa_logits", "64,128,unclean", 128 * 2), ("paged_mqa_logits", "64,128,unclean,64,1", 64)]
)
def test_capgate_compile_shows_the_pass_over_the_keys(result: dict[str, Any], keys: int) -> None:
    """Its hot loop is a tile's: keys of a tile for each of a warpgroup's rows, shared out among four warps."""
    assert result["hot_loop"]["keys"] == keys / 4
    assert result["hot_loop"]["mfma"] == {128 * 2: 8, 64: 4}[keys]
    assert min(result["hot_loop"][kind] for kind in ("valu", "salu", "lds", "vmem")) > 0
    assert (result["spills"], result["scratch"]) == (0, 0)
