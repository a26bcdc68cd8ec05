"""What some builds miscompile without a word is wrong when it runs exactly where the capability does not hold."""

import pytest
import torch

from capgate import compat
from support import pitfalls

pytestmark = pytest.mark.gpu

FUSION = {"enable_fp_fusion": True}  # Triton 3.9 warns of every launch that does not say


@pytest.mark.parametrize("kernel", ["carried_bounds", "gluon_carried_bounds"])
def test_bounds_of_an_inner_loop_that_the_outer_one_loads_ahead(gpu: torch.device, kernel: str) -> None:
    caps = compat.capabilities(gpu)
    if kernel.startswith("gluon") and not caps.gluon:
        pytest.skip(caps.why("gluon"))
    bounds = [(3, 7), (0, 2), (5, 5), (9, 16)]
    firsts, lasts = torch.tensor([*bounds, (0, 0)], dtype=torch.int32, device=gpu).unbind(1)
    out = torch.zeros(len(bounds), 16, dtype=torch.int32, device=gpu)
    getattr(pitfalls, kernel)[(1,)](firsts.contiguous(), lasts.contiguous(), out, len(bounds), WIDTH=16, num_warps=1, **FUSION)
    column = torch.arange(16, device=gpu)
    expected = (column >= firsts[:-1, None]) & (column < lasts[:-1, None])
    assert torch.equal(out[0], expected[0].int())
    assert torch.equal(out, expected.int()) == caps.carried_loop_bounds, caps.why("carried_loop_bounds")


def test_a_wgmma_behind_a_loop_that_runs_zero_times(gpu: torch.device) -> None:
    """Where ptxas is wrong, such an item's product is made with parts of the queries of the last item whose loop ran."""
    caps = compat.capabilities(gpu)
    for needed in ("sm90", "gluon"):
        if not caps[needed]:
            pytest.skip(caps.why(needed))
    tiles, counts = 4, [3, 1, 2, 0, 1, 4]
    generator = torch.Generator(gpu).manual_seed(0)

    def values(*shape: int) -> torch.Tensor:
        return torch.randint(-4, 5, shape, device=gpu, generator=generator).to(torch.float8_e4m3fn)

    keys, queries = values(tiles, 64, 128), values(len(counts), 64, 128)
    out = torch.zeros(len(counts), tiles, 64, 64, device=gpu)
    items = torch.tensor(counts, dtype=torch.int32, device=gpu)
    sizes = {"TILES": tiles, "ITEMS": len(counts), "DIM": 128}
    pitfalls.product_after_loop[(1,)](keys, queries, out, items, len(counts), **sizes, num_warps=4, **FUSION)

    expected = torch.einsum("tkd,iqd->itkq", keys.float().cpu(), queries.float().cpu())  # of small integers: exact
    for item, count in enumerate(counts):
        expected[item, count:] = 0
    right = (out.cpu() == expected).flatten(1).all(1).tolist()
    assert [right[item] for item, count in enumerate(counts) if count != 1] == [True] * 4
    assert all(right) == caps.wgmma_after_zero_trip_loop, caps.why("wgmma_after_zero_trip_loop")
