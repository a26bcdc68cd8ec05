"""Gluon's asynchronous copies to LDS, on the Tritons whose Gluon has them."""

import pytest
import torch
import triton

from emulator import MissingWait, parse, run
from support.emulation import bound, compile_kernel

pytestmark = pytest.mark.skipif(
    triton.__version__.startswith("3.5."), reason="the asynchronous copies of Triton 3.6 are needed"
)


@pytest.fixture(scope="module")
def launched():
    """(compiled kernel, its arguments, the sum)"""
    from support.sample_gluon_kernel import running_sum

    try:
        from triton.experimental.gluon import GluonASTSource
    except ImportError:
        from triton.experimental.gluon._runtime import GluonASTSource
    x = torch.randn(5, 32, 64, generator=torch.Generator().manual_seed(2))
    arguments = (x, torch.empty(32, 64), 5)
    return compile_kernel(running_sum, arguments, {"ROWS": 32, "COLUMNS": 64}, GluonASTSource, num_warps=2), arguments


@pytest.mark.parametrize("landing", ["late", "early"])
def test_running_sum(launched, landing):
    compiled, (x, out, tiles) = launched
    result = run(compiled, (1,), bound(compiled, (x, out, tiles), [out]), landing=landing)
    torch.testing.assert_close(out, x.sum(0), rtol=1e-5, atol=1e-5)
    assert result.counters.lds_copied_bytes == 6 * 32 * 64 * 4


def test_running_sum_without_its_waits(launched):
    compiled, arguments = launched
    lines = [line for line in compiled.asm["amdgcn"].splitlines() if "s_waitcnt vmcnt" not in line]
    for landing in ("late", "early"):
        with pytest.raises(MissingWait):
            run(parse("\n".join(lines)), (1,), bound(compiled, arguments), lds_bytes=compiled.metadata.shared, landing=landing)
