"""Which program of a dense kernel for AMD scores what: each pair of a group and a part once, and each die parts of its own."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton")  # of whose functions one is called

from capgate.compat import Target, override
from capgate.kernels.common import hardware
from capgate.kernels.common.device.windows import work_of
from capgate.kernels.common.work_order import FILLS, order_with, work_order

pytestmark = pytest.mark.one_lane
GFX950, GFX942 = Target("hip", "gfx950", 64), Target("hip", "gfx942", 64)
DIES = st.sampled_from([1, 2, 4, 6, 8])


def shares(order):
    """(group, split) of each program."""
    return [work_of.fn(program, order.xcds, order.classes, order.cells) for program in range(order.programs)]


@given(st.integers(1, 200), st.integers(1, 100), DIES)
def test_every_pair_is_one_programs(groups, splits, dies):
    order = order_with(groups, splits, dies)
    found = shares(order)
    assert len(set(found)) == len(found), "two programs would do the same"
    assert {(group, split) for group in range(groups) for split in range(splits)} <= set(found)
    assert all(group >= groups or split < splits for group, split in found)
    assert order.programs < (groups + dies) * splits


@given(st.integers(1, 200), st.integers(1, 100), DIES)
def test_a_die_has_parts_of_its_own(groups, splits, dies):
    """As few parts as there are for it, groups in their order, and no more programs than another die."""
    found = shares(order_with(groups, splits, dies))
    for die in range(dies):
        own = found[die::dies]
        assert len(own) * dies == len(found)
        assert len({split for _, split in own}) <= -(-splits // dies) + (splits % dies > 0)
        padding = dies  # of neighbours in a die's order, whose groups are of other classes
        assert all(later > earlier - padding for (earlier, _), (later, _) in pairwise(own))


@given(st.integers(1, 5000), st.integers(1, 1024), st.sampled_from([1, 256, 512, 768, 912]), DIES)
def test_places_are_taken(groups, tiles, places, dies):
    order = work_order(groups, tiles, places, dies)
    assert order.splits <= max(1, tiles)
    if groups >= places:
        assert order.splits == 1
        return
    assert order.programs <= FILLS * places + dies
    plain = max(1, min(places // groups, tiles))  # where each program has a place
    assert order.splits * groups >= 0.5 * plain * groups, "places are left empty for the sake of dies"


@pytest.mark.parametrize(
    ("groups", "keys", "splits"),
    [(2048, 8192, 1), (1024, 32768, 1), (512, 32768, 3), (512, 4096, 1), (256, 4096, 3), (16, 65536, 48), (1, 131072, 768)],
)
def test_on_an_mi355(groups, keys, splits):
    """The numbers of docs/design/cdna4.md."""
    assert work_order(groups, keys // 128, 768, 8).splits == splits


@pytest.mark.parametrize(
    ("target", "multiprocessors", "dies"),
    [(GFX950, 256, 8), (GFX942, 304, 8), (GFX942, 228, 6), (GFX942, 38, 1), (GFX942, 80, 1), (GFX950, 1, 1)],
)
def test_dies_of_a_gpu(monkeypatch, target, multiprocessors, dies):
    monkeypatch.setitem(hardware._supposed, target, multiprocessors)
    assert hardware.xcds(target) == dies
    with override(disable=["xcds_in_turn"]):
        assert hardware.xcds(target) == 1


def test_a_gpu_of_one_die():
    assert hardware.xcds(Target("cuda", 90, 32)) == 1
