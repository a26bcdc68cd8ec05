"""DeepGEMM's own test through the drop-in functions of both generations, on CPU tensors; tests/gpu has it in its sizes."""

import pytest
import torch

from capgate import compat
from support import deep_gemm_grid, upstream

FN = torch.float8_e4m3fn
KINDS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

dtypes = pytest.mark.parametrize("dtype", KINDS.values(), ids=KINDS)


@pytest.fixture(autouse=True)
def _repeated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deep_gemm_grid, "REPEATS", 2)


@pytest.mark.dealt("parallel", "dtype")
@dtypes
@pytest.mark.parametrize("parallel", [True, False], ids=["one-rank-of-several", "alone"])
def test_prefill(variant: str, parallel: bool, dtype: torch.dtype) -> None:
    call = upstream.Prefill("cpu", 20, 60, 32, 64, parallel=parallel, dtype=FN)
    with compat.override(variant={"fp8_mqa_logits": variant}):
        deep_gemm_grid.prefill(call, dtype, most=16)


@pytest.mark.dealt("two_d", "dtype")
@pytest.mark.parametrize(
    ("two_d", "dtype"),
    [(True, torch.float32), (True, torch.bfloat16), (False, torch.float32)],
    ids=["row-lengths", "row-lengths-bfloat16", "lengths"],
)
@pytest.mark.parametrize(("next_n", "block"), [(1, 64), (4, 32)])
def test_decode(variant: str, next_n: int, block: int, two_d: bool, dtype: torch.dtype) -> None:
    call = upstream.Decode("cpu", 5, next_n, 16, 64, 100, block, two_d=two_d, dtype=FN, most_keys=256)
    with compat.override(variant={"fp8_paged_mqa_logits": variant}):
        deep_gemm_grid.decode(call, 131, dtype, most=4)
