"""DeepGEMM's own test through the drop-in functions of both generations, in its sizes for sm90."""

import pytest
import torch

from capgate import compat
from support import deep_gemm_grid, upstream

pytestmark = pytest.mark.gpu

KINDS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
JUDGED = 512  # rows, or requests, that are held against the formula

dtypes = pytest.mark.parametrize("dtype", KINDS.values(), ids=KINDS)


@pytest.fixture(autouse=True)
def _sm90(gpu: torch.device) -> None:
    target = compat.capabilities(gpu).target
    if target.label != "sm90":
        pytest.skip(f"what DeepGEMM's functions take on sm90: found {target.label}")


@dtypes
@pytest.mark.parametrize("parallel", [True, False], ids=["one-rank-of-several", "alone"])
@pytest.mark.parametrize("dim", [32, 64, 128])
@pytest.mark.parametrize("heads", [32, 64])
@pytest.mark.parametrize("keys", [8192, 65536])
@pytest.mark.parametrize("rows", [2048, 8192])
def test_prefill(fp8: torch.dtype, rows: int, keys: int, heads: int, dim: int, parallel: bool, dtype: torch.dtype) -> None:
    call = upstream.Prefill("cuda", rows, keys, heads, dim, parallel=parallel, dtype=fp8)
    deep_gemm_grid.prefill(call, dtype, JUDGED)


@pytest.mark.parametrize(
    ("two_d", "dtype"),
    [(True, torch.float32), (True, torch.bfloat16), (False, torch.float32)],
    ids=["row-lengths", "row-lengths-bfloat16", "lengths"],
)
@pytest.mark.parametrize("mean", [8192, 65536])
@pytest.mark.parametrize(("heads", "block"), [(64, 64), (32, 32)])
@pytest.mark.parametrize("next_n", [1, 2, 4])
@pytest.mark.parametrize("requests", [256, 4096])
def test_decode(
    fp8: torch.dtype, requests: int, next_n: int, heads: int, block: int, mean: int, two_d: bool, dtype: torch.dtype
) -> None:
    """Requests share the 2**22 keys that the cache holds."""
    call = upstream.Decode("cuda", requests, next_n, heads, 128, mean, block, two_d=two_d, dtype=fp8, most_keys=2**22)
    deep_gemm_grid.decode(call, int(1.3 * mean) + 1, dtype, JUDGED // 8)
