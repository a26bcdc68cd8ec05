"""Packed relu on hardware: what CAPGATE_ENABLE=packed_clamp promises, on a GPU that may have it."""

import pytest
import torch

from capgate import compat
from capgate.kernels import fp8_mqa_logits
from support import judge

pytestmark = pytest.mark.gpu
E4M3FN_NAN = 0x7F


def logits(call: judge.Call, *enable: str) -> torch.Tensor:
    with compat.override(enable=enable):
        return fp8_mqa_logits(*call, clean_logits=True, variant="gluon_cdna4")


@pytest.mark.parametrize("nan", [False, True])
@pytest.mark.parametrize(("heads", "dim"), [(64, 128), (32, 64), (16, 32), (128, 128)])
def test_no_bit_changes(gpu: torch.device, heads: int, dim: int, nan: bool) -> None:
    caps = compat.capabilities(gpu)
    if not (caps.gfx950 and caps.gluon_cdna4):
        pytest.skip(f"{caps.why('gfx950')}; {caps.why('gluon_cdna4')}")
    call = judge.make_call(300, 1024, heads, dim, "ragged", dtype=torch.float8_e4m3fn, device="cuda")
    if nan:
        call.q.view(torch.uint8)[7, 1, 3] = E4M3FN_NAN
    plain, packed = logits(call), logits(call, "packed_clamp")
    assert torch.equal(plain.isnan(), packed.isnan())
    assert packed.isnan().any() == nan
    assert torch.equal(plain.nan_to_num(), packed.nan_to_num())
