"""The fused selections compiled for GPUs that are not here, by this lane's Triton: they fit, and nothing goes to memory."""

from collections.abc import Callable
from typing import Any

import pytest

from capgate.compat import capabilities
from capgate.compat.offline.jobs import Job, compiling_environment
from capgate.kernels.tools.compile_command import vector_per_32_keys
from support.compile_server import Servers

# Bytes of a thread's stack. On an H200 three programs an SM, of 168 registers and with these, were faster than two without any.
STACK = {"cuda:90": 72, "hip:gfx950": 0, "hip:gfx942": 0}
MEMORY = {"cuda:90": 227 * 1024, "hip:gfx950": 160 * 1024, "hip:gfx942": 64 * 1024}
CELLS = [
    pytest.param("fp8_select_keys", "cuda:90", marks=pytest.mark.dealt),
    pytest.param("fp8_select_keys", "hip:gfx950", marks=pytest.mark.dealt),
    pytest.param("fp8_select_keys", "hip:gfx942", marks=pytest.mark.one_lane),
    pytest.param("fp8_select_paged_keys", "cuda:90", marks=pytest.mark.one_lane),
]


@pytest.fixture
def scan(once: Callable[..., Any], compile_servers: Servers) -> Callable[[str], dict[str, Any]]:
    """What an operation's gluon_hopper kernel compiles to, once for all tests that look at it."""

    def row(operation: str) -> dict[str, Any]:
        def compiled() -> dict[str, Any]:
            request = {"jobs": [operation]}
            return compile_servers.answers("support.compile_fused_hopper", request, compiling_environment()).answer(0)

        made: dict[str, Any] = once(("scan", operation), compiled)
        assert made["compiled"], made["error"]
        return made

    return row


@pytest.mark.parametrize(("operation", "target"), CELLS)
def test_classic_fits_and_spills_little_to_memory(compile_once: Callable[..., Any], operation: str, target: str) -> None:
    """On NVIDIA as many programs fit an SM as the tuning says; on AMD nothing goes to memory, and scalar registers with kernel
    arguments go to lanes of a vector register: docs/design/fused_selection.md."""
    (row,) = compile_once(operation, target, [Job("classic", mode="indices")])
    assert row["compiled"], row["error"]
    resident = row["tuning"]["resident"] if target.startswith("cuda:") else 1
    assert row["lds_bytes"] * resident <= MEMORY[target]
    assert row["scratch_bytes"] <= STACK[target]
    assert row["vgprs"] * 128 * resident <= 65536


@pytest.mark.skipif(not capabilities("hip:gfx950").gluon_cdna4, reason=capabilities("hip:gfx950").why("gluon_cdna4"))
def test_waves_append_at_little_cost(compile_once: Callable[..., Any]) -> None:
    """Vector instructions for 32 keys of a row of 64 heads: 53 to 54 are those of the logits. No vector register spills, which
    would take scratch memory or an accumulator; scalar ones are none of the loop's, where they would be vector instructions."""
    (row,) = compile_once("fp8_select_keys", "hip:gfx950", [Job("gluon_cdna4", mode="indices")])
    assert row["compiled"], row["error"]
    assert row["lds_bytes"] * row["tuning"]["resident"] <= MEMORY["hip:gfx950"]
    assert row["scratch_bytes"] == row["agprs"] == 0
    assert row["waves_per_simd"] == 3
    vector = vector_per_32_keys(row)
    assert vector is not None
    assert 50 < vector <= 57


