"""Dense kernels compiled for gfx950 and gfx942 write the same bits, whichever program of whichever die scores what."""

from typing import Any

import pytest
import torch

from capgate.compat import Kernel, Target, capabilities, override
from capgate.kernels.common import hardware
from support.emulated_mqa import TARGET, VARIANTS, Case, Variant, execute, on_gfx942, prepare, spills_nothing, windowed
from support.emulated_mx import VARIANTS as MX_VARIANTS
from support.emulated_mx import MxCase
from support.emulated_mx import windowed as mx_windowed

pytestmark = pytest.mark.skipif(not capabilities(TARGET).gluon_cdna4, reason=capabilities(TARGET).why("gluon_cdna4"))

ROWS = [(0, 300), (129, 290), (-3, 257), (17, 200), (255, 400), (7, 7)]


def gfx942() -> Variant:
    from capgate.compat.gluon import GluonASTSource
    from capgate.kernels.mqa_logits import gluon_cdna3

    return on_gfx942(Variant(gluon_cdna3.kernel, GluonASTSource))


def supposing(variant: Variant, compute_units: int) -> Variant:
    """The variant as a GPU of so many compute units gets it."""
    target = Target("hip", variant.target.arch, 64)

    def prepare_there(problem: Any, *operands: Any, **options: Any) -> Any:
        before = hardware.multiprocessors(target)
        hardware.suppose_multiprocessors(target, compute_units)
        try:
            return variant.kernel.prepare(problem, *operands, **options)
        finally:
            hardware.suppose_multiprocessors(target, before)

    return variant._replace(kernel=Kernel(prepare_there))


@pytest.mark.dealt
@pytest.mark.parametrize("kind", ["fp8", "mxfp4", "gfx942"])
@pytest.mark.parametrize("clean_logits", [False, True])
def test_the_same_bits_in_any_order(kind: str, clean_logits: bool) -> None:
    """A program or two for each group; one for each tile; and eight dies, with programs that have nothing to do."""
    if kind == "mxfp4":
        variant, case = MX_VARIANTS["gluon_cdna4"], MxCase(mx_windowed(ROWS, 64, 128), clean_logits)
    else:
        dtype = torch.float8_e4m3fnuz if kind == "gfx942" else torch.float8_e4m3fn
        call = windowed(ROWS, 64, 128, dtype=dtype)
        variant, case = VARIANTS["gluon_cdna4"] if kind == "fp8" else gfx942(), Case(call, clean_logits)
    compute_units = 304 if kind == "gfx942" else 256

    alone = prepare(supposing(variant, 1), case)
    on_dies = prepare(supposing(variant, compute_units), case)
    with override(disable=["xcds_in_turn"]):
        without = prepare(supposing(variant, compute_units), case)
    tiles = 5 if kind == "gfx942" else 3
    assert alone.grid < without.grid == (2 * tiles,)
    assert on_dies.grid == (8 * tiles,), "groups are dealt out by eights"
    written = []
    for prepared in (alone, on_dies, without):
        assert spills_nothing(prepared)
        for landing in ("late", "early"):
            execute(prepared, landing=landing, measure=False)
            written.append(prepared.out.view(torch.int32).clone())
    assert all(torch.equal(first, written[0]) for first in written)
