"""The slot model keeps its own rules, and the published times of a public kernel, as far as its page says."""

import re
from pathlib import Path

import pytest

from capgate.compat.offline.disassembly import read_amdgcn
from support import decode_model
from support.slot_model import (
    PEERS,
    SCENARIOS,
    SLOT,
    Grid,
    Loop,
    Op,
    causal,
    clocks_of_grid,
    clocks_of_pass,
    factors,
    interval,
    op_of,
    ops_of,
    possible,
    published,
    read_ops,
)

FREE = SCENARIOS["all overlap"]
PAGE = (Path(__file__).parents[2] / "docs" / "design" / "gfx950_model.md").read_text()


def test_instructions() -> None:
    assert op_of("v_mfma_scale_f32_32x32x64_f8f6f4 v[0:15], v[64:71], v[72:79], 0, v90, v90") == Op("matrix", 64)
    assert op_of("v_pk_fma_f32 v[0:1], v[2:3], v[4:5], v[6:7]") == Op("packed")
    assert op_of("v_maximum3_f32 v0, v0, 0, 0") == Op("vector")
    assert op_of("s_waitcnt vmcnt(3) lgkmcnt(0)") == Op("wait", 0, (0, 3))
    assert op_of("s_nop 15") == Op("idle", 64)
    assert op_of("ds_read_b128 v[0:3], v4 offset:64") == Op("lds", 8)
    assert op_of("buffer_load_dwordx4 v60, s[4:7], 0 offen lds") == Op("memory", 1024)


def test_the_loop_is_that_of_the_code_and_of_the_file() -> None:
    code = "\thead:\n\tv_mov_b32 v0, 0\nloop:\n\tv_add_f32 v0, v1, v2\n\tv_add_f32 v0, v1, v2\n\ts_waitcnt vmcnt(4)\n"
    code += "\tv_mfma_f32_32x32x16_fp8_fp8 v[0:15], v[20:21], v[22:23], 0\n\ts_cbranch_scc1 loop\n\ts_endpgm\n"
    assert tuple(ops_of(read_amdgcn(code.replace("\thead:\n", "head:\n")))) == read_ops("2*v w-1,4 m32 s")


@pytest.mark.parametrize(("text", "waves", "clocks"), [("16*v", 1, 64), ("16*v", 4, 64), ("4*m64", 2, 256), ("i64 v", 1, 68)])
def test_bounds(text: str, waves: int, clocks: float) -> None:
    """Vector instructions take a slot of the SIMD each, matrix instructions their passes, and s_nop time of one wave alone."""
    assert clocks_of_pass(read_ops(text), waves, FREE) == pytest.approx(clocks, abs=SLOT)


def test_waves_fill_each_others_gaps() -> None:
    loop = read_ops("4*m64 i64 40*v")
    alone, together = (clocks_of_pass(loop, waves, FREE) for waves in (1, 3))
    assert together < 0.75 * alone
    assert clocks_of_pass(loop, 3, SCENARIOS["nothing overlaps"]) > together >= 256
    packed = read_ops("4*m64 40*p")
    never, own, each = (clocks_of_pass(packed, 3, FREE._replace(packed_waits=how)) for how in ("never", "wave", "simd"))
    assert never <= own <= each
    waiting = read_ops("g256 w-1,0 8*v")
    assert clocks_of_pass(waiting, 1, FREE) > 4 * clocks_of_pass(waiting, 8, FREE)


def test_the_grid_ends_with_its_longest_workgroup() -> None:
    loop = Loop(1.0, 2.0, 4, 1.0, read_ops("16*v"))
    full = clocks_of_grid(loop, Grid((100,) * 512), FREE)
    assert full == pytest.approx(100 * 2 * 64, rel=0.15)
    assert clocks_of_grid(loop, Grid((100,) * 513), FREE) > 1.4 * full, "one more place than there is"
    assert causal(8, 20, 4, 8).passes == (3, 2)
    assert causal(8, 20, 4, 8, tiles=2).passes == (1.5, 1), "of a round that is not full, what is scored"


def test_published_times() -> None:
    """Each scenario that is left deviates as its page says, and others run slower than the hardware did."""
    triton = PEERS[-1]
    left = possible(triton)
    assert set(left) == {"all overlap", "packed wait for their wave", "packed wait for any wave"}
    for name, (least, most) in left.items():
        found = re.search(rf"\| {triton} \| {name} \| ([\d.]+) to ([\d.]+) ", PAGE)
        assert found is not None
        assert (float(found[1]), float(found[2])) == pytest.approx((least, most), abs=0.006)
    long = {each.commit: each for each in published(triton) if (each.heads, each.keys) == (64, 32768)}
    newer, older = (
        factors(triton, "all overlap")[published(triton).index(long[commit])] for commit in ("021d5709", "e4048607")
    )
    assert long["021d5709"].us / newer < long["e4048607"].us / older, "ranks the two kernels as they were measured"


def test_an_interval_holds_the_time_that_it_was_made_from() -> None:
    for each in published("3.9.0")[:1]:
        low, high = interval(each.loop, each.grid, "3.9.0")
        assert low <= each.us * 1.001
        assert each.us <= high * 1.001


def test_decode() -> None:
    """The published times deviate as the page says, and the bytes of a call with one row take longer than its loop."""
    for name in possible(PEERS[-1]):
        found = re.search(rf"\| {name} \| ([\d.]+), ([\d.]+) \|", PAGE)
        assert found is not None
        assert [float(found[1]), float(found[2])] == pytest.approx(decode_model.factors(name), abs=0.006)
    one, six = decode_model.PUBLISHED
    loop = Loop(2.0, 1.5, 1, 1.0, read_ops("16*m64 104*v"))
    assert decode_model.of_loop(loop, 1, one, FREE) < one.bytes / decode_model.HBM_BYTES * 1e6
    assert six.units(4) == pytest.approx(six.units(2) * 8 / 6), "rows that a request does not have are scored, too"
    low, high = decode_model.interval(decode_model.PUBLIC, 1, six)
    assert low <= decode_model.PUBLISHED[six] * 1.001
    assert decode_model.PUBLISHED[six] <= high * 1.001