@pytest.mark.skipif(not capabilities("hip:gfx950").gluon_cdna4, reason=capabilities("hip:gfx950").why("gluon_cdna4"))
def test_waves_append_cached_keys_at_little_cost(compile_once: Callable[..., Any]) -> None:
    """As of packed keys: 53 are those of the logits. One wave is a program, and a SIMD has two of three, as of the logits."""
    (row,) = compile_once("fp8_select_paged_keys", "hip:gfx950", [Job("gluon_cdna4", mode="indices")])
    assert row["compiled"], row["error"]
    assert row["lds_bytes"] * row["tuning"]["resident"] <= MEMORY["hip:gfx950"]
    assert row["scratch_bytes"] == row["agprs"] == 0
    assert row["vgprs"] <= 168
    assert row["waves_per_simd"] * 4 >= row["tuning"]["resident"] == 6
    loop = row["hot_loop"]
    assert (loop["keys"], loop["mfma"], loop["vmem"]) == (3 * 64, 3 * 8, 3 * 12)  # 8 of keys, 2 of scales and blocks, 2 stores
    vector = vector_per_32_keys(row)
    assert vector is not None
    assert 50 < vector <= 57


@pytest.mark.skipif(not capabilities("cuda:90").gluon_hopper, reason=capabilities("cuda:90").why("gluon_hopper"))
def test_warps_append_at_little_cost(scan: Callable[[str], dict[str, Any]]) -> None:
    """Instructions of a warp for a tile of 128 keys and two rows of 64 heads: with the code of a new group the logits alone
    are 438. Nothing spills; a tile has 2 loads of scales, 2 exchanges and 4 stores of entries."""
    row = scan("fp8_select_keys")
    assert row["lds_bytes"] <= MEMORY["cuda:90"]
    assert row["scratch_bytes"] == row["spills"] == 0
    loop = row["hot_loop"]
    assert (loop["mfma"], loop["lds"], loop["vmem"]) == (8, 4, 4)
    assert 350 < loop["total"] <= 410


@pytest.mark.skipif(not capabilities("cuda:90").gluon_hopper, reason=capabilities("cuda:90").why("gluon_hopper"))
def test_warps_append_cached_keys_at_little_cost(scan: Callable[[str], dict[str, Any]]) -> None:
    """Instructions of a warp for a tile of 64 keys and a row of 64 heads; nothing spills. A tile has a load of scales, one of
    what is missing, two exchanges and two stores of an entry; the logits' has no second store. Two programs fit an SM."""
    row = scan("fp8_select_paged_keys")
    assert (row["lds_bytes"] + 1024) * row["tuning"]["resident"] <= 228 * 1024
    assert row["scratch_bytes"] == row["spills"] == 0
    assert row["waves_per_simd"] == 2 * row["tuning"]["resident"]
    loop = row["hot_loop"]
    assert (loop["mfma"], loop["lds"], loop["vmem"]) == (4, 4, 2)
    assert 130 < loop["total"] <= 165


@pytest.mark.skipif(not capabilities("cuda:90").gluon_hopper, reason=capabilities("cuda:90").why("gluon_hopper"))
@pytest.mark.parametrize(("operation", "products"), [("fp8_select_keys", (128, 4)), ("fp8_select_paged_keys", (64, 1))])
def test_hopper_scans_as_the_logits_kernels_do(
    scan: Callable[[str], dict[str, Any]], operation: str, products: tuple[int, int]
) -> None:
    """What tests/kernels/common/test_hopper_compile.py asks of those: products in one place of each consumer, in flight side by
    side; and no mbarrier's memory becomes another's."""
    made = scan(operation)
    columns, tiles = products
    assert made["wgmma"] == {f"wgmma.mma_async.sync.aligned.m64n{columns}k32.f32.e4m3.e4m3": tiles * 128 // 32}
    assert made["faults"] == made["undefined"] == []
    assert not made["serialized"]
    assert made["fenced"] or operation == "fp8_select_keys"


@pytest.mark.one_lane
def test_a_launch_that_the_example_does_not_make_is_said(compile_once: Callable[..., Any]) -> None:
    """A gfx950 that is not here counts as one CU, which runs one program, and shares no row."""
    (row,) = compile_once("fp8_select_keys", "hip:gfx950", [Job("classic", mode="merge")])
    assert not row["compiled"]
    assert row["error"] == "mode: got 'merge', a launch that the example's call does not make there"
